package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/kizen/kizen-sidecar/internal/backoff"
)

const (
	// DefaultAttempts is the number of attempts after which a delivery is given up. With [Delay] between them, they
	// span about six hours.
	DefaultAttempts = 17
	firstDelay      = time.Second
	longestDelay    = time.Hour
)

// DeliveryError explains why a message was not delivered. It names the host, but not the rest of the URL.
type DeliveryError struct {
	Host   string
	Status int    // of the response; 0 if there was none
	Reason string // what happened
	// Final is true if another attempt is pointless or unwanted.
	Final bool
	// RetryAfter is how long the receiver asked the sender to wait; 0 if it did not.
	RetryAfter time.Duration
	Err        error // the cause, if any
}

// Error implements error.
func (e *DeliveryError) Error() string {
	text := e.Reason
	if e.Host != "" {
		text = fmt.Sprintf("callback host %q %s", e.Host, e.Reason)
	}
	if e.Status != 0 {
		text += fmt.Sprintf(" (status %d)", e.Status)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause of the failure.
func (e *DeliveryError) Unwrap() error { return e.Err }

// Final reports whether another attempt is pointless after err.
func Final(err error) bool {
	var failed *DeliveryError
	return errors.As(err, &failed) && failed.Final
}

// Delay returns how long to wait after attempt number attempt, counted from 1, has failed with err: 1 s, 2 s, 4 s, up
// to 1 h. Each delay is reduced by up to half at random, so that deliveries that failed together are not retried
// together. A longer Retry-After takes precedence.
func Delay(attempt int, err error) time.Duration {
	delay := backoff.Delay(attempt, firstDelay, longestDelay)
	var failed *DeliveryError
	if errors.As(err, &failed) {
		delay = max(delay, failed.RetryAfter)
	}
	return delay
}

// retryAfter parses a Retry-After header (RFC 9110, section 10.2.3): seconds or a date, at most an hour.
func retryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return min(max(wait, 0), longestDelay)
}

// Deliver retries a message until it is delivered, an attempt fails with a final error, no attempts are left, or ctx
// ends. The function try makes each attempt; it may wait before it calls [Sender.Try].
func (s *Sender) Deliver(ctx context.Context, m Message, try func(context.Context, Message) error) error {
	for attempt := 1; ; attempt++ {
		err := try(ctx, m)
		if err == nil || Final(err) || ctx.Err() != nil {
			return err
		}
		if attempt == s.config.Attempts {
			return fmt.Errorf("given up after %d attempts: %w", attempt, err)
		}
		if backoff.Wait(ctx, min(Delay(attempt, err), s.config.LongestDelay)) != nil {
			return err
		}
	}
}
