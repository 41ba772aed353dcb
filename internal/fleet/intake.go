package fleet

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/exhaustion"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/routine"
)

// intake starts and stops taking executions. A worker that is not ready, or on which executions fail one after the
// other, takes none: it backs off, and tests itself before it takes executions again.
type intake struct {
	// ready returns why the worker should take no executions now. If nil, the worker is always ready. It is called
	// often.
	ready func(context.Context) error
	// try checks that this machine can run an execution, as far as possible without running one. If nil, the machine
	// is assumed to work.
	try func(context.Context) error
	// open starts a server that takes executions.
	open func() (*asynq.Server, error)
	// first and last are the shortest and the longest wait after a failure.
	first, last time.Duration
	report      func(err error) // called with the reason why no executions are taken, or nil when they are taken again

	broken chan error // signals that the worker is broken and must stop taking executions

	mu      sync.Mutex
	failing map[string]bool // executions that failed here since the last one that succeeded
	reason  error           // why no executions are taken; nil if they are
	closing routine.Group   // of stopped servers
}

// failuresInARow is how many executions must fail here in a row before the worker is considered the cause.
const failuresInARow = 3

// readyInterval is how often a worker that takes executions checks whether it is ready.
const readyInterval = time.Second

// errNotYet is the reason before the first check.
var errNotYet = errors.New("the worker has not begun to take executions")

// run takes executions until ctx ends.
func (i *intake) run(ctx context.Context) {
	for failures := 1; ctx.Err() == nil; failures++ {
		err := i.check(ctx)
		var server *asynq.Server
		if err == nil {
			select {
			case <-i.broken: // a signal from before this check
			default:
			}
			server, err = i.open()
		}
		i.set(err)
		if err != nil {
			if failures == failuresInARow { // the first interpreters may still be loading
				i.report(err)
			}
			_ = backoff.Wait(ctx, backoff.Delay(failures, i.first, i.last)) // the loop ends with ctx
			continue
		}
		i.report(nil)
		began := time.Now()
		err = i.watch(ctx)
		i.set(err)
		i.report(err)
		server.Stop()
		i.closing.Go(server.Shutdown)
		if time.Since(began) > i.last {
			failures = 1
		}
		_ = backoff.Wait(ctx, backoff.Delay(failures, i.first, i.last))
	}
}

// check returns why this worker should take no executions.
func (i *intake) check(ctx context.Context) error {
	if i.ready != nil {
		if err := i.ready(ctx); err != nil {
			return err
		}
	}
	if i.try != nil {
		return i.try(ctx)
	}
	return nil
}

// watch returns why a worker that takes executions should stop.
func (i *intake) watch(ctx context.Context) error {
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-i.broken:
			return err
		case <-ticker.C:
			if i.ready != nil {
				if err := i.ready(ctx); err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
	}
}

// set records why no executions are taken. If err is nil, they are taken.
func (i *intake) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.reason = err
	if err == nil {
		clear(i.failing)
	}
}

// taking returns why no executions are taken. If nil, they are taken.
func (i *intake) taking() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.reason
}

// failed handles a failure to start an execution. local is true if this worker is the cause, so that the attempt does
// not count.
func (i *intake) failed(ctx context.Context, id string, err error) (local bool) {
	var store *redisconn.Error
	// The worker's own test may succeed although files ran out, because it starts only one interpreter.
	local = errors.As(err, &store) || exhaustion.Is(err)
	if tried := i.check(ctx); tried != nil {
		local, err = true, tried
	}
	i.mu.Lock()
	i.failing[id] = true
	local = local || len(i.failing) >= failuresInARow
	i.mu.Unlock()
	if local {
		select {
		case i.broken <- err:
		default: // already signalled
		}
	}
	return local
}

// succeeded records that an execution has started here.
func (i *intake) succeeded() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.failing)
}
