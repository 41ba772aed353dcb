package fleet

import (
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// newRecords are records in a Redis of their own.
func newRecords(t *testing.T) (records, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return records{client}, server
}

func mustClaim(t *testing.T, r records, owner ticket) claim {
	t.Helper()
	c, err := r.claim(t.Context(), owner, "digest")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ended(outcome string) ending { return ending{outcome, []byte(`{}`), time.Now()} }

func TestWhoClaimedLastHasTheExecution(t *testing.T) {
	r, _ := newRecords(t)
	first, last := newTicket("b", "e", "w-1"), newTicket("b", "e", "w-2")
	if c := mustClaim(t, r, first); c.state != Claimed || c.attempts != 1 {
		t.Errorf("first claim: %+v", c)
	}
	if c := mustClaim(t, r, last); c.state != Claimed || c.owner != last.owner || c.attempts != 2 {
		t.Errorf("second claim: %+v", c)
	}
	if ours, err := r.start(t.Context(), first); ours || err != nil {
		t.Errorf("the first starts: %v, %v", ours, err)
	}
	if err := r.release(t.Context(), first, "late", true); err != nil {
		t.Error(err)
	}
	if stands, err := r.finish(t.Context(), first, ended("ok"), time.Hour); stands != "" || err != nil {
		t.Errorf("the first finishes: %q, %v", stands, err)
	}
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.state != Claimed || known.owner != last.owner {
		t.Errorf("known %+v, %v", known, err)
	}
	if ours, err := r.start(t.Context(), last); !ours || err != nil {
		t.Errorf("the last does not start: %v, %v", ours, err)
	}
}

func TestWhatHasStartedIsNeverClaimedAgain(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	if ours, err := r.start(t.Context(), owner); !ours || err != nil {
		t.Fatalf("start: %v, %v", ours, err)
	}
	for range 3 {
		if c := mustClaim(t, r, newTicket("b", "e", "w-2")); c.state != Started || c.owner != owner.owner {
			t.Errorf("claim: %+v", c)
		}
	}
	if stands, err := r.finish(t.Context(), owner, ended("ok"), time.Hour); stands != "ok" || err != nil {
		t.Fatalf("finish: %q, %v", stands, err)
	}
	if c := mustClaim(t, r, newTicket("b", "e", "w-2")); c.state != Finished {
		t.Errorf("claim of what has finished: %+v", c)
	}
}

func TestTheFirstEndStands(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	for _, outcome := range []string{"worker_died", "ok"} { // somebody took it for dead, and it comes back
		if stands, err := r.finish(t.Context(), owner, ended(outcome), time.Hour); stands != "worker_died" || err != nil {
			t.Fatalf("%s: %q, %v", outcome, stands, err)
		}
	}
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.outcome != "worker_died" {
		t.Errorf("known %+v, %v", known, err)
	}
}

func TestChangesMayBeSentTwice(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	for range 2 {
		if ours, err := r.start(t.Context(), owner); !ours || err != nil {
			t.Errorf("start: %v, %v", ours, err)
		}
	}
	for range 2 { // the second finds nobody who has it
		if err := r.release(t.Context(), owner, "no python", true); err != nil {
			t.Errorf("release: %v", err)
		}
	}
	if c := mustClaim(t, r, owner); c.attempts != 2 || c.reason != "no python" {
		t.Errorf("claimed again: %+v", c)
	}
}

func TestAnAttemptCountsUnlessItIsGivenBackUncounted(t *testing.T) {
	r, _ := newRecords(t)
	for i, counted := range []bool{true, false, false, true} {
		owner := newTicket("b", "e", "w-1")
		if c := mustClaim(t, r, owner); c.attempts != []int64{1, 2, 2, 2}[i] {
			t.Errorf("claim %d: %+v", i, c)
		}
		if err := r.release(t.Context(), owner, "", counted); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnIDIsForOneThing(t *testing.T) {
	r, _ := newRecords(t)
	mustClaim(t, r, newTicket("b", "e", "w-1"))
	if _, err := r.claim(t.Context(), newTicket("b", "e", "w-2"), "another"); !errors.Is(err, ErrConflict) {
		t.Errorf("another body: %v", err)
	}
	if c, err := r.claim(t.Context(), newTicket("b-2", "e", "w-2"), "another"); err != nil || c.state != Claimed {
		t.Errorf("the same id of another business: %+v, %v", c, err)
	}
}

func TestRecordsDoNotStayForever(t *testing.T) {
	r, server := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	if ttl := server.TTL(recordKey("b", "e")); ttl != unfinishedLimit {
		t.Errorf("unfinished: %s", ttl)
	}
	if _, err := r.finish(t.Context(), owner, ended("ok"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if ttl := server.TTL(recordKey("b", "e")); ttl != time.Hour {
		t.Errorf("finished: %s", ttl)
	}
	server.FastForward(time.Hour)
	if err := r.settle(t.Context(), "b", "e"); err != nil || len(server.Keys()) != 0 {
		t.Errorf("settling brings %q back: %v", server.Keys(), err)
	}
}
