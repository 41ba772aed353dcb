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

// ErrCancelled is the cause of the context of a cancelled execution.
var ErrCancelled = errors.New("the execution was cancelled")

// Ended is the end of an execution: its result and its timing.
type Ended struct {
	Result runner.Result
	// Mint is the duration of minting the key, Revoke that of revoking and closing everything after the step.
	Mint, Revoke time.Duration
	// Traceparent is the W3C trace context of the step; it may be empty.
	Traceparent string
	// MintBegan is when the mint began, RevokeBegan when the revocation began.
	MintBegan, RevokeBegan time.Time
	// Begun reports that the step's code may have started.
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

// Outcome returns the outcome of an execution for which [Host.Run] returned e and err. If err kept the execution from
// reaching Run, e is the zero value.
func (e Ended) Outcome(err error) outcomes.Outcome {
	var fields *runner.FieldErrors
	switch {
	case err == nil:
		return e.Result.Outcome
	case errors.As(err, &fields):
		return outcomes.Refused
	case errors.Is(err, ErrCancelled), errors.Is(err, context.Canceled):
		return outcomes.Cancelled
	case errors.Is(err, runner.ErrNotBegun):
		return outcomes.NotStarted
	case e.Begun:
		return outcomes.Internal
	}
	return outcomes.NotStarted
}
