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
	// DefaultAttempts are made before a delivery is given up: with [Delay] between them, for about six hours.
	DefaultAttempts = 17
	firstDelay      = time.Second
	longestDelay    = time.Hour
)

// DeliveryError says why a message was not taken. It names the host and never the rest of the URL.
type DeliveryError struct {
	Host   string
	Status int    // of the answer; 0: there was none
	Reason string // what happened
	// Final is true where another attempt is pointless or not wanted.
	Final bool
	// RetryAfter is how long the receiver wants to be left alone; 0: it did not say.
	RetryAfter time.Duration
	Err        error // what is behind it, if anything
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

// Unwrap returns what is behind the failure.
func (e *DeliveryError) Unwrap() error { return e.Err }

// Final reports whether another attempt is pointless after err.
func Final(err error) bool {
	var failed *DeliveryError
	return errors.As(err, &failed) && failed.Final
}

// Delay is how long to wait after the attempt of a number, from 1, that failed with err: 1 s, 2 s, 4 s, up to 1 h, each cut
// by up to a half at random, so that those who failed together do not come back together. A longer Retry-After is kept to.
func Delay(attempt int, err error) time.Duration {
	delay := backoff.Delay(attempt, firstDelay, longestDelay)
	var failed *DeliveryError
	if errors.As(err, &failed) {
		delay = max(delay, failed.RetryAfter)
	}
	return delay
}

// retryAfter reads the header of that name (RFC 9110, section 10.2.3): seconds or a date, an hour at most.
func retryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return min(max(wait, 0), longestDelay)
}

// Deliver has a message tried until it is taken, the attempts are used up, another one is pointless or ctx ends. Each attempt
// is made by try: [Sender.Try], and what it has to wait for before.
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
