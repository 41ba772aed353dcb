package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

var redisProcess = regexp.MustCompile(`process_id:(\d+)`)

// signalRedis sends a signal to the server behind a client.
func signalRedis(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
}

func redisPID(t *testing.T, store *redis.Client) int {
	t.Helper()
	found := redisProcess.FindStringSubmatch(store.Info(t.Context(), "server").Val())
	if found == nil {
		t.Fatal("redis does not say which process it is")
	}
	pid, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestWorkerOutlivesARedisThatHangs has Redis stand still for longer than the
// leases of the fleet, while one step runs and others wait.
func TestWorkerOutlivesARedisThatHangs(t *testing.T) {
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api := newTally(t, 0)
	w := startWorker(t, redisURL, api.URL+"/api", "--slots", "1", "--warm", "1", "--redis-timeout", "300ms")
	waitFor(t, func() bool { status, _ := w.Readiness(); return status == 200 })
	for i := range 3 {
		id := fmt.Sprint("e-", i)
		enqueue(t, store, forFleet(id, "kizen.api.post('/ran/"+id+"')"))
	}
	waitFor(t, func() bool { _, held := api.look(); return held == 1 })
	pid := redisPID(t, store)
	signalRedis(t, pid, syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it has ended, or must end now
	waitFor(t, func() bool {
		status, body := w.Readiness()
		return status == 503 && !strings.Contains(body, `"redis":"ok"`)
	})
	waitFor(t, func() bool { return strings.Contains(w.Log.String(), "this worker cannot show that it lives") })
	close(api.release)
	waitFor(t, func() bool { return strings.Contains(w.Log.String(), `"outcome":"ok"`) }) // the step went on
	signalRedis(t, pid, syscall.SIGCONT)
	waitFor(t, func() bool { return len(endings(t, store)) == 3 })
	for id, outcome := range endings(t, store) {
		if outcome != "ok" || api.ran[id] != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, api.ran[id])
		}
	}
	waitFor(t, func() bool { status, _ := w.Readiness(); return status == 200 })
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestWorkerWithoutItsRedisSaysWhichAndEnds(t *testing.T) {
	got := sidecar(t, "", nil, "worker", "--redis-url", "redis://127.0.0.1:1/0", "--admin-listen", "", "--warm", "0")
	if got.code != exitSidecar || !strings.Contains(got.stderr, `kizen-sidecar: join the fleet of queue "kizen": redis at 127.0.0.1:1 refused the connection`) {
		t.Errorf("%d %s", got.code, got.stderr)
	}
	for _, senseless := range []string{"embedded", "could not say that it leaves"} {
		if strings.Contains(got.stderr, senseless) {
			t.Errorf("%q in %s", senseless, got.stderr)
		}
	}
}
