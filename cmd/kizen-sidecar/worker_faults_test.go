package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hibiken/asynq"
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
		t.Fatal("INFO has no process_id")
	}
	pid, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestAWorkerSurvivesARedisThatHangs: Redis is stopped for longer than a lease, while one step runs and others wait.
// The worker cannot know whether others reach Redis, so it ends the step.
func TestAWorkerSurvivesARedisThatHangs(t *testing.T) {
	t.Parallel()
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
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // resumes it if the test has failed before
	waitFor(t, func() bool {
		status, body := w.Readiness()
		return status == 503 && !strings.Contains(body, `"redis":"ok"`)
	})
	waitFor(t, func() bool { return strings.Contains(w.Log.String(), "this worker could not renew its lease") })
	waitFor(t, func() bool { return strings.Contains(w.Log.String(), `"outcome":"cancelled"`) })
	close(api.release)
	signalRedis(t, pid, syscall.SIGCONT)
	waitFor(t, func() bool { return len(endings(t, store)) == 3 })
	outcomes := map[string]int{}
	for id, outcome := range endings(t, store) {
		outcomes[outcome]++
		if api.ran[id] != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, api.ran[id])
		}
	}
	if outcomes["worker_died"] != 1 || outcomes["ok"] != 2 {
		t.Errorf("outcomes %v", outcomes)
	}
	waitFor(t, func() bool { status, _ := w.Readiness(); return status == 200 })
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestAStoppedWorkerMakesNoCallsWhenItResumes: its execution was ended meanwhile, and the callback has reported that.
func TestAStoppedWorkerMakesNoCallsWhenItResumes(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	calls := make(chan struct{}, 1000)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case calls <- struct{}{}:
		default:
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(api.Close)
	callbacks := newReceiver(t)
	victim := startWorker(t, redisURL, api.URL+"/api", "--slots", "1")
	enqueue(t, store, forFleet("e", `
import time
while True:
    kizen.api.post("/called")
    time.sleep(0.02)
`).with("callback_url", callbacks.URL))
	<-calls
	_ = victim.Process.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { _ = victim.Process.Signal(syscall.SIGCONT) })
	startWorker(t, redisURL, api.URL+"/api", "--slots", "1")
	waitFor(t, func() bool { return callbacks.count() == 1 })
	if outcome := endings(t, store)["e"]; outcome != "worker_died" {
		t.Errorf("ended %q", outcome)
	}
	for len(calls) > 0 {
		<-calls
	}
	_ = victim.Process.Signal(syscall.SIGCONT)
	waitFor(t, func() bool { return strings.Contains(victim.Log.String(), `"outcome":"cancelled"`) })
	if n := len(calls); n > 1 { // one call may have passed the proxy when the worker was stopped
		t.Errorf("after it was declared dead, its step made %d calls", n)
	}
	inspector := asynq.NewInspectorFromRedisClient(store)
	waitFor(t, func() bool {
		info, err := inspector.GetQueueInfo("kizen")
		return err == nil && info.Active+info.Pending+info.Retry == 0
	})
}

// TestWorkerWithoutRedisNamesItAndEnds: a worker whose Redis is unreachable at the start ends with one cause, and does
// not mention an embedded store or a fleet that it never joined.
func TestWorkerWithoutRedisNamesItAndEnds(t *testing.T) {
	got := sidecar(t, "", nil, "worker", "--redis-url", "redis://127.0.0.1:1/0", "--admin-listen", "", "--warm", "0")
	if got.code != exitSidecar || !strings.Contains(got.stderr,
		`kizen-sidecar: join the fleet of queue "kizen": redis at 127.0.0.1:1 refused the connection`) {
		t.Errorf("%d %s", got.code, got.stderr)
	}
	for _, senseless := range []string{"embedded", "could not leave the fleet"} {
		if strings.Contains(got.stderr, senseless) {
			t.Errorf("%q in %s", senseless, got.stderr)
		}
	}
}
