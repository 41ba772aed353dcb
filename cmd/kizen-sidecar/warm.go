package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kizen/kizen-sidecar/runner"
)

// warmSource starts the interpreters of a pool, and remembers how the last one
// for the default runtime went. Runtimes that callers ask for and that are not
// installed here must not make the sidecar not ready.
type warmSource struct {
	*runner.Runner

	mu     sync.Mutex
	loaded bool // ever
	err    error
}

// PrepareWarm implements pool.Source.
func (s *warmSource) PrepareWarm(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error) {
	prepared, err := s.Runner.PrepareWarm(ctx, runtime, limits)
	if runtime == runner.DefaultRuntime {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.loaded, s.err = s.loaded || err == nil, err
	}
	return prepared, err
}

// state says why no interpreter can be had warm, or will be in a moment.
func (s *warmSource) state() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return fmt.Errorf("no warm interpreter can be started: %w", s.err)
	case !s.loaded:
		return errors.New("the first warm interpreter is loading")
	}
	return nil
}

// warmReady holds as long as the pool can be filled. Under load no interpreter
// may be waiting at the moment of the question: that is what they are for.
func (w *workshop) warmReady() error {
	if w.warm.Ready() > 0 {
		return nil
	}
	return w.source.state()
}

// warmUp has the pool keep interpreters of the default runtime before anybody
// asks for one. stop gives up an attempt that is under way.
func (w *workshop) warmUp() (stop func()) {
	if w.flags.Warm == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	asking.Go(func() {
		// The first question makes the pool keep some; what it answers is of no use. Why it fails, the pool logs.
		if prepared, err := w.warm.Prepare(ctx, runner.DefaultRuntime, w.limits); err == nil {
			prepared.Discard()
		}
	})
	return func() {
		cancel()
		asking.Wait()
	}
}
