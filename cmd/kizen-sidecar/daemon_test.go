package main

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/internal/wire"
)

// check returns what /readyz reports for one check.
func (s *served) check(name string) string {
	s.t.Helper()
	var answer struct{ Checks map[string]string }
	if _, body := s.Readiness(); json.Unmarshal([]byte(body), &answer) != nil {
		s.t.Fatalf("/readyz says %s", body)
	}
	return answer.Checks[name]
}

// metric returns the value of a series of /metrics, by its text there, and whether it exists.
func (s *served) metric(series string) (value float64, there bool) {
	s.t.Helper()
	page := s.Metrics()
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(page)
	if found == nil {
		return 0, false
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		s.t.Fatalf("%s is %q", series, found[1])
	}
	return value, true
}

// eachDaemon runs a test for serve and for worker.
func eachDaemon(t *testing.T, test func(t *testing.T, start func(arguments ...string) *served)) {
	t.Run("serve", func(t *testing.T) {
		api := newGateAPI(t)
		test(t, func(arguments ...string) *served {
			return startServe(t, append([]string{"--api-root", api.root()}, arguments...)...)
		})
	})
	t.Run("worker", func(t *testing.T) {
		redisURL, api := startRedisServer(t), newGateAPI(t)
		test(t, func(arguments ...string) *served { return startWorker(t, redisURL, api.root(), arguments...) })
	})
}

// TestReadyOnceAnInterpreterIsWarm: serve and worker become ready when their pool has a warm interpreter. The pool, a
// real Python, the admin listener and the metrics meet.
func TestReadyOnceAnInterpreterIsWarm(t *testing.T) {
	eachDaemon(t, func(t *testing.T, start func(...string) *served) {
		s := start("--warm", "1")
		waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
		if said := s.check("warm"); said != "ok" {
			t.Errorf("warm: %q", said)
		}
		waitFor(t, func() bool { ready, _ := s.metric("kizen_pool_ready"); return ready == 1 })
	})
}

// TestNotReadyIfNoInterpreterCanBeStarted: with a --python that does not exist, /readyz answers 503 and names the path.
// The failed start happens in the pool, the answer in the admin listener.
func TestNotReadyIfNoInterpreterCanBeStarted(t *testing.T) {
	eachDaemon(t, func(t *testing.T, start func(...string) *served) {
		s := start("--warm", "1", "--python", "/no/such/python")
		waitFor(t, func() bool { return strings.Contains(s.check("warm"), "no warm interpreter can be started") })
		if status, body := s.Readiness(); status != 503 || !strings.Contains(body, "/no/such/python") {
			t.Errorf("ready: %d %s", status, body)
		}
	})
}

// TestReadyWithoutInterpretersIfWarmIsZero: with --warm 0, serve and worker become ready, and no check named "warm"
// exists. The flag decides both about the pool and about the list of checks.
func TestReadyWithoutInterpretersIfWarmIsZero(t *testing.T) {
	eachDaemon(t, func(t *testing.T, start func(...string) *served) {
		s := start("--warm", "0")
		// A worker becomes ready shortly after its admin listener, when it takes executions.
		var body string
		waitFor(t, func() bool {
			var status int
			status, body = s.Readiness()
			return status == 200
		})
		if strings.Contains(body, `"warm"`) {
			t.Errorf("ready: %s", body)
		}
	})
}

// TestReadyWhileAllInterpretersAreInUse has more callers than interpreters, so that usually none is free.
func TestReadyWhileAllInterpretersAreInUse(t *testing.T) {
	api := newGateAPI(t)
	api.open()
	s := startServe(t, "--api-root", api.root(), "--warm", "1", "--slots", "4")
	waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
	done := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 5 {
				got, err := s.try(t.Context(), "b-1", "POST", "/api/coderunner/run",
					step{"runtime": "python-3-12", "user_script": "pass"})
				if err != nil || got.status != 200 {
					t.Errorf("%+v, %v", got, err)
				}
			}
		})
	}
	go func() {
		defer close(done)
		callers.Wait()
	}()
	for asked := 0; ; asked++ {
		select {
		case <-done:
			if asked == 0 {
				t.Error("readiness was never checked meanwhile")
			}
			return
		default:
		}
		if status, body := s.Readiness(); status != 200 {
			t.Errorf("ready: %d %s", status, body)
		}
	}
}

// TestWorkerHasTheMetricsOfServe: a worker exposes each series with the value of what it ran, and the time in the queue
// counts from when the orchestrator enqueued. The queue, Redis, the execution and the exporter meet.
func TestWorkerHasTheMetricsOfServe(t *testing.T) {
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api := newTally(t, 10)
	w := startWorker(t, redisURL, api.URL+"/api", "--warm", "1", "--slots", "4")
	payload, err := json.Marshal(forFleet("e-1", "kizen.api.post('/ran/e-1')").with("traceparent",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	if err != nil {
		t.Fatal(err)
	}
	asked := time.Now().Add(-time.Hour)
	task := asynq.NewTaskWithHeaders(wire.ExecutionTask, payload,
		map[string]string{wire.EnqueuedAt: asked.Format(time.RFC3339Nano)})
	if _, err := asynq.NewClientFromRedisClient(store).EnqueueContext(t.Context(), task, asynq.Queue("kizen")); err != nil {
		t.Fatal(err)
	}
	enqueue(t, store, forFleet("e-2", "pass").with("runtime", "ruby"))
	waitFor(t, func() bool { return endings(t, store)["e-1"] == "ok" && endings(t, store)["e-2"] == "refused" })
	for series, want := range map[string]float64{
		`kizen_execution_duration_seconds_count{kizen_execution_outcome="ok"}`:       1,
		`kizen_execution_phase_duration_seconds_count{kizen_execution_phase="step"}`: 1,
		`kizen_key_operation_duration_seconds_count{kizen_key_operation="mint"}`:     1,
		`kizen_key_operation_duration_seconds_count{kizen_key_operation="revoke"}`:   1,
		`kizen_execution_slot_limit`:                                      4,
		`kizen_execution_slot_usage`:                                      0,
		`kizen_execution_queue_length`:                                    0,
		`kizen_fleet_queue_depth{queue="kizen"}`:                          0,
		`kizen_fleet_dead_letters{queue="kizen"}`:                         0,
		`kizen_fleet_queue_wait_seconds{queue="kizen"}`:                   0,
		`kizen_fleet_callback_queue_depth{queue="kizen"}`:                 0,
		`kizen_fleet_callback_dead_letters{queue="kizen"}`:                0,
		`kizen_fleet_executions_total{kizen_execution_outcome="ok"}`:      1,
		`kizen_fleet_executions_total{kizen_execution_outcome="refused"}`: 1,
	} {
		waitFor(t, func() bool { got, there := w.metric(series); return there && got == want })
	}
	if waited, _ := w.metric(`kizen_execution_phase_duration_seconds_sum{kizen_execution_phase="queue"}`); waited < 3600 ||
		waited > time.Since(asked).Seconds() {
		t.Errorf("it waited %v s, and was enqueued an hour ago", waited)
	}
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if !regexp.MustCompile(`"execution_id":"e-1".*"queue_ms":36\d{5}\.`).MatchString(w.Log.String()) {
		t.Error("the log does not say how long it waited")
	}
}

// TestWorkerReadsTheConfigurationThatItPrints: a worker that reads its own --print-config output as --config has the
// same configuration. Flags, variables and the file are merged only in the command.
func TestWorkerReadsTheConfigurationThatItPrints(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, dir, "worker.yaml",
		"queue: batch\nslots: 3\nredis-url: redis://user:hunter2hunter2@127.0.0.1:1/0\nwebhook-allow: [10.0.0.0/8, 127.0.0.0/8]\n")
	requirePrintedIsRead(t, []string{"KIZEN_WARM=6", "KIZEN_SLOTS=5"},
		[]string{"worker", "--config", file, "--slots", "4"},
		"queue: batch", `slots: "4"`, `warm: "6"`, "lease: 10s", "- 10.0.0.0/8")
	wrong := writeFile(t, dir, "wrong.yaml", "leese: 3s\n")
	if got := sidecar(t, "", nil, "worker", "--config", wrong); got.code != exitUsage ||
		!strings.Contains(got.stderr, `"leese"`) {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}
