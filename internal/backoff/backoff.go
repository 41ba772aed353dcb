// Package backoff computes how long to wait before retrying.
//
// The delay follows from the number of failures, which a record in Redis or a queue can keep across processes.
// github.com/cenkalti/backoff keeps the delay itself, in one process.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Delay doubles from first to last with the number of failures, from 1, and subtracts up to half at random, so that
// callers that failed together do not return together.
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
