package execution

import (
	"context"
	"time"

	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// keyGrace is how long a key outlives the step's limit: start-up before it and the last call's answer after it.
const keyGrace = 15 * time.Second

// Request is one execution to run.
type Request struct {
	// Identity is the account that the step acts for. It comes from an authenticated caller, never from the step.
	Identity minter.Identity
	// Name is what people call the step; for traces and the log.
	Name string
	// Job is the step and what it is given. Its ID, APIURL and APIRoot are set by [Host.Run]; its Traceparent is that of
	// the request for it, and the step gets a child of that.
	Job    runner.Execution
	Limits runner.Limits
	// Tracestate goes with Traceparent.
	Tracestate string
	// Asked is when it was asked for and began to wait for a slot; zero means that nothing waited. Delivered says that a queue handed it
	// over; otherwise it was asked for over HTTP.
	Asked     time.Time
	Delivered bool
	// Starting, if any, is asked when all is ready and the step's code is about to start. Its error is that of [Host.Run], and
	// the code does not start: a caller that must not run a step twice writes down here that it runs.
	Starting func(context.Context) error
	// Fence, if any, is asked before each use of the key. After an error of it the step calls the API no more: whoever may be
	// taken for dead says so here, at once, however long this process was stopped.
	Fence func() error
}

// Run carries one execution to its result. A step that fails is a result; an error is the sidecar's own failure, or
// *runner.FieldErrors for a request that cannot be run as it is. When ctx ends first, the key is revoked before the step is
// killed, and the outcome is [outcomes.Cancelled].
func (h *Host) Run(ctx context.Context, r Request) (done Ended, err error) {
	w := h.watch(ctx, r)
	queued := time.Duration(0)
	if !r.Asked.IsZero() {
		now := time.Now()
		queued = now.Sub(r.Asked)
		w.Phase(phases.Queue, r.Asked, now, nil)
	}
	done, err = h.run(w.ctx, r, w)
	w.end(r, done, queued, err)
	return done, err
}

func (h *Host) run(ctx context.Context, r Request, w *watch) (done Ended, err error) {
	limits := r.Limits.WithDefaults()
	began := time.Now()
	// Python starts, or is there already, while the key is minted.
	prepared, err := h.interpreters.prepare(context.WithoutCancel(ctx), r.Job.Runtime, limits)
	spawned := time.Now()
	w.Phase(phases.Spawn, began, spawned, err)
	if err != nil {
		return done, err
	}
	defer func() {
		if !done.Begun {
			prepared.Discard()
		}
	}()
	lifetime := limits.Wall + keyGrace
	authority, err := h.open(ctx, r.Identity, Serving{
		Listener: prepared.Listener(), KeyLifetime: lifetime, Deadline: time.Now().Add(lifetime),
		fence: r.Fence,
	}, w)
	if err != nil {
		return done, err
	}
	// The calls that the step left in flight are cut. A panic below ends the process, and the key goes first.
	defer func() {
		began := time.Now()
		authority.Close(ctx, 0)
		if done.Begun {
			done.Mint, done.Revoke = authority.minting, time.Since(began)
			done.MintBegan, done.RevokeBegan = authority.mintBegan, began
		}
	}()
	r.Job.ID, r.Job.APIURL, r.Job.APIRoot = r.Identity.ExecutionID, authority.URL(), h.config.Proxy.APIRoot.String()
	r.Job.Keys = authority.Keys
	r.Job.Timeout = limits.Wall
	r.Job.Traceparent, _ = w.StepContext()
	done.Traceparent = r.Job.Traceparent
	if r.Starting != nil {
		if err := r.Starting(ctx); err != nil {
			return done, err
		}
	}
	done.Begun = true
	done.Result, err = runRevoking(ctx, prepared, r.Job, authority)
	w.ran(spawned, done.Result, err)
	return done, err
}

// revokeFirst is how long the end of ctx waits for the key to be revoked before the step is killed all the same.
const revokeFirst = 250 * time.Millisecond

// runRevoking runs the step so that the end of ctx revokes the key first, and kills the step then. A Redis that does not answer
// lets no step run on.
func runRevoking(ctx context.Context, prepared interpreter, job runner.Execution, authority *Authority) (runner.Result, error) {
	running, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	defer kill(nil)
	revoked := make(chan struct{})
	stop := context.AfterFunc(ctx, routine.Safe(func() {
		defer close(revoked)
		cause := context.Cause(ctx)
		late := time.AfterFunc(revokeFirst, routine.Safe(func() { kill(cause) }))
		defer late.Stop()
		authority.Revoke(ctx)
		kill(cause)
	}))
	result, err := prepared.Run(running, job)
	if !stop() {
		<-revoked
	}
	return result, err
}
