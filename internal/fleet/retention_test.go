package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/kizen/kizen-sidecar/internal/wire"
)

// keep finishes an execution with a result of the given size.
func keep(t *testing.T, r records, business, id string, size int, at time.Time, notifies bool) {
	t.Helper()
	own := newTicket(business, id, "w")
	mustClaim(t, r, own)
	e := ended("ok")
	e.result, e.at, e.notifies = []byte(`"`+strings.Repeat("x", size-2)+`"`), at, notifies
	if _, _, err := r.finish(t.Context(), own, "digest", e, r.retention.Age); err != nil {
		t.Fatal(err)
	}
}

// results returns the executions of business b that have a record.
func results(server *miniredis.Miniredis) (ids []string) {
	for _, key := range server.Keys() {
		if id, found := strings.CutPrefix(key, wire.RecordKey("b", "")); found {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestTheOldestResultsOfABusinessAreDeletedBeyondItsLimits(t *testing.T) {
	for name, c := range map[string]struct {
		retention Retention
		want      []string
		bytes     string
	}{
		"no limit": {Retention{Age: time.Hour}, []string{"e0", "e1", "e2", "e3", "e4"}, "500"},
		"count":    {Retention{Age: time.Hour, Count: 3}, []string{"e2", "e3", "e4"}, "300"},
		"bytes":    {Retention{Age: time.Hour, Bytes: 250}, []string{"e3", "e4"}, "200"},
		"the last": {Retention{Age: time.Hour, Bytes: 50}, []string{"e4"}, "100"},
	} {
		t.Run(name, func(t *testing.T) {
			r, server := newRecords(t)
			r.retention = c.retention
			now := time.Now()
			keep(t, r, "other", "e", 100, now, false)
			for i := range 5 {
				keep(t, r, "b", fmt.Sprint("e", i), 100, now.Add(time.Duration(i)*time.Second), false)
			}
			if got := results(server); !slices.Equal(got, c.want) {
				t.Errorf("kept %v, want %v", got, c.want)
			}
			if got, _ := server.Get("kizen:{b}:results:bytes"); got != c.bytes {
				t.Errorf("the sum is %s", got)
			}
			if known, err := r.read(t.Context(), "other", "e"); err != nil || known.state != Finished {
				t.Errorf("another business: %+v, %v", known, err)
			}
			// A deleted execution never runs again.
			if again, err := r.claim(t.Context(), newTicket("b", "e0", "w"), "digest", ""); err != nil ||
				again.state != Finished && again.state != Expired {
				t.Errorf("claimed again: %+v, %v", again, err)
			}
		})
	}
}

// TestAResultThatHasExpiredIsNotCounted: Redis removes the record by itself, and the sum must follow.
func TestAResultThatHasExpiredIsNotCounted(t *testing.T) {
	r, server := newRecords(t)
	r.retention = Retention{Age: time.Hour, Count: 3}
	now := time.Now()
	for i := range 3 {
		keep(t, r, "b", fmt.Sprint("old", i), 100, now, false)
	}
	server.FastForward(2 * time.Hour)
	// The index expires with its last entry.
	if keys := server.Keys(); slices.Contains(keys, "kizen:{b}:results") ||
		slices.Contains(keys, "kizen:{b}:results:bytes") {
		t.Errorf("left: %v", keys)
	}
	keep(t, r, "b", "first", 100, now.Add(2*time.Hour), false)
	server.FastForward(50 * time.Minute)
	keep(t, r, "b", "second", 100, now.Add(170*time.Minute), false)
	server.FastForward(50 * time.Minute)
	keep(t, r, "b", "third", 100, now.Add(220*time.Minute), false)
	if got, _ := server.Get("kizen:{b}:results:bytes"); got != "200" || len(results(server)) != 2 {
		t.Errorf("the sum is %s of %v", got, results(server))
	}
}

// TestAResultIsKeptUntilItsCallbackIsQueued: the worker makes the callback from the record.
func TestAResultIsKeptUntilItsCallbackIsQueued(t *testing.T) {
	r, server := newRecords(t)
	r.retention = Retention{Age: time.Hour, Count: 1}
	now := time.Now()
	for i := range 3 {
		keep(t, r, "b", fmt.Sprint("e", i), 100, now.Add(time.Duration(i)*time.Second), true)
	}
	if got := results(server); len(got) != 3 {
		t.Fatalf("kept %v before a callback is queued", got)
	}
	for _, state := range []string{CallbackQueued, CallbackDelivered, CallbackQueued} {
		for i := range 3 {
			if _, err := r.setCallback(t.Context(), "b", fmt.Sprint("e", i), state, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := results(server); !slices.Equal(got, []string{"e2"}) {
		t.Errorf("kept %v after all are queued", got)
	}
	if got, _ := server.Get("kizen:{b}:results:bytes"); got != "100" {
		t.Errorf("the sum is %s", got)
	}
}

// TestAResultWhoseCallbackIsKnownBeforeItsEndIsCounted: if Redis loses the end of an execution whose callback is queued,
// the callback may be delivered before a worker has written the end again.
func TestAResultWhoseCallbackIsKnownBeforeItsEndIsCounted(t *testing.T) {
	r, server := newRecords(t)
	r.retention = Retention{Age: time.Hour}
	own := newTicket("b", "e", "w")
	if err := r.restore(t.Context(), own, "digest"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.setCallback(t.Context(), "b", "e", CallbackDelivered, ""); err != nil {
		t.Fatal(err)
	}
	e := ended("ok")
	e.notifies = true
	mustFinish(t, r, own, e)
	if members, err := server.ZMembers("kizen:{b}:results"); err != nil || len(members) != 1 {
		t.Errorf("the index has %v, %v", members, err)
	}
}

func TestADeadLetterIsKeptWhateverTheLimits(t *testing.T) {
	r, server := newRecords(t)
	r.retention = Retention{Age: time.Hour, Count: 1}
	own := newTicket("b", "dead", "w")
	mustClaim(t, r, own)
	letter := ended("not_started")
	letter.deadLetter = "dead letter: given up"
	mustFinish(t, r, own, letter)
	for i := range 3 {
		keep(t, r, "b", fmt.Sprint("e", i), 100, time.Now().Add(time.Duration(i)*time.Second), false)
	}
	if got := results(server); !slices.Equal(got, []string{"dead", "e2"}) {
		t.Errorf("kept %v", got)
	}
}

func TestALongResultIsStoredCompressedAndReadUnchanged(t *testing.T) {
	r, server := newRecords(t)
	r.retention = Retention{Age: time.Hour}
	keep(t, r, "b", "e", 100<<10, time.Now(), false)
	known, err := r.read(t.Context(), "b", "e")
	if err != nil || len(known.result) != 100<<10 {
		t.Errorf("%d bytes, %v", len(known.result), err)
	}
	stored := server.HGet(wire.RecordKey("b", "e"), wire.FieldResult)
	if len(stored) > 1<<10 {
		t.Errorf("100 KiB take %d bytes", len(stored))
	}
	if version := server.HGet(wire.RecordKey("b", "e"), "version"); version != fmt.Sprint(wire.StoredVersion) {
		t.Errorf("the record has version %s, and an older worker would read it wrongly", version)
	}
}
