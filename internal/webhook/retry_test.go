package webhook

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrips func(*http.Request) (*http.Response, error)

func (f roundTrips) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answering gives the sender a receiver that responds with each status in turn, and then repeats the last one.
func answering(s *Sender, asked *[]time.Time, statuses ...int) {
	s.client.Transport = roundTrips(func(r *http.Request) (*http.Response, error) {
		status := statuses[min(len(*asked), len(statuses)-1)]
		*asked = append(*asked, time.Now())
		header := http.Header{}
		if status == http.StatusTooManyRequests {
			header.Set("Retry-After", "600")
		}
		if status == 0 {
			return nil, errors.New("connection refused")
		}
		return &http.Response{StatusCode: status, Header: header, Body: http.NoBody, Request: r}, nil
	})
}

func TestDeliveryIsRetriedUntilItSucceeds(t *testing.T) {
	for name, test := range map[string]struct {
		statuses []int
		attempts int
		taken    bool
	}{
		"at once":                 {[]int{200}, 1, true},
		"after failures":          {[]int{0, 503, 404, 204}, 4, true},
		"never, given up":         {[]int{500}, DefaultAttempts, false},
		"gone":                    {[]int{500, 410}, 2, false},
		"asked to wait, and does": {[]int{429, 200}, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sender := newSender(t)
				var asked []time.Time
				answering(sender, &asked, test.statuses...)
				err := sender.Deliver(t.Context(), finished(t, "https://example.com"), sender.Try)
				if (err == nil) != test.taken || len(asked) != test.attempts {
					t.Errorf("%d attempts, %v; want %d", len(asked), err, test.attempts)
				}
				if test.statuses[0] == http.StatusTooManyRequests && asked[1].Sub(asked[0]) < 10*time.Minute {
					t.Errorf("retried after %s, want at least the 10m of Retry-After", asked[1].Sub(asked[0]))
				}
			})
		})
	}
}

func TestRetryAfterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newSender(t)
		sender.config.LongestDelay = time.Minute
		var asked []time.Time
		answering(sender, &asked, 429, 200)
		if err := sender.Deliver(t.Context(), finished(t, "https://example.com"), sender.Try); err != nil ||
			asked[1].Sub(asked[0]) != time.Minute {
			t.Errorf("retried after %s, %v", asked[1].Sub(asked[0]), err)
		}
	})
}

func TestDeliveryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newSender(t)
		var asked []time.Time
		answering(sender, &asked, 500)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := sender.Deliver(ctx, finished(t, "https://example.com"), sender.Try); err == nil || len(asked) > 10 {
			t.Errorf("%d attempts, %v", len(asked), err)
		}
	})
}

func TestDelaysGrowUpToAnHour(t *testing.T) {
	for attempt := 1; attempt <= 100; attempt++ {
		longest := time.Hour
		if attempt <= 12 {
			longest = time.Second << (attempt - 1)
		}
		for range 20 {
			if delay := Delay(attempt, nil); delay < longest/2-1 || delay > longest {
				t.Fatalf("after attempt %d: %s, want %s to %s", attempt, delay, longest/2, longest)
			}
		}
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	if wait := retryAfter(now.Add(time.Minute).Format(http.TimeFormat), now); wait != time.Minute {
		t.Errorf("a date one minute ahead gives a wait of %s", wait)
	}
}
