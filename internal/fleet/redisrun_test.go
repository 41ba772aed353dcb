package fleet

import (
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// TestALossOfWritesIsReportedExactlyOnce: this also holds if a starting attempt has detected the loss first.
func TestALossOfWritesIsReportedExactlyOnce(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr})
	t.Cleanup(func() { _ = client.Close() })
	r := newRedisRun(Config{Redis: client, Queue: queue, Lease: time.Minute, Log: slog.New(slog.DiscardHandler)})
	if changed, err := r.check(t.Context()); changed || err != nil || r.takeLoss() {
		t.Fatalf("at first: changed %v, %v", changed, err)
	}
	r.known = "another run"
	r.dials.Add(1)
	if changed, err := r.check(t.Context()); !changed || err != nil {
		t.Fatalf("on a new run: changed %v, %v", changed, err)
	}
	if changed, err := r.check(t.Context()); changed || err != nil {
		t.Errorf("on a second check: changed %v, %v", changed, err)
	}
	if !r.takeLoss() || r.takeLoss() {
		t.Error("the loss is not reported exactly once")
	}
	if r.markLost(); !r.takeLoss() {
		t.Error("a loss that could not be repaired is forgotten")
	}
}
