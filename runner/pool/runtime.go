package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// runtimePool keeps the interpreters of one runtime.
type runtimePool struct {
	pool    *Pool
	runtime runner.Runtime
	// waiting is not buffered: an interpreter belongs to its keeper until somebody takes it.
	waiting chan *runner.Prepared

	renewing sync.Mutex         // held by the one who changes what follows
	loadsOwn bool               // there can be no server, or shall be none
	mu       sync.RWMutex       // held while something is forked, and to change the server
	server   *runner.ForkServer // what interpreters are forked from, if any
	retired  routine.Group      // servers that wait for the last of their forks

	loaded atomic.Pointer[outcome] // how the last attempt went
}

// outcome is how an attempt to have an interpreter wait went.
type outcome struct{ err error }

func newRuntimePool(pool *Pool, runtime runner.Runtime) *runtimePool {
	s := &runtimePool{pool: pool, runtime: runtime, waiting: make(chan *runner.Prepared), loadsOwn: pool.config.Exec}
	s.loaded.Store(&outcome{errLoading})
	return s
}

func (s *runtimePool) check() error {
	err := s.loaded.Load().err
	if err != nil && err != errLoading {
		return fmt.Errorf("no warm interpreter can be started: %w", err)
	}
	return err
}

// take gives an interpreter that waits or, where none does, a fork; nil where that cannot be had.
func (s *runtimePool) take(ctx context.Context) *runner.Prepared {
	for {
		select {
		case prepared := <-s.waiting:
			if !ended(prepared.Done()) {
				return prepared
			}
			prepared.Discard()
			continue
		default:
		}
		prepared, err := s.fork(ctx)
		if err != nil && ctx.Err() == nil {
			s.pool.config.Log.Warn("no fork of a warm interpreter; the execution starts its own", "runtime", s.runtime, "error", err)
		}
		return prepared
	}
}

// ended reports whether a process died while it waited, as the first of its kind would when the machine runs out of memory.
func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// retry is how long a keeper waits after an interpreter that could not be started.
const retry = 5 * time.Second

// keep has one interpreter wait, and starts the next when it is taken, until the pool is closed.
func (s *runtimePool) keep() {
	for s.pool.ctx.Err() == nil {
		prepared, err := s.load()
		s.loaded.Store(&outcome{err})
		if err != nil {
			if s.pool.ctx.Err() == nil {
				s.pool.config.Log.Warn("no warm interpreter; executions start their own", "runtime", s.runtime, "error", err)
			}
			s.pool.sleep(retry)
			continue
		}
		s.offer(prepared)
	}
}

// load forks an interpreter, or loads one where there are no forks. Those given away outlive the pool's context.
func (s *runtimePool) load() (*runner.Prepared, error) {
	select {
	case s.pool.loading <- struct{}{}:
		defer func() { <-s.pool.loading }()
	case <-s.pool.ctx.Done():
		return nil, s.pool.ctx.Err()
	}
	ctx := context.WithoutCancel(s.pool.ctx)
	if err := s.renew(ctx); err != nil {
		return nil, err
	}
	if prepared, err := s.fork(ctx); prepared != nil || err != nil {
		return prepared, err
	}
	return s.pool.config.Source.PrepareWarm(ctx, s.runtime, s.pool.config.Limits)
}

// fork forks an interpreter; nil where there is nothing to fork it from.
func (s *runtimePool) fork(ctx context.Context) (*runner.Prepared, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.server == nil || ended(s.server.Done()) {
		return nil, nil
	}
	return s.server.Prepare(ctx)
}

// renew sees to it that there is a server to fork from, and none that is used up or dead, where there can be one at all.
// Meanwhile the old one serves.
func (s *runtimePool) renew(ctx context.Context) error {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	old := s.server // which only this goroutine changes
	if s.loadsOwn || s.serves(old) {
		return nil
	}
	server, err := s.pool.config.Source.StartForkServer(ctx, s.runtime, s.pool.config.Limits)
	if errors.Is(err, sandbox.ErrCannotFork) {
		s.pool.config.Log.Info("warm interpreters are loaded one by one", "runtime", s.runtime, "why", err)
		s.loadsOwn = true
		return nil
	}
	if err != nil {
		return err
	}
	s.replace(server)
	if old != nil {
		s.retired.Go(old.Close)
	}
	return nil
}

// serves reports whether a server is good for another fork.
func (s *runtimePool) serves(server *runner.ForkServer) bool {
	config := s.pool.config
	return server != nil && !ended(server.Done()) && time.Since(server.Begun()) < config.MaxAge && server.Forked() < config.MaxForks
}

// replace changes the server while no fork is under way.
func (s *runtimePool) replace(server *runner.ForkServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

// offer returns when the interpreter was taken, has died, is old, or is not needed any more.
func (s *runtimePool) offer(prepared *runner.Prepared) {
	p := s.pool
	age := time.NewTimer(p.config.MaxAge)
	defer age.Stop()
	p.ready.Add(1)
	defer p.ready.Add(-1)
	select {
	case s.waiting <- prepared:
		return
	case <-prepared.Done():
		p.config.Log.Warn("a warm interpreter died before it was used")
		p.sleep(retry)
	case <-age.C:
	case <-p.ctx.Done():
	}
	prepared.Discard()
}

// close ends what interpreters are forked from, once the last of them has ended. No keeper may be left.
func (s *runtimePool) close() {
	server := s.server
	s.replace(nil)
	if server != nil {
		server.Close()
	}
	s.retired.Wait()
}
