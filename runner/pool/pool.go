// Package pool keeps sandboxed interpreters warm: forked from a Python that has imported what most steps use, waiting
// for one job each. Each interpreter is used once and ends with its execution, so that no execution sees data of
// another. The Python that they are forked from never runs a step's code and never receives a secret or a key. If the
// machine cannot isolate forks, each interpreter is started and loaded separately.
package pool

import (
	"context"
	"errors"
	"log/slog"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner"
)

// Source starts interpreters; a [runner.Runner] does.
type Source interface {
	// Prepare starts a cold interpreter.
	Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
	// PrepareWarm starts an interpreter and returns when it has loaded everything.
	PrepareWarm(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
	// StartForkServer starts a server that forks warm interpreters; the error is sandbox.ErrCannotFork if this
	// machine does not allow it.
	StartForkServer(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.ForkServer, error)
}

// Config configures a Pool.
type Config struct {
	Source Source
	// Size is the number of waiting interpreters for each runtime that has been requested; 0 disables them.
	Size int
	// Limits are the limits with which interpreters start.
	Limits runner.Limits
	// MaxAge is the maximal age of a waiting interpreter and of its fork server, so that steps do not see an old
	// resolv.conf; default five minutes.
	MaxAge time.Duration
	// MaxForks is the maximal number of forks of one fork server, whose hash seed and memory layout they share;
	// default 2000. Loading a new server takes about as long as thirty executions.
	MaxForks int
	// Exec makes the pool execute and load each interpreter separately. Interpreters then share neither hash seed
	// nor memory layout, but each takes as long as a cold start.
	Exec bool
	// Log logs failures to start interpreters. If nil, logging is disabled.
	Log *slog.Logger
}

// A Pool provides interpreters. It is safe for concurrent use.
type Pool struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	// loading limits concurrent loads, because each one uses a whole core.
	loading chan struct{}
	keepers routine.Group
	ready   atomic.Int64 // waiting interpreters

	mu       sync.Mutex
	closed   bool
	runtimes map[runner.Runtime]*runtimePool
}

// New returns an empty pool. The caller must close it.
func New(config Config) *Pool {
	if config.MaxAge == 0 {
		config.MaxAge = 5 * time.Minute
	}
	if config.MaxForks == 0 {
		config.MaxForks = 2000
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config.Limits = config.Limits.WithDefaults()
	p := &Pool{config: config, loading: make(chan struct{}, goruntime.NumCPU()),
		runtimes: map[runner.Runtime]*runtimePool{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Ready returns the number of waiting interpreters.
func (p *Pool) Ready() int { return int(p.ready.Load()) }

// Keep makes the pool start interpreters of a runtime before the first execution requests one.
func (p *Pool) Keep(runtime runner.Runtime) { p.of(runtime) }

// errLoading is the error of Check until the first interpreter is loaded.
var errLoading = errors.New("the first warm interpreter is loading")

// Check returns why the pool cannot provide warm interpreters of a runtime, or why it cannot yet. It returns nil as
// long as the pool can be filled, even if all interpreters are in use.
func (p *Pool) Check(runtime runner.Runtime) error {
	p.mu.Lock()
	s := p.runtimes[runtime]
	p.mu.Unlock()
	if s == nil {
		return errLoading
	}
	return s.check()
}

// Close kills the waiting interpreters and waits for their end. Interpreters in use belong to their callers; Close also
// waits for their end.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.keepers.Wait()
	for _, s := range p.runtimes {
		s.close()
	}
}

// Prepare returns a warm interpreter. If none is waiting or none fits, it starts one. After the first call for a
// runtime, the pool keeps interpreters for it.
func (p *Pool) Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error) {
	limits = limits.WithDefaults()
	if runtime == "" {
		runtime = runner.DefaultRuntime
	}
	if s := p.of(runtime); s != nil && limits.ShareProcess(p.config.Limits) {
		if prepared := s.take(ctx); prepared != nil {
			prepared.Relimit(limits)
			return prepared, nil
		}
	}
	return p.config.Source.Prepare(ctx, runtime, limits)
}

// of returns the pool of a runtime, or nil if the pool is closed or disabled.
func (p *Pool) of(runtime runner.Runtime) *runtimePool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.config.Size == 0 {
		return nil
	}
	s, ok := p.runtimes[runtime]
	if !ok {
		s = newRuntimePool(p, runtime)
		p.runtimes[runtime] = s
		for range p.config.Size {
			p.keepers.Go(s.keep)
		}
	}
	return s
}

func (p *Pool) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}
