package fleet

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestABusinessWithManyCallbacksLeavesRoomForOthers(t *testing.T) {
	now := time.Now()
	turns := newTurns(16)
	for _, want := range []struct {
		business string
		turns    int
	}{{"a", 8}, {"b", 4}, {"c", 2}, {"d", 1}, {"e", 1}, {"f", 0}} {
		got := 0
		for range 20 {
			if _, ok := turns.take(want.business, now); ok {
				got++
			}
		}
		if got != want.turns {
			t.Errorf("%s got %d turns, want %d", want.business, got, want.turns)
		}
	}
	turns.end("a", 16*time.Second)
	if _, ok := turns.take("f", now); !ok {
		t.Error("f got no turn although one was free")
	}
}

// TestDelayedCallbacksReturnAtThePaceOfTheirBusiness: they do not return all at once.
func TestDelayedCallbacksReturnAtThePaceOfTheirBusiness(t *testing.T) {
	now := time.Now()
	turns := newTurns(16)
	for range 8 {
		turns.take("a", now)
	}
	turns.end("a", 14*time.Second)
	turns.take("a", now)
	for i := range 20 {
		after, ok := turns.take("a", now)
		want := min(max(time.Duration(i+1)*14*time.Second/8, time.Second), longestWait)
		if ok || after != want {
			t.Errorf("callback %d is delayed by %s, want %s", i, after, want)
		}
	}
	for range 8 {
		turns.end("a", time.Second)
	}
	if len(turns.of) != 0 || turns.free != 16 {
		t.Errorf("after all deliveries: %d businesses, %d free", len(turns.of), turns.free)
	}
}

// TestAReceiverThatHangsDelaysNoOtherBusiness: 200 callbacks to a receiver that never answers are queued before the
// callback of another business.
func TestAReceiverThatHangsDelaysNoOtherBusiness(t *testing.T) {
	receiver := newReceiver(t, 0)
	hangs := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(hangs) })
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, fine)
	for i := range 200 {
		f.enqueue(fmt.Sprint("hangs-", i), hanging.URL)
	}
	f.await("the executions whose receiver hangs", func() bool {
		return len(f.store.Keys(t.Context(), "kizen:{b}:run:*").Val()) == 200
	})
	f.enqueueFor("b-2", "told", receiver.URL)
	f.await("the callback of another business", func() bool { return len(receiver.outcomes()) == 1 })
}
