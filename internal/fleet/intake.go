package fleet

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/routine"
)

// intake starts and stops the taking of executions. A worker that is not ready, or fails where others would not, takes nothing:
// it backs off, and tries itself before it takes again.
type intake struct {
	// ready says why the worker should take nothing now; nil: it is always ready. It is asked often.
	ready func(context.Context) error
	// try does what an execution needs of this machine, as far as that can be done without one; nil: it always succeeds.
	try func(context.Context) error
	// open starts a server that takes.
	open func() (*asynq.Server, error)
	// first and last are the shortest and longest wait after a failure.
	first, last time.Duration
	told        func(err error) // why nothing is taken; nil: it is taken again

	broken chan error // the worker is broken: stop taking

	mu      sync.Mutex
	failing map[string]bool // executions that failed here since one succeeded
	reason  error           // why nothing is taken; nil: it is
	closing routine.Group   // of servers
}

// failuresInARow is how many executions must fail here one after the other for the worker to be the cause.
const failuresInARow = 3

// readyInterval is how often a worker that takes looks whether it is ready.
const readyInterval = time.Second

// errNotYet is why nothing is taken at first.
var errNotYet = errors.New("the worker has not begun to take executions")

// run takes until ctx ends.
func (i *intake) run(ctx context.Context) {
	for failures := 1; ctx.Err() == nil; failures++ {
		err := i.fit(ctx)
		var server *asynq.Server
		if err == nil {
			select {
			case <-i.broken: // what failed before has been tried since
			default:
			}
			server, err = i.open()
		}
		i.set(err)
		if err != nil {
			if failures == failuresInARow { // the first interpreters may be loading
				i.told(err)
			}
			_ = backoff.Wait(ctx, backoff.Delay(failures, i.first, i.last)) // the loop ends with ctx
			continue
		}
		i.told(nil)
		began := time.Now()
		err = i.watch(ctx)
		i.set(err)
		i.told(err)
		server.Stop()
		i.closing.Go(server.Shutdown)
		if time.Since(began) > i.last {
			failures = 1
		}
		_ = backoff.Wait(ctx, backoff.Delay(failures, i.first, i.last))
	}
}

// fit says why this worker should take nothing.
func (i *intake) fit(ctx context.Context) error {
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

// watch returns why a worker that takes should stop.
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

// set notes why nothing is taken, or that it is.
func (i *intake) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.reason = err
	if err == nil {
		clear(i.failing)
	}
}

// taking says why nothing is taken; nil: it is.
func (i *intake) taking() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.reason
}

// failed weighs a failure to start an execution: local is true if this worker is the cause, so that the attempt does not count.
func (i *intake) failed(ctx context.Context, id string, err error) (local bool) {
	var store *redisconn.Error
	local = errors.As(err, &store)
	if tried := i.fit(ctx); tried != nil {
		local, err = true, tried
	}
	i.mu.Lock()
	i.failing[id] = true
	local = local || len(i.failing) >= failuresInARow
	i.mu.Unlock()
	if local {
		select {
		case i.broken <- err:
		default: // it is told already
		}
	}
	return local
}

// succeeded notes that an execution has started here.
func (i *intake) succeeded() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.failing)
}
