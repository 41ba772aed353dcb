package execution

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/runner"
)

// ErrCancelled is the cause with which a context ends the execution that somebody has cancelled.
var ErrCancelled = errors.New("the execution was cancelled")

// Ended is what became of an execution.
type Ended struct {
	Result runner.Result
	// Mint is how long the key took, Revoke how long it took to take everything back after the step.
	Mint, Revoke time.Duration
	// Traceparent is the W3C trace context of the step, empty where it has none.
	Traceparent string
	// MintBegan is when the key was asked for, RevokeBegan when it began to be taken back.
	MintBegan, RevokeBegan time.Time
	// Begun is true once the step's code may have started.
	Begun bool
}

// Spent returns how long each phase took, in the order of [phases.All]; queued is the wait for a slot.
func (e Ended) Spent(queued time.Duration) iter.Seq2[phases.Phase, time.Duration] {
	spent := map[phases.Phase]time.Duration{
		phases.Queue: queued, phases.Spawn: e.Result.Phases.Spawn, phases.Mint: e.Mint, phases.Import: e.Result.Phases.Import,
		phases.Step: e.Result.Phases.Step, phases.Teardown: e.Result.Phases.Teardown, phases.Revoke: e.Revoke,
	}
	return func(yield func(phases.Phase, time.Duration) bool) {
		for _, phase := range phases.All() {
			if !yield(phase, spent[phase]) {
				return
			}
		}
	}
}

// Outcome says how an execution ended of which [Host.Run] returned e and err, or which never came to Run because of err.
func (e Ended) Outcome(err error) outcomes.Outcome {
	var fields *runner.FieldErrors
	switch {
	case err == nil:
		return e.Result.Outcome
	case errors.As(err, &fields):
		return outcomes.Refused
	case errors.Is(err, ErrCancelled), errors.Is(err, context.Canceled):
		return outcomes.Cancelled
	case e.Begun:
		return outcomes.Internal
	}
	return outcomes.NotStarted
}
