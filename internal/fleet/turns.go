package fleet

import (
	"sync"
	"time"
)

// turns shares this worker's callback deliveries among businesses. A business may begin another delivery while it has
// fewer under way than slots are free. So the first business takes half of them, the next one half of the rest, and a
// business whose receivers hang leaves room for others. A callback that gets no turn returns to the queue, for about
// as long as its business needs to reach it. So the worker holds only callbacks that it delivers.
type turns struct {
	mu   sync.Mutex
	free int
	of   map[string]*turn
}

// turn is the state of a business that has deliveries under way.
type turn struct {
	held int
	// took is how long its last delivery took.
	took time.Duration
	// next is when the next delayed callback should return.
	next time.Time
}

// firstTook is the assumed duration of a delivery while none of the business has ended. longestWait bounds each delay
// of a callback.
const (
	firstTook   = time.Second
	longestWait = time.Minute
)

func newTurns(atOnce int) *turns { return &turns{free: atOnce, of: map[string]*turn{}} }

// take begins a delivery of a business, which the caller ends with end. If ok is false, the callback should return
// after the delay.
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
	if own.held == 0 { // other businesses hold all slots
		return firstTook, false
	}
	if own.next.Before(now) {
		own.next = now
	}
	own.next = own.next.Add(own.took / time.Duration(own.held))
	return min(max(own.next.Sub(now), firstTook), longestWait), false
}

// end ends a delivery.
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
