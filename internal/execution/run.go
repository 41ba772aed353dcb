package execution

import (
	"context"
	"time"

	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// keyGrace is how much longer than the step's time limit a key is valid, for the start-up before and the last call's
// response after.
const keyGrace = 15 * time.Second

// Request is one execution to run.
type Request struct {
	// Identity is the account that the step acts for. It comes from an authenticated caller, never from the step.
	Identity minter.Identity
	// Name is the step's human-readable name, for traces and the log.
	Name string
	// Job is the step with its inputs. [Host.Run] sets its ID, APIURL and APIRoot; its Traceparent is that of the
	// request, and the step gets a child span of it.
	Job    runner.Execution
	Limits runner.Limits
	// Tracestate belongs to Traceparent.
	Tracestate string
	// Asked is when it was requested and began to wait for a slot; zero means that it did not wait. Delivered
	// reports that it came from a queue; otherwise it was requested over HTTP.
	Asked     time.Time
	Delivered bool
	// Starting, if not nil, is called when everything is ready, just before the step's code starts. If it returns
	// an error, the code does not start, and [Host.Run] returns the error. A caller that must not run a step twice
	// records the start here.
	Starting func(context.Context) error
	// Fence, if not nil, is called before each use of the key. Once it returns an error, the step can no longer call
	// the API. It must return an error as soon as other workers may consider this one dead, even directly after the
	// process was suspended.
	Fence func() error
}

// Run runs one execution to its end. A failed step is a result; an error is the sidecar's own failure, or
// *runner.FieldErrors for an invalid request. If ctx ends first, Run revokes the key and then kills the step, and the
// outcome is [outcomes.Cancelled].
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
	// Python starts, unless it is warm, while the key is minted.
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
	// Cut the calls that the step left in flight. Even if a panic below ends the process, revoke the key first.
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
	principal, err := h.principal(r.Identity)
	if err != nil {
		return done, err
	}
	deciding := &connections{host: h, principal: principal, identity: r.Identity, step: r.Name, watch: w}
	r.Job.Policy, r.Job.Connected = deciding, deciding.connected
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

// revokeFirst is how long the kill of a cancelled step waits for the revocation of its key.
const revokeFirst = 250 * time.Millisecond

// runRevoking runs the step. If ctx ends, it revokes the key first and then kills the step, even if Redis does not
// answer.
func runRevoking(ctx context.Context, prepared interpreter, job runner.Execution,
	authority *Authority) (runner.Result, error) {
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
