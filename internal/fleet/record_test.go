package fleet

import (
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// newRecords returns records in their own Redis.
func newRecords(t *testing.T) (records, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return records{redis: client}, server
}

func mustClaim(t *testing.T, r records, owner ticket) claim {
	t.Helper()
	c, err := r.claim(t.Context(), owner, "digest", "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ended(outcome string) ending {
	return ending{outcome: outcomes.Outcome(outcome), result: []byte(`{}`), at: time.Now()}
}

func mustFinish(t *testing.T, r records, owner ticket, e ending) (stands string, late bool) {
	t.Helper()
	stands, late, err := r.finish(t.Context(), owner, "digest", e, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return stands, late
}

func TestAClaimIsTakenOverOnlyFromTheNamedAttempt(t *testing.T) {
	r, _ := newRecords(t)
	first, last := newTicket("b", "e", "w-1"), newTicket("b", "e", "w-2")
	if c := mustClaim(t, r, first); c.state != Claimed || c.attempts != 1 {
		t.Errorf("first claim: %+v", c)
	}
	if c := mustClaim(t, r, last); c.owner != first.owner {
		t.Errorf("claimed from a worker that may be alive: %+v", c)
	}
	if c, err := r.claim(t.Context(), last, "digest", first.owner); err != nil || c.owner != last.owner ||
		c.attempts != 2 || c.deaths != 1 {
		t.Errorf("claimed from a dead worker: %+v, %v", c, err)
	}
	if ours, err := r.start(t.Context(), first); ours || err != nil {
		t.Errorf("the first starts: %v, %v", ours, err)
	}
	if err := r.release(t.Context(), first, "late", true); err != nil {
		t.Error(err)
	}
	if stands, late := mustFinish(t, r, first, ended("ok")); stands != "" || late {
		t.Errorf("the first finishes: %q, %v", stands, late)
	}
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.state != Claimed || known.owner != last.owner {
		t.Errorf("known %+v, %v", known, err)
	}
	if ours, err := r.start(t.Context(), last); !ours || err != nil {
		t.Errorf("the last does not start: %v, %v", ours, err)
	}
}

func TestAStartedExecutionIsNeverClaimedAgain(t *testing.T) {
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
	if stands, _ := mustFinish(t, r, owner, ended("ok")); stands != "ok" {
		t.Fatalf("finish: %q", stands)
	}
	if c := mustClaim(t, r, newTicket("b", "e", "w-2")); c.state != Finished {
		t.Errorf("claim of a finished execution: %+v", c)
	}
}

// TestTheFirstEndIsFinal: a worker that was declared dead returns with a result. The record keeps the first outcome,
// and the result beside it.
func TestTheFirstEndIsFinal(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	if stands, late := mustFinish(t, r, owner, ended("worker_died")); stands != "worker_died" || late {
		t.Fatalf("%q, %v", stands, late)
	}
	result := ended("ok")
	result.begun = true
	for _, first := range []bool{true, false} {
		if stands, late := mustFinish(t, r, owner, result); stands != "worker_died" || late != first {
			t.Errorf("outcome %q, late %v, want %v", stands, late, first)
		}
	}
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.outcome != "worker_died" ||
		known.late.outcome != "ok" {
		t.Errorf("known %+v, %v", known, err)
	}
}

// TestARepeatedEndIsNotLate: the reply was lost, so the worker sends the same end again.
func TestARepeatedEndIsNotLate(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	result := ended("ok")
	result.begun = true
	for range 2 {
		if stands, late := mustFinish(t, r, owner, result); stands != "ok" || late {
			t.Errorf("%q, %v", stands, late)
		}
	}
}

// TestAnIDIsNotRunAgainWhenItsResultHasExpired: this holds for at least seven days.
func TestAnIDIsNotRunAgainWhenItsResultHasExpired(t *testing.T) {
	r, server := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	mustFinish(t, r, owner, ended("ok"))
	server.FastForward(7*24*time.Hour - time.Second)
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.state != "" {
		t.Errorf("the result is still there: %+v, %v", known, err)
	}
	if c := mustClaim(t, r, newTicket("b", "e", "w-2")); c.state != Expired {
		t.Errorf("claimed: %+v", c)
	}
	if _, err := r.claim(t.Context(), newTicket("b", "e", "w-2"), "another", ""); !errors.Is(err, ErrConflict) {
		t.Errorf("another body: %v", err)
	}
	server.FastForward(time.Second)
	if c := mustClaim(t, r, newTicket("b", "e", "w-2")); c.state != Claimed {
		t.Errorf("after the tombstone: %+v", c)
	}
}

// TestALostStartIsRestored: restore never overwrites a later write by another attempt.
func TestALostStartIsRestored(t *testing.T) {
	r, server := newRecords(t)
	first, other := newTicket("b", "e", "w-1"), newTicket("b", "e", "w-2")
	mustClaim(t, r, first)
	server.FlushAll()
	if err := r.restore(t.Context(), first, "digest"); err != nil {
		t.Fatal(err)
	}
	if c := mustClaim(t, r, other); c.state != Started || c.owner != first.owner {
		t.Errorf("claimed: %+v", c)
	}
	if err := r.restore(t.Context(), other, "digest"); err != nil {
		t.Fatal(err)
	}
	if known, err := r.read(t.Context(), "b", "e"); err != nil || known.owner != first.owner {
		t.Errorf("known %+v, %v", known, err)
	}
}

func TestEveryChangeIsIdempotent(t *testing.T) {
	r, _ := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	for range 2 {
		if ours, err := r.start(t.Context(), owner); !ours || err != nil {
			t.Errorf("start: %v, %v", ours, err)
		}
	}
	for range 2 { // the second finds no owner
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

func TestAnIDBelongsToOneRequest(t *testing.T) {
	r, _ := newRecords(t)
	mustClaim(t, r, newTicket("b", "e", "w-1"))
	if _, err := r.claim(t.Context(), newTicket("b", "e", "w-2"), "another", ""); !errors.Is(err, ErrConflict) {
		t.Errorf("another body: %v", err)
	}
	if c, err := r.claim(t.Context(), newTicket("b-2", "e", "w-2"), "another", ""); err != nil || c.state != Claimed {
		t.Errorf("the same id of another business: %+v, %v", c, err)
	}
}

func TestRecordsExpire(t *testing.T) {
	r, server := newRecords(t)
	owner := newTicket("b", "e", "w-1")
	mustClaim(t, r, owner)
	if ttl := server.TTL(wire.RecordKey("b", "e")); ttl != unfinishedLimit {
		t.Errorf("unfinished: %s", ttl)
	}
	mustFinish(t, r, owner, ended("ok"))
	if ttl := server.TTL(wire.RecordKey("b", "e")); ttl != time.Hour {
		t.Errorf("finished: %s", ttl)
	}
	server.FastForward(time.Hour)
	if _, err := r.setCallback(t.Context(), "b", "e", CallbackDelivered, ""); err != nil || len(server.Keys()) != 1 {
		t.Errorf("a callback creates the expired record %q again: %v", server.Keys(), err)
	}
	server.FastForward(tombstone.Limit)
	if len(server.Keys()) != 0 {
		t.Errorf("left: %q", server.Keys())
	}
}
