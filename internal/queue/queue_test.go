package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newQueue(t *testing.T, slots, depth int) *Queue {
	t.Helper()
	q, err := New(slots, depth)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// acquireContext waits for a slot.
func acquireContext(ctx context.Context, q *Queue, business string) (func(), error) {
	place, err := q.Enter(business)
	if err != nil {
		return nil, err
	}
	return place.Wait(ctx)
}

func acquire(t *testing.T, q *Queue, business string) func() {
	t.Helper()
	release, err := acquireContext(t.Context(), q, business)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// line is a set of waiting callers in a synctest bubble. It records the order in which they were served.
type line struct {
	t      *testing.T
	q      *Queue
	mu     sync.Mutex
	served []string
	errs   map[string]error
	hold   map[string]func()
	all    sync.WaitGroup
}

func newLine(t *testing.T, q *Queue) *line {
	return &line{t: t, q: q, errs: map[string]error{}, hold: map[string]func(){}}
}

// join starts a caller and returns once it waits.
func (l *line) join(ctx context.Context, business, name string) {
	l.all.Go(func() {
		release, err := acquireContext(ctx, l.q, business)
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil {
			l.errs[name] = err
			return
		}
		l.served = append(l.served, name)
		l.hold[name] = release
	})
	synctest.Wait()
}

// drainOneByOne frees every slot in the order in which it was granted.
func (l *line) drainOneByOne() {
	for i := 0; ; i++ {
		l.mu.Lock()
		if i == len(l.served) {
			l.mu.Unlock()
			break
		}
		release := l.hold[l.served[i]]
		l.mu.Unlock()
		release()
		synctest.Wait()
	}
	l.all.Wait()
}

func TestSlotsRotateAmongWaitingBusinesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 100)
		first := acquire(t, q, "greedy")
		l := newLine(t, q)
		for i := range 5 {
			l.join(t.Context(), "greedy", fmt.Sprint("greedy", i))
		}
		l.join(t.Context(), "modest", "modest0")
		l.join(t.Context(), "other", "other0")
		l.join(t.Context(), "modest", "modest1")
		first()
		synctest.Wait()
		l.drainOneByOne()
		// The new businesses have never been served, so each comes before greedy's second caller.
		if want := []string{"modest0", "other0", "greedy0", "modest1", "greedy1", "greedy2", "greedy3", "greedy4"}; !sameTurns(l.served, want) {
			t.Errorf("served %v, want %v", l.served, want)
		}
		if s := q.Stats(); s.Used != 0 || s.Waiting != 0 || len(q.tenants) != 0 {
			t.Errorf("after the last release: %+v, %d tenants", s, len(q.tenants))
		}
	})
}

// sameTurns compares orders, but ignores the order of two businesses that arrived at the same moment.
func sameTurns(got, want []string) bool {
	if len(got) != len(want) {
		return false
	}
	swapped := slices.Clone(want)
	swapped[0], swapped[1] = swapped[1], swapped[0]
	return slices.Equal(got, want) || slices.Equal(got, swapped)
}

func TestABusinessThatUsesFewerSlotsComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 3, 10)
		a1, a2, b1 := acquire(t, q, "a"), acquire(t, q, "a"), acquire(t, q, "b")
		l := newLine(t, q)
		l.join(t.Context(), "a", "a3")
		l.join(t.Context(), "b", "b2")
		a1()
		synctest.Wait()
		// a and b use one slot each; a was served before b, so a comes first, then b.
		a2()
		synctest.Wait()
		b1()
		l.drainOneByOne()
		if !slices.Equal(l.served, []string{"a3", "b2"}) {
			t.Errorf("served %v", l.served)
		}
	})
}

// TestBusinessesThatComeAndGoDoNotPassOneThatWaits lets each business return as soon as its only execution is done.
// The queue has then deleted the business.
func TestBusinessesThatComeAndGoDoNotPassOneThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 100)
		first := acquire(t, q, "patient")
		l := newLine(t, q)
		l.join(t.Context(), "come0", "come0")
		l.join(t.Context(), "patient", "patient")
		first()
		synctest.Wait()
		for i := range 3 {
			next := fmt.Sprint("come", i+1)
			l.join(t.Context(), next, next)
			if release := l.hold[fmt.Sprint("come", i)]; release != nil {
				release()
			}
			synctest.Wait()
		}
		l.drainOneByOne()
		if want := []string{"come0", "patient"}; !slices.Equal(l.served[:2], want) || len(l.served) != 5 {
			t.Errorf("served %v, want %v first", l.served, want)
		}
	})
}

func TestAFullQueueRefusesTheBusinessWithTheMostWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 3)
		hold := acquire(t, q, "greedy")
		l := newLine(t, q)
		for i := range 4 {
			l.join(t.Context(), "greedy", fmt.Sprint("greedy", i))
		}
		if !errors.Is(l.errs["greedy3"], ErrFull) {
			t.Errorf("the fourth caller of a business: %v", l.errs["greedy3"])
		}
		l.join(t.Context(), "modest", "modest0")
		if !errors.Is(l.errs["greedy2"], ErrFull) || l.errs["modest0"] != nil {
			t.Errorf("greedy2: %v, modest0: %v", l.errs["greedy2"], l.errs["modest0"])
		}
		l.join(t.Context(), "modest", "modest1")
		if !errors.Is(l.errs["modest1"], ErrFull) {
			t.Errorf("a caller whose business would have as many waiters as the largest: %v", l.errs["modest1"])
		}
		hold()
		synctest.Wait()
		l.drainOneByOne()
		if len(l.served) != 3 {
			t.Errorf("served %v", l.served)
		}
	})
}

func TestACallerThatGivesUpFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 1000)
		hold := acquire(t, q, "a")
		ctx, hangUp := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		l := newLine(t, q)
		for i := range 1000 {
			l.join(ctx, fmt.Sprint("b", i%7), fmt.Sprint(i))
		}
		hangUp(gone)
		l.all.Wait()
		if s := q.Stats(); s.Waiting != 0 || len(q.tenants) != 1 || !errors.Is(l.errs["999"], gone) {
			t.Errorf("%+v, %d tenants, %v", s, len(q.tenants), l.errs["999"])
		}
		hold()
		acquire(t, q, "c")()
	})
}

// A grant and a hang-up at the same moment must not lose the slot.
func TestNoSlotIsLostIfACallerGivesUpWhenItIsGranted(t *testing.T) {
	q := newQueue(t, 2, 64)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			for j := range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration((i*j)%40)*time.Microsecond)
				if release, err := acquireContext(ctx, q, fmt.Sprint(i%5)); err == nil {
					release()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if s := q.Stats(); s.Used != 0 || s.Waiting != 0 || len(q.tenants) != 0 {
		t.Errorf("left behind: %+v", s)
	}
}

func TestDrainingRefusesNewCallersAndWaitsForRunningOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 10)
		hold := acquire(t, q, "a")
		l := newLine(t, q)
		l.join(t.Context(), "b", "b")
		q.Drain()
		l.all.Wait()
		if !errors.Is(l.errs["b"], ErrDraining) {
			t.Errorf("the waiting caller: %v", l.errs["b"])
		}
		if _, err := acquireContext(t.Context(), q, "c"); !errors.Is(err, ErrDraining) {
			t.Errorf("a caller after Drain: %v", err)
		}
		select {
		case <-q.Idle():
			t.Error("idle while a slot is in use")
		default:
		}
		hold()
		<-q.Idle()
		q.Drain()
	})
}

func TestRetryAfterGrowsWithTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1, 100)
		if got := q.RetryAfter(); got != 1 {
			t.Errorf("RetryAfter of an unused queue = %d", got)
		}
		for range 40 {
			release := acquire(t, q, "a")
			time.Sleep(2 * time.Second)
			release()
		}
		defer acquire(t, q, "a")()
		l := newLine(t, q)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			l.join(ctx, "a", fmt.Sprint(i))
		}
		if got := q.RetryAfter(); got < 9 || got > 10 {
			t.Errorf("RetryAfter for five waiters of two seconds = %d s", got)
		}
		for i := range 90 {
			l.join(ctx, "a", fmt.Sprint("more", i))
		}
		if got := q.RetryAfter(); got != 60 {
			t.Errorf("RetryAfter of a long queue = %d", got)
		}
		cancel()
		l.all.Wait()
	})
}

func TestAQueueWithoutSlotsIsRefused(t *testing.T) {
	for _, size := range [][2]int{{0, 1}, {1, -1}} {
		if _, err := New(size[0], size[1]); err == nil {
			t.Errorf("New(%d, %d) returned no error", size[0], size[1])
		}
	}
}
