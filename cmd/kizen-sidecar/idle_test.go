package main

import (
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// idleFor is how long the test measures the processor time of an idle daemon.
const idleFor = 4 * time.Second

// TestAnIdleDaemonUsesAlmostNoProcessor: waiting interpreters cost serve and worker less than 1 % of a core on an idle
// machine. On a busy machine the same work takes longer.
func TestAnIdleDaemonUsesAlmostNoProcessor(t *testing.T) {
	redisURL := startRedisServer(t)
	daemons := map[string]*served{
		"serve":  startServe(t, "--redis-url", redisURL, "--api-root", "http://127.0.0.1:1/api", "--warm", "8"),
		"worker": startWorker(t, redisURL, "http://127.0.0.1:1/api", "--warm", "8"),
	}
	before := map[string]time.Duration{}
	for name, daemon := range daemons {
		waitFor(t, func() bool { return strings.Contains(daemon.Metrics(), "kizen_pool_ready 8") })
		before[name] = sidecartest.ProcessorTime(t, daemon.Process.Pid)
	}
	time.Sleep(idleFor)
	for name, daemon := range daemons {
		used := sidecartest.ProcessorTime(t, daemon.Process.Pid) - before[name]
		t.Logf("%s: %.1f %% of a core", name, 100*used.Seconds()/idleFor.Seconds())
		if used > idleFor*3/100 {
			t.Errorf("an idle %s used %s of processor time in %s", name, used, idleFor)
		}
	}
}
