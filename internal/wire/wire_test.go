package wire

import (
	"fmt"
	"slices"
	"testing"
)

// TestTheQueueOfABusinessStays: orchestrators in other languages compute it too.
func TestTheQueueOfABusinessStays(t *testing.T) {
	for business, want := range map[string]string{
		"b-1": "kizen:9", "business-1": "kizen:13", "00000000-0000-4000-8000-00000000b001": "kizen:8", "0": "kizen:1",
	} {
		if got := QueueOf("kizen", 16, business); got != want {
			t.Errorf("the queue of %s is %s, want %s", business, got, want)
		}
		if got := QueueOf("kizen", 0, business) + QueueOf("kizen", 1, business); got != "kizenkizen" {
			t.Errorf("its only queue is %s", got)
		}
	}
	if got := QueueNames("kizen", 3); !slices.Equal(got, []string{"kizen", "kizen:1", "kizen:2"}) {
		t.Errorf("the queues are %v", got)
	}
}

func TestBusinessesAreSharedEvenlyAmongQueues(t *testing.T) {
	count := map[string]int{}
	for i := range 1600 {
		count[QueueOf("kizen", 16, fmt.Sprint("business-", i))]++
	}
	for _, name := range QueueNames("kizen", 16) {
		if n := count[name]; n < 60 || n > 140 {
			t.Errorf("%s has %d of 1,600 businesses", name, n)
		}
	}
}
