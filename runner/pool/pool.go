// Package pool keeps sandboxed interpreters warm: forked from a Python that has imported what most steps use, waiting for
// one job each.
//
// Each is used once and ends with its execution, so that no execution can see anything of another. What they are forked from
// was executed anew, never runs anything of a step, and has been given nothing: no secret and no key has ever been in it.
// Where the machine does not let forks be kept apart, each is an interpreter that was started and loaded for itself.
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
	// Prepare starts one that loads what it needs when it needs it.
	Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
	// PrepareWarm starts one that has loaded everything when it returns.
	PrepareWarm(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
	// StartForkServer starts one that forks such interpreters; sandbox.ErrCannotFork where that cannot be.
	StartForkServer(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.ForkServer, error)
}

// Config of a Pool.
type Config struct {
	Source Source
	// Size is how many interpreters wait for each runtime that has been asked for; 0 keeps none.
	Size int
	// Limits are those that interpreters are started with.
	Limits runner.Limits
	// MaxAge is how long one, and what it was forked from, may be there before another takes its place, so that it does not
	// see an old resolv.conf; 0 is five minutes.
	MaxAge time.Duration
	// MaxForks is how many are forked from one Python, whose hash seed and memory layout they share, before another takes its
	// place; 0 is 2000. To load another takes about as long as thirty executions.
	MaxForks int
	// Exec has each interpreter executed and loaded for itself. It shares nothing that Python or the kernel chooses once with
	// others, and takes as long as a cold start.
	Exec bool
	// Log is told when no interpreter can be started. If it is nil, nothing is logged.
	Log *slog.Logger
}

// A Pool gives interpreters. It is safe for concurrent use.
type Pool struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	// loading bounds how many load at once: each takes a core while it does.
	loading chan struct{}
	keepers routine.Group
	ready   atomic.Int64 // interpreters that wait

	mu       sync.Mutex
	closed   bool
	runtimes map[runner.Runtime]*runtimePool
}

// New returns a pool that has started nothing. Close it.
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
	p := &Pool{config: config, loading: make(chan struct{}, goruntime.NumCPU()), runtimes: map[runner.Runtime]*runtimePool{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Ready is how many interpreters wait now.
func (p *Pool) Ready() int { return int(p.ready.Load()) }

// Keep has the pool keep interpreters of a runtime before the first execution asks for one.
func (p *Pool) Keep(runtime runner.Runtime) { p.of(runtime) }

// errLoading is what Check says before the first interpreter.
var errLoading = errors.New("the first warm interpreter is loading")

// Check says why no interpreter of a runtime that the pool keeps can be had warm, or not yet. It is nil as long as the pool
// can be filled: under load no interpreter may be waiting at the moment of the question, which is what they are for.
func (p *Pool) Check(runtime runner.Runtime) error {
	p.mu.Lock()
	s := p.runtimes[runtime]
	p.mu.Unlock()
	if s == nil {
		return errLoading
	}
	return s.check()
}

// Close ends the interpreters that wait, and returns when nothing is left of them. Those that were given away belong to
// the caller that took them, and Close waits until they have ended.
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

// Prepare gives a warm interpreter, or starts one where none waits or none fits. The first call for a runtime makes the pool
// keep some for it.
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

// of returns where the interpreters of a runtime are; nil once the pool is closed, or keeps none.
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
