// Package backoff computes how long to wait before retrying.
//
// The delay depends only on the number of failures, which can be stored in Redis or a queue and shared by processes.
// github.com/cenkalti/backoff keeps the delay itself, in one process.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Delay returns how long to wait after a number of failures. The delay doubles from first, after one failure, up to
// last. A random part of up to half is subtracted, so that callers that failed together do not retry together.
func Delay(failures int, first, last time.Duration) time.Duration {
	doublings := max(failures-1, 0)
	longest := last
	if doublings < 63 && first <= last>>doublings {
		longest = first << doublings
	}
	return longest - rand.N(longest/2+1)
}

// Wait waits for delay. If ctx ends first, it returns the cause.
func Wait(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
