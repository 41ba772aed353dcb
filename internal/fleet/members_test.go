package fleet

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// newMember returns a worker that has joined, in the Redis of server.
func newMember(t *testing.T, server *miniredis.Miniredis) *members {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	m := &members{redis: client, queue: "q", lease: time.Minute, log: slog.New(slog.DiscardHandler),
		missing: map[string]time.Time{}}
	if err := m.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.term.Load().fence.Stop() })
	return m
}

// id returns the id of the current term.
func (m *members) id() string { return m.term.Load().id }

// past makes m believe that the key of a worker has been missing for a while.
func (m *members) past(id string, d time.Duration) { m.missing[id] = time.Now().Add(-d) }

func TestAWorkerIsDeadAfterTwoLeasesAndNotBefore(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server)
	other := newMember(t, server)
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead although it renews: %v", dead)
	}
	server.FastForward(time.Minute) // one lease without a renewal
	if err := watcher.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead after one lease: %v", dead)
	}
	watcher.past(other.id(), time.Minute-time.Second)
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead before the second lease is over: %v", dead)
	}
	watcher.past(other.id(), time.Minute)
	if dead := watcher.deadWorkers(t.Context()); !slices.Equal(dead, []string{other.id()}) {
		t.Errorf("dead after two: %v", dead)
	}
	if dead, err := watcher.dead(t.Context(), other.id()); dead || err != nil {
		t.Errorf("dead before it was declared dead: %v, %v", dead, err)
	}
	if done, err := watcher.declareDead(t.Context(), other.id()); !done || err != nil {
		t.Errorf("declared: %v, %v", done, err)
	}
	if dead, err := other.dead(t.Context(), other.id()); !dead || err != nil {
		t.Errorf("dead: %v, %v", dead, err)
	}
	before := other.id()
	if err := other.join(t.Context()); err != nil || other.id() == before {
		t.Errorf("it returned as %q after %q: %v", other.id(), before, err)
	}
}

// TestAWorkerThatRenewedCannotBeDeclaredDead: this holds whatever the keeper has observed.
func TestAWorkerThatRenewedCannotBeDeclaredDead(t *testing.T) {
	server := miniredis.RunT(t)
	watcher, other := newMember(t, server), newMember(t, server)
	if done, err := watcher.declareDead(t.Context(), other.id()); done || err != nil {
		t.Errorf("declared: %v, %v", done, err)
	}
}

// TestATermEndsAfterOneLeaseWithoutRenewal: it ends before another worker may take over.
func TestATermEndsAfterOneLeaseWithoutRenewal(t *testing.T) {
	m := newMember(t, miniredis.RunT(t))
	first := m.term.Load()
	if err := first.check(); err != nil {
		t.Fatalf("within its lease: %v", err)
	}
	past := time.Now().Add(-m.lease)
	first.renewed.Store(&past)
	if err := first.check(); !errors.Is(err, errFenced) || !errors.Is(context.Cause(first.ctx), errFenced) ||
		m.current() != nil {
		t.Errorf("after it: %v, %v", err, context.Cause(first.ctx))
	}
	if err := m.join(t.Context()); err != nil || m.current() == nil || m.current() == first {
		t.Errorf("the next term: %v", err)
	}
}

// TestOneWorkerIsTheKeeper: another becomes the keeper after the first has been gone for a lease.
func TestOneWorkerIsTheKeeper(t *testing.T) {
	server := miniredis.RunT(t)
	first, second := newMember(t, server), newMember(t, server)
	if !first.keeper.Load() || second.keeper.Load() {
		t.Errorf("keepers: %v, %v", first.keeper.Load(), second.keeper.Load())
	}
	server.FastForward(time.Minute)
	if err := errors.Join(second.join(t.Context()), first.join(t.Context())); err != nil {
		t.Fatal(err)
	}
	if first.keeper.Load() || !second.keeper.Load() {
		t.Errorf("keepers after a lease without the first: %v, %v", first.keeper.Load(), second.keeper.Load())
	}
}

// TestAWorkerThatRedisLostIsListedAgain: a record may name a worker that is in no list.
func TestAWorkerThatRedisLostIsListedAgain(t *testing.T) {
	m := newMember(t, miniredis.RunT(t))
	if dead, err := m.dead(t.Context(), "forgotten"); dead || err != nil {
		t.Fatalf("dead: %v, %v", dead, err)
	}
	m.past("forgotten", m.lease)
	if dead := m.deadWorkers(t.Context()); !slices.Equal(dead, []string{"forgotten"}) {
		t.Errorf("dead: %v", dead)
	}
}

func TestAWorkerThatRenewsAgainIsAlive(t *testing.T) {
	server := miniredis.RunT(t)
	watcher, other := newMember(t, server), newMember(t, server)
	watcher.past(other.id(), time.Hour)
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
	server.Del(other.key(other.id()))
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead at the first miss since: %v", dead)
	}
}

func TestNoWorkerIsDeadBecauseRedisWasUnreachable(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server)
	other := newMember(t, server)
	server.FastForward(time.Hour)
	watcher.past(other.id(), time.Hour)
	server.SetError("LOADING")
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead without redis: %v", dead)
	}
	if dead, err := watcher.dead(t.Context(), other.id()); dead || err == nil {
		t.Errorf("without redis: %v, %v", dead, err)
	}
	server.SetError("")
	if err := watcher.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead before it could renew: %v", dead)
	}
}

func TestAWorkerNeverDeclaresItselfDead(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server)
	server.Del(watcher.key(watcher.id()))
	watcher.past(watcher.id(), time.Hour)
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
}

func TestAWorkerThatLeavesIsNotDeclaredDead(t *testing.T) {
	server := miniredis.RunT(t)
	watcher, other := newMember(t, server), newMember(t, server)
	if err := other.leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	watcher.past(other.id(), time.Hour)
	if dead := watcher.deadWorkers(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
}
