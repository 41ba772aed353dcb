package execution

import (
	"context"
	"errors"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

// ErrCancelled is the cause with which a context ends the execution that somebody has cancelled.
var ErrCancelled = errors.New("the execution was cancelled")

// Ended is what became of an execution.
type Ended struct {
	Result runner.Result
	// Mint is how long the key took, Teardown how long it took to take everything back after the step.
	Mint, Teardown time.Duration
	// Traceparent is the W3C trace context of the step, empty where it has none.
	Traceparent string
	// MintBegan is when the key was asked for, RevokeBegan when it began to be taken back.
	MintBegan, RevokeBegan time.Time
	// Begun is true once the step's code may have started.
	Begun bool
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
