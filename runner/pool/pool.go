// Package pool keeps sandboxed interpreters warm: started, everything that most steps use imported, waiting for one job.
//
// Each is used once and ends with its execution, so that no execution can see anything of another. A process of its own for
// each, rather than forks of one that is loaded, also gives each its own hash seed and address space layout. What waits was
// executed anew and has been given nothing: no secret and no key has ever been in it.
package pool

import (
	"context"
	"log/slog"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/runner"
)

// Source starts interpreters; a [runner.Runner] does.
type Source interface {
	// Prepare starts one that loads what it needs when it needs it.
	Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
	// PrepareWarm starts one that has loaded everything when it returns.
	PrepareWarm(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
}

// Config of a Pool.
type Config struct {
	Source Source
	// Size is how many interpreters wait for each runtime that has been asked for; 0 keeps none.
	Size int
	// Limits are those that interpreters are started with.
	Limits runner.Limits
	// MaxAge is how long one may wait before another takes its place, so that it does not see an old resolv.conf; 0 is five
	// minutes.
	MaxAge time.Duration
	// Log is told when no interpreter can be started; nil: nobody is.
	Log *slog.Logger
}

// A Pool gives interpreters. It is safe for concurrent use.
type Pool struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	// loading bounds how many load at once: each takes a core while it does.
	loading chan struct{}
	keepers sync.WaitGroup
	ready   atomic.Int64 // interpreters that wait

	mu     sync.Mutex
	closed bool
	warm   map[runner.Runtime]chan *runner.Prepared
}

// New returns a pool that has started nothing. Close it.
func New(config Config) *Pool {
	if config.MaxAge == 0 {
		config.MaxAge = 5 * time.Minute
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config.Limits = config.Limits.WithDefaults()
	p := &Pool{config: config, loading: make(chan struct{}, goruntime.NumCPU()), warm: map[runner.Runtime]chan *runner.Prepared{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Ready is how many interpreters wait now.
func (p *Pool) Ready() int { return int(p.ready.Load()) }

// Close ends the interpreters that wait, and returns when nothing is left of them. Those that were given away belong to
// whoever took them.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.keepers.Wait()
}

// Prepare gives a warm interpreter, or starts one where none waits or none fits. The first call for a runtime makes the pool
// keep some for it.
func (p *Pool) Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error) {
	limits = limits.WithDefaults()
	if !limits.ShareProcess(p.config.Limits) {
		return p.config.Source.Prepare(ctx, runtime, limits)
	}
	if runtime == "" {
		runtime = runner.DefaultRuntime
	}
	for {
		select {
		case prepared := <-p.waiting(runtime):
			if !ended(prepared) {
				prepared.Relimit(limits)
				return prepared, nil
			}
			prepared.Discard()
		default:
			return p.config.Source.Prepare(ctx, runtime, limits)
		}
	}
}

// ended reports whether an interpreter died while it waited, as the first of its kind would when the machine runs out of
// memory.
func ended(prepared *runner.Prepared) bool {
	select {
	case <-prepared.Done():
		return true
	default:
		return false
	}
}

// waiting is where the interpreters of a runtime are handed out; nobody does on a channel that is nil.
func (p *Pool) waiting(runtime runner.Runtime) <-chan *runner.Prepared {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	warm, ok := p.warm[runtime]
	if !ok {
		// Not buffered: an interpreter belongs to its keeper until somebody takes it.
		warm = make(chan *runner.Prepared)
		p.warm[runtime] = warm
		for range p.config.Size {
			p.keepers.Go(func() { p.keep(runtime, warm) })
		}
	}
	return warm
}

// retry is how long a keeper waits after an interpreter that could not be started.
const retry = 5 * time.Second

// keep has one interpreter of a runtime wait, and starts the next when it is taken, until the pool is closed.
func (p *Pool) keep(runtime runner.Runtime, warm chan<- *runner.Prepared) {
	for p.ctx.Err() == nil {
		prepared, err := p.load(runtime)
		if err != nil {
			if p.ctx.Err() == nil {
				p.config.Log.Warn("no warm interpreter; executions start their own", "runtime", runtime, "error", err)
			}
			p.sleep(retry)
			continue
		}
		p.offer(prepared, warm)
	}
}

// load starts an interpreter. Those given away outlive the pool's context.
func (p *Pool) load(runtime runner.Runtime) (*runner.Prepared, error) {
	select {
	case p.loading <- struct{}{}:
		defer func() { <-p.loading }()
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
	return p.config.Source.PrepareWarm(context.WithoutCancel(p.ctx), runtime, p.config.Limits)
}

// offer returns when the interpreter was taken, has died, is old, or is not needed any more.
func (p *Pool) offer(prepared *runner.Prepared, warm chan<- *runner.Prepared) {
	age := time.NewTimer(p.config.MaxAge)
	defer age.Stop()
	p.ready.Add(1)
	defer p.ready.Add(-1)
	select {
	case warm <- prepared:
		return
	case <-prepared.Done():
		p.config.Log.Warn("a warm interpreter died before it was used")
		p.sleep(retry)
	case <-age.C:
	case <-p.ctx.Done():
	}
	prepared.Discard()
}

func (p *Pool) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}
