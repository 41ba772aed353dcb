package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// TestTortureAPowerFailureOfRedisLosesNoResultAndRunsNothingTwice simulates a power failure with appendfsync everysec:
// Redis is killed and restarted from older copies of its files, so it loses the writes in between.
func TestTortureAPowerFailureOfRedisLosesNoResultAndRunsNothingTwice(t *testing.T) {
	const total, slots = 120, 4
	dir, kept := t.TempDir(), filepath.Join(t.TempDir(), "kept")
	port := redistest.FreePort(t)
	start := func() *redistest.Server {
		return redistest.StartAt(t, port, "--dir", dir, "--appendonly", "yes", "--appendfsync", "everysec")
	}
	server := start()
	store := redisClient(t, server.URL())
	api, callbacks := newTally(t, total), newReceiver(t)
	var bodies []step
	for i := range total {
		id := fmt.Sprintf("e-%03d", i)
		bodies = append(bodies, forFleet(id, "kizen.api.post('/ran/"+id+"').raise_for_status()").with("callback_url",
			callbacks.URL+"/hook"))
	}
	enqueue(t, store, bodies...)
	for range 2 {
		startWorker(t, server.URL(), api.URL+"/api", "--slots", fmt.Sprint(slots), "--lease", "20s")
	}
	ended := func(n int) { waitFor(t, func() bool { return len(endings(t, store)) >= n }) }
	ended(total / 4)
	if err := os.CopyFS(kept, os.DirFS(dir)); err != nil { // a power failure can leave a torn file too
		t.Fatal(err)
	}
	before := len(endings(t, store))
	ended(before + 2*slots)
	lost := len(endings(t, store)) - before
	server.Stop() // SIGKILL
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	start()
	if after := len(endings(t, store)); after >= before+lost {
		t.Fatalf("Redis lost nothing: %d had ended, and %d have", before+lost, after)
	}
	ended(total)
	waitFor(t, func() bool { return callbacks.count() == total })
	outcomes, doubled := map[string]int{}, 0
	for id, outcome := range endings(t, store) {
		outcomes[outcome]++
		if ran := api.ran[id]; ran != 1 {
			doubled++
			t.Errorf("%s ended %s and ran %d times", id, outcome, ran)
		}
		if callbacks.outcomes[id] != outcome {
			t.Errorf("%s ended %s, and its callback said %q", id, outcome, callbacks.outcomes[id])
		}
	}
	t.Logf("Redis lost the end of %d of %d executions; outcomes %v, %d not run once", lost, total, outcomes, doubled)
	if outcomes["ok"] != total {
		t.Errorf("outcomes %v", outcomes)
	}
}
