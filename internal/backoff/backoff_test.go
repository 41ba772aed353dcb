package backoff

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestDelaysDoubleUpToTheLast(t *testing.T) {
	for failures, longest := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 6: 32 * time.Second,
		7: time.Minute, 8: time.Minute, 63: time.Minute, 64: time.Minute, 65: time.Minute, math.MaxInt: time.Minute,
	} {
		least, most := time.Duration(math.MaxInt64), time.Duration(0)
		for range 1000 {
			delay := Delay(failures, time.Second, time.Minute)
			least, most = min(least, delay), max(most, delay)
		}
		if least < longest/2 || most > longest || most-least < longest/4 {
			t.Errorf("after %d failures from %s to %s, want from %s to %s", failures, least, most, longest/2, longest)
		}
	}
	if delay := Delay(3, 0, 0); delay != 0 {
		t.Errorf("the delay for zero bounds: %s", delay)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := Wait(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		cause := errors.New("cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		began = time.Now()
		if err := Wait(ctx, time.Minute); err != cause || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
