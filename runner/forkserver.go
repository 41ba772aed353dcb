package runner

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// A ForkServer is a Python that has imported the harness, requests and what steps use most, and forks interpreters of it,
// each into a sandbox of its own. It runs nothing of a step's, and was given nothing of one: no secret and no key has ever
// been in it. What its forks have in common until it is replaced is what Python chooses when it starts: the seed of its
// hashes, and where in memory things are.
type ForkServer struct {
	// own is the server's process, whose job's socket carries the harness and no job.
	own    *Prepared
	server *sandbox.ForkServer
	begun  time.Time
	forks  routine.Group
	forked atomic.Int64
}

// StartForkServer starts one for runtime; limits are those of its forks. The error is [sandbox.ErrCannotFork] where forks
// could not be kept apart; [Runner.PrepareWarm] is for there.
func (r *Runner) StartForkServer(ctx context.Context, runtime Runtime, limits Limits) (*ForkServer, error) {
	own, err := r.choose(runtime, limits)
	if err != nil {
		return nil, err
	}
	f := &ForkServer{own: own, begun: own.begun}
	bundle := r.bundles.get(ctx, own.interpreter)
	err = own.start(func(spec sandbox.Spec) (process, error) {
		// Descriptor 3 is the sandbox's.
		spec.Argv = append(loader(own.interpreter, "4"), "forkserver")
		spec.Env, spec.Readable, spec.Network = environment, own.interpreter.readable(), r.config.Network
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

// Begun is when the server was started.
func (f *ForkServer) Begun() time.Time { return f.begun }

// Forked is how many interpreters have been forked from it.
func (f *ForkServer) Forked() int { return int(f.forked.Load()) }

// Done is closed when the server has ended, and with it all its forks.
func (f *ForkServer) Done() <-chan struct{} { return f.server.Done() }

// Prepare forks an interpreter, as [Runner.PrepareWarm] starts one.
func (f *ForkServer) Prepare(ctx context.Context) (*Prepared, error) {
	p := &Prepared{
		interpreter: f.own.interpreter, notes: f.own.notes, layers: f.own.layers, limits: f.own.limits,
		begun: time.Now(), warm: true,
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

// Close ends the server once all its forks have ended, and returns when nothing of it is left. Nothing may be prepared
// meanwhile.
func (f *ForkServer) Close() {
	f.forks.Wait()
	f.own.Discard()
}
