package runner

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// A ForkServer is a Python that has imported the harness, requests and the most used modules, and forks interpreters,
// each into its own sandbox. It never runs code or holds data of a step, so it never contains a secret or a key. Until
// it is replaced, its forks share what Python chooses at its start: the hash seed and the memory layout.
type ForkServer struct {
	// own is the server's process. Its job socket transports only the harness, never a job.
	own    *Prepared
	server *sandbox.ForkServer
	begun  time.Time
	forks  routine.Group
	forked atomic.Int64
}

// StartForkServer starts a fork server for runtime. limits apply to its forks. If this machine cannot isolate forks,
// the error is [sandbox.ErrCannotFork]; use [Runner.PrepareWarm] then.
func (r *Runner) StartForkServer(ctx context.Context, runtime Runtime, limits Limits) (*ForkServer, error) {
	own, err := r.choose(runtime, limits)
	if err != nil {
		return nil, err
	}
	f := &ForkServer{own: own, begun: own.begun}
	bundle := r.bundles.get(ctx, own.interpreter)
	err = own.start(func(spec sandbox.Spec) (process, error) {
		// The sandbox uses descriptor 3.
		spec.Argv = append(loader(own.interpreter, "4"), "forkserver")
		spec.Env, spec.Readable, spec.Network = r.environment(), own.interpreter.readable(), r.config.Network
		server, err := r.sandbox.StartForkServer(ctx, spec)
		if err != nil {
			return nil, err
		}
		f.server = server
		return server, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: start %s: %w", ErrHarness, own.interpreter.Path, err)
	}
	own.layers = r.layers()
	own.load(bundle)
	if err := own.awaitReady(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// Begun returns when the server was started.
func (f *ForkServer) Begun() time.Time { return f.begun }

// Forked returns the number of interpreters that the server has forked.
func (f *ForkServer) Forked() int { return int(f.forked.Load()) }

// Done returns a channel that is closed when the server and all its forks have ended.
func (f *ForkServer) Done() <-chan struct{} { return f.server.Done() }

// Prepare forks an interpreter, as [Runner.PrepareWarm] starts one.
func (f *ForkServer) Prepare(ctx context.Context) (*Prepared, error) {
	p := &Prepared{
		interpreter: f.own.interpreter, notes: f.own.notes, layers: f.own.layers, limits: f.own.limits,
		begun: time.Now(), warm: true, config: f.own.config,
	}
	err := p.start(func(spec sandbox.Spec) (process, error) {
		forked, err := f.server.Fork(ctx, spec)
		if err != nil {
			return nil, err
		}
		return forked, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: fork %s: %w", ErrHarness, p.interpreter.Path, err)
	}
	f.forked.Add(1)
	f.forks.Go(func() { <-p.process.Done() })
	if err := p.awaitReady(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the server once all its forks have ended, and returns when all its processes are gone. The caller must not
// call Prepare during or after Close.
func (f *ForkServer) Close() {
	f.forks.Wait()
	f.own.Discard()
}
