package fleet

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// newMember is a worker that has joined, in the Redis of server.
func newMember(t *testing.T, server *miniredis.Miniredis, id string) *members {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	m := &members{redis: client, queue: "q", id: id, lease: time.Minute, log: slog.New(slog.DiscardHandler), missing: map[string]time.Time{}}
	if err := m.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// past has m believe that it has missed a worker for a while.
func (m *members) past(id string, d time.Duration) { m.missing[id] = time.Now().Add(-d) }

func TestAWorkerIsDeadAfterTwoLeasesAndNotBefore(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server, "watcher")
	newMember(t, server, "other")
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead while it lives: %v", dead)
	}
	server.FastForward(time.Minute) // one lease, without a word
	if err := watcher.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead after one lease: %v", dead)
	}
	watcher.past("other", time.Minute-time.Second)
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead before the second lease is over: %v", dead)
	}
	watcher.past("other", time.Minute)
	if dead := watcher.deceased(t.Context()); !slices.Equal(dead, []string{"other"}) {
		t.Errorf("dead after two: %v", dead)
	}
	if dead, err := watcher.dead(t.Context(), "other"); !dead || err != nil {
		t.Errorf("dead: %v, %v", dead, err)
	}
}

func TestAWorkerThatIsHeardOfAgainLives(t *testing.T) {
	server := miniredis.RunT(t)
	watcher, other := newMember(t, server, "watcher"), newMember(t, server, "other")
	watcher.past("other", time.Hour)
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
	server.Del(other.key("other"))
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("missed for the first time since, and dead: %v", dead)
	}
}

func TestNobodyIsDeadBecauseRedisWasAway(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server, "watcher")
	newMember(t, server, "other")
	server.FastForward(time.Hour)
	watcher.past("other", time.Hour)
	server.SetError("LOADING")
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead without redis: %v", dead)
	}
	if dead, err := watcher.dead(t.Context(), "other"); dead || err == nil {
		t.Errorf("without redis: %v, %v", dead, err)
	}
	server.SetError("")
	if err := watcher.join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead before it could show that it lives: %v", dead)
	}
}

func TestAWorkerIsNotDeadToItself(t *testing.T) {
	server := miniredis.RunT(t)
	watcher := newMember(t, server, "watcher")
	server.Del(watcher.key("watcher"))
	watcher.past("watcher", time.Hour)
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
}

func TestWhoLeavesIsNotMissed(t *testing.T) {
	server := miniredis.RunT(t)
	watcher, other := newMember(t, server, "watcher"), newMember(t, server, "other")
	if err := other.leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	watcher.past("other", time.Hour)
	if dead := watcher.deceased(t.Context()); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
}
