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
	// waiting is unbuffered: an interpreter belongs to its keeper until a caller takes it.
	waiting chan *runner.Prepared

	renewing sync.Mutex         // guards changes of the fields below
	loadsOwn bool               // fork servers are impossible or disabled
	mu       sync.RWMutex       // read-locked during a fork, locked to change the server
	server   *runner.ForkServer // the current fork server, if any
	retired  routine.Group      // replaced servers that wait for the end of their forks

	loaded atomic.Pointer[outcome] // of the last attempt
}

// outcome is the result of an attempt to start a waiting interpreter.
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

// take returns a waiting interpreter, or a new fork, or nil if neither is available.
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
			s.pool.config.Log.Warn("no fork of a warm interpreter; the execution starts its own", "runtime", s.runtime, "error",
				err)
		}
		return prepared
	}
}

// ended reports whether a process died while it waited. The kernel kills waiting interpreters first when memory runs
// out.
func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// retry is how long a keeper waits after a failed start.
const retry = 5 * time.Second

// keep keeps one interpreter waiting, and starts the next one when it is taken, until the pool is closed.
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

// load forks an interpreter, or loads one if forks are unavailable. Interpreters in use outlive the pool's context.
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

// fork forks an interpreter, or returns nil without a fork server.
func (s *runtimePool) fork(ctx context.Context) (*runner.Prepared, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.server == nil || ended(s.server.Done()) {
		return nil, nil
	}
	return s.server.Prepare(ctx)
}

// renew replaces a missing, used up or dead fork server, if fork servers are possible. Until then the old one keeps
// serving.
func (s *runtimePool) renew(ctx context.Context) error {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	old := s.server // only this goroutine changes it
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

// serves reports whether a server can make another fork.
func (s *runtimePool) serves(server *runner.ForkServer) bool {
	config := s.pool.config
	return server != nil && !ended(server.Done()) && time.Since(server.Begun()) < config.MaxAge &&
		server.Forked() < config.MaxForks
}

// replace changes the server while no fork is in progress.
func (s *runtimePool) replace(server *runner.ForkServer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

// offer returns when the interpreter has been taken, has died, is too old, or is no longer needed.
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

// close ends the fork servers once their last forks have ended. No keeper may be running.
func (s *runtimePool) close() {
	server := s.server
	s.replace(nil)
	if server != nil {
		server.Close()
	}
	s.retired.Wait()
}
