package fleet

import (
	"sync"
	"time"
)

// turns shares the attempts that one worker makes to deliver callbacks among businesses. A business may begin another attempt while
// it has fewer under way than are free, so the first takes half, the next half of the rest, and one whose receivers hang leaves room
// for others. What has to wait goes back to the queue, for about as long as the business takes to come to it: a worker
// holds no callback that it does not deliver.
type turns struct {
	mu   sync.Mutex
	free int
	of   map[string]*turn
}

// turn is what turns knows of a business that has attempts under way.
type turn struct {
	held int
	// took is how long its last attempt took.
	took time.Duration
	// next is when the next callback that is put off should come.
	next time.Time
}

// firstTook is how long an attempt is taken to last before one of the business has ended, and longestWait bounds how long a
// callback is put off at a time.
const (
	firstTook   = time.Second
	longestWait = time.Minute
)

func newTurns(atOnce int) *turns { return &turns{free: atOnce, of: map[string]*turn{}} }

// take begins an attempt of a business, which the caller ends with end. If ok is false, the callback should come again after a while.
func (t *turns) take(business string, now time.Time) (after time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.of[business]
	if own == nil {
		own = &turn{took: firstTook}
	}
	if own.held < t.free {
		t.of[business] = own
		own.held++
		t.free--
		return 0, true
	}
	if own.held == 0 { // all are taken, by others
		return firstTook, false
	}
	if own.next.Before(now) {
		own.next = now
	}
	own.next = own.next.Add(own.took / time.Duration(own.held))
	return min(max(own.next.Sub(now), firstTook), longestWait), false
}

// end ends an attempt.
func (t *turns) end(business string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.of[business]
	own.took = took
	own.held--
	t.free++
	if own.held == 0 {
		delete(t.of, business)
	}
}
