// Package queue shares a fixed number of slots among businesses, so that none of them can starve another.
//
// If all slots are taken, a caller waits. A free slot is given to the waiting business that uses the fewest slots;
// among equals, to the one that was served longest ago. Within a business the order is that of arrival. The number of
// waiting callers is also bounded. When the bound is reached, a new caller whose business has fewer waiting callers
// replaces the most recent caller of the business that has the most.
package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Errors of [Queue.Enter] and [Place.Wait], for errors.Is.
var (
	// ErrFull reports that the queue of waiting callers is full. Try again after [Queue.RetryAfter].
	ErrFull = errors.New("all slots are taken and the queue is full")
	// ErrDraining reports that the queue is shutting down and accepts no new callers.
	ErrDraining = errors.New("no new executions are started: the sidecar is shutting down")
)

// Queue is safe for concurrent use.
type Queue struct {
	slots, depth int

	mu       sync.Mutex
	tenants  map[string]*tenant
	used     int
	waiting  int
	turn     uint64 // counts grants, in steps of two; shows which business was served longest ago
	draining bool
	idle     chan struct{} // closed when the queue is draining and no slot is used
	held     time.Duration // moving average of how long a slot is used
}

// tenant is one business. It is deleted when it neither runs nor waits.
type tenant struct {
	name    string
	running int
	served  uint64 // the turn of its last grant; for a new business, just before the most recent grant
	waiters []*waiter
}

type waiter struct{ granted chan error } // capacity 1

// New returns a queue with the given number of slots, in which depth callers may wait.
func New(slots, depth int) (*Queue, error) {
	if slots < 1 || depth < 0 {
		return nil, fmt.Errorf("a queue needs at least 1 slot and a depth of at least 0, not %d and %d", slots, depth)
	}
	return &Queue{slots: slots, depth: depth, tenants: map[string]*tenant{}, idle: make(chan struct{})}, nil
}

// Place is a slot, or a place in the queue for one. The caller must call Wait or Leave exactly once.
type Place struct {
	queue    *Queue
	business string
	waiter   *waiter // nil if the place is a slot
}

// Enter takes a free slot, or a place in the queue, without waiting. The error is [ErrFull] or [ErrDraining].
func (q *Queue) Enter(business string) (*Place, error) {
	w, err := q.enter(business)
	if err != nil {
		return nil, err
	}
	return &Place{q, business, w}, nil
}

// Wait waits for the slot and returns the function that frees it. The error is [ErrFull] if a business with fewer
// waiting callers has taken the place, [ErrDraining], or the cause of ctx's end.
func (p *Place) Wait(ctx context.Context) (release func(), err error) {
	if p.waiter != nil {
		if err := p.queue.wait(ctx, p.business, p.waiter); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	return sync.OnceFunc(func() { p.queue.release(p.business, time.Since(began)) }), nil
}

// Waits reports whether the caller has to wait for a slot.
func (p *Place) Waits() bool { return p.waiter != nil }

// Leave gives up the place without waiting.
func (p *Place) Leave() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if release, err := p.Wait(ctx); err == nil {
		release()
	}
}

// enter takes a free slot and returns nil, or takes a place in the queue and returns its waiter.
func (q *Queue) enter(business string) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.draining {
		return nil, ErrDraining
	}
	t := q.tenants[business]
	if t == nil {
		// A new business comes before the business that was served last, and after those that were already waiting at
		// that time.
		t = &tenant{name: business, served: max(q.turn, 1) - 1}
	}
	if q.used < q.slots {
		q.tenants[business] = t
		q.grant(t)
		return nil, nil
	}
	if q.waiting >= q.depth && !q.makeRoom(t) {
		return nil, ErrFull
	}
	q.tenants[business] = t
	w := &waiter{granted: make(chan error, 1)}
	t.waiters = append(t.waiters, w)
	q.waiting++
	return w, nil
}

// makeRoom removes the most recent waiter of the business with the most waiters, if that is fairer than refusing
// another caller of t.
func (q *Queue) makeRoom(t *tenant) bool {
	var longest *tenant
	for _, other := range q.tenants {
		if longest == nil || len(other.waiters) > len(longest.waiters) {
			longest = other
		}
	}
	if longest == nil || len(longest.waiters) <= len(t.waiters)+1 {
		return false
	}
	last := len(longest.waiters) - 1
	longest.waiters[last].granted <- ErrFull
	longest.waiters = longest.waiters[:last]
	q.waiting--
	return true
}

func (q *Queue) wait(ctx context.Context, business string, w *waiter) error {
	select {
	case err := <-w.granted:
		return err
	case <-ctx.Done():
	}
	q.mu.Lock()
	t := q.tenants[business]
	if t != nil {
		if i := slices.Index(t.waiters, w); i >= 0 {
			t.waiters = slices.Delete(t.waiters, i, i+1)
			q.waiting--
			q.forget(t)
			q.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	q.mu.Unlock()
	// The waiter got a slot, or was removed, at the same moment.
	if err := <-w.granted; err != nil {
		return err
	}
	q.release(business, 0)
	return context.Cause(ctx)
}

func (q *Queue) grant(t *tenant) {
	q.turn += 2
	t.served = q.turn
	t.running++
	q.used++
}

func (q *Queue) release(business string, held time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tenants[business]
	t.running--
	q.used--
	if held > 0 {
		q.held += (held - q.held) / 8
	}
	if next := q.next(); next != nil {
		w := next.waiters[0]
		next.waiters = next.waiters[1:]
		q.waiting--
		q.grant(next)
		w.granted <- nil
	}
	q.forget(t)
	if q.draining && q.used == 0 {
		close(q.idle)
	}
}

// next returns the waiting business to serve next, or nil.
func (q *Queue) next() *tenant {
	var next *tenant
	for _, t := range q.tenants {
		if len(t.waiters) == 0 {
			continue
		}
		if next == nil || t.running < next.running || t.running == next.running && t.served < next.served {
			next = t
		}
	}
	return next
}

func (q *Queue) forget(t *tenant) {
	if t.running == 0 && len(t.waiters) == 0 {
		delete(q.tenants, t.name)
	}
}

// Drain refuses new callers and removes the waiting ones. Slots in use stay in use.
func (q *Queue) Drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.draining {
		return
	}
	q.draining = true
	for _, t := range q.tenants {
		for _, w := range t.waiters {
			w.granted <- ErrDraining
		}
		t.waiters = nil
		q.forget(t)
	}
	q.waiting = 0
	if q.used == 0 {
		close(q.idle)
	}
}

// Idle returns a channel that is closed when the queue is draining and every slot is free.
func (q *Queue) Idle() <-chan struct{} { return q.idle }

// Stats is the state of a queue at one moment.
type Stats struct {
	Slots, Used, Waiting int
}

// Stats returns the current state.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{Slots: q.slots, Used: q.used, Waiting: q.waiting}
}

// Accepting returns [ErrDraining] once the queue drains.
func (q *Queue) Accepting() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.draining {
		return ErrDraining
	}
	return nil
}

// RetryAfter estimates when a place will be free, for the Retry-After header (RFC 9110, section 10.2.3): in whole
// seconds, from 1 to 60.
func (q *Queue) RetryAfter() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait := q.held.Seconds() * float64(q.waiting+1) / float64(q.slots)
	return int(math.Ceil(min(max(wait, 1), 60)))
}
