package main

import (
	"context"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

// TestServeSurvivesAnOutageOfItsRedis: while redis-server is gone, serve refuses new executions, is not ready and
// finishes the running one. Afterwards it recovers and has kept nothing.
func TestServeSurvivesAnOutageOfItsRedis(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	program := requireProgram(t, "redis-server")
	start := func() (stop func()) {
		_, port, _ := strings.Cut(address, ":")
		server := exec.Command(program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir",
			t.TempDir())
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(&redis.Options{Addr: address})
		defer client.Close()
		waitFor(t, func() bool { return client.Ping(context.Background()).Err() == nil })
		stop = sync.OnceFunc(func() {
			_ = server.Process.Kill()
			_ = server.Wait() // killed: the error is the kill
		})
		t.Cleanup(stop)
		return stop
	}
	stop := start()
	api := newGateAPI(t)
	s := try(t, "redis://"+address, t.TempDir(), "--warm", "0", "--slots", "4", "--api-root", api.root(),
		"--redis-timeout", "500ms").settle(4)
	marker := newMarker()
	s.ask("POST", "/executions", gated(marker).with("execution_id", "runs"))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	stop()
	if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 503 ||
		got.header.Get("Retry-After") == "" {
		t.Errorf("without redis: %d %s", got.status, got.body)
	}
	if status, _ := s.Readiness(); status != 503 {
		t.Errorf("ready without redis: %d", status)
	}
	api.open()
	if data := s.events("runs").until("finished"); !strings.Contains(data, `"outcome":"ok"`) {
		t.Errorf("the running execution ended with %s", data)
	}
	start()
	waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
	if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 200 {
		t.Errorf("with redis again: %d %s", got.status, got.body)
	}
	requireNoProcess(t, marker)
	s.requireWell()
}

// TestTortureServeForgetsCallersThatHangUp: every caller hangs up while its step runs or waits.
func TestTortureServeForgetsCallersThatHangUp(t *testing.T) {
	const callers = 1000
	api := newGateAPI(t)
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "1", "--slots", "4", "--queue-depth", "2000", "--api-root",
		api.root()).settle(4)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	marker := newMarker()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			if got, err := s.try(ctx, "b-1", "POST", "/api/coderunner/run", gated(marker)); err == nil {
				t.Errorf("answered %d %s", got.status, got.body)
			}
		})
	}
	waitFor(t, func() bool { return api.waiting.Load() == 4 })
	hangUp()
	all.Wait()
	waitFor(t, func() bool { return api.waiting.Load() == 0 })
	s.requireWell()
	requireNoProcess(t, marker)
}

// TestServeWithoutPythonRefusesAndLeavesNothing: with a --python that does not exist, each request gets 503, and
// neither memory, files nor processes accumulate. The pool and the HTTP API meet.
func TestServeWithoutPythonRefusesAndLeavesNothing(t *testing.T) {
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "2", "--python", "/no/such/python", "--api-root",
		newGateAPI(t).root())
	for attempt := range 5 {
		if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 503 ||
			!strings.Contains(got.body, "runner_unavailable") {
			t.Errorf("%d %s", got.status, got.body)
		}
		if attempt == 0 { // from now on the pool prepares this runtime too
			s.before = s.steady()
		}
	}
	s.requireNothingLeft()
}

// TestTortureServeIsolatesHostileStepsFromEachOther: steps that exhaust memory, disk, output or processes end at their
// own limits, and a good step beside each of them succeeds. The kernel's limits apply to real processes.
func TestTortureServeIsolatesHostileStepsFromEachOther(t *testing.T) {
	api := newGateAPI(t)
	api.open()
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "1", "--slots", "4", "--queue-timeout", "5m", "--timeout",
		"55s",
		"--memory", "128MiB", "--tmp-size", "8MiB", "--api-root", api.root()).settle(4)
	marker := newMarker()
	steps := attacks.HostileSteps(marker)
	if _, body := s.Readiness(); strings.Contains(body, `"name":"PID namespace","held":true`) &&
		strings.Contains(body, `"name":"process cgroup","held":true`) {
		steps = append(steps, attacks.ForkBomb)
	} else {
		t.Log("without the fork bomb: no layer of this sandbox ends it reliably")
	}
	var all sync.WaitGroup
	for _, h := range steps {
		all.Go(func() {
			body := script(h.Source).with("output_types", step{"x": "s"}).with("timeout_ms", h.LimitMS())
			got, err := s.try(t.Context(), "b-bad", "POST", "/api/coderunner/run", body)
			kind := regexp.MustCompile(`"kind":"(` + h.Kind + `)"`)
			if err != nil || got.status != 400 || !kind.MatchString(got.body) {
				t.Errorf("%s: %d %.2000s %v", h.Name, got.status, got.body, err)
			}
			if strings.Contains(got.body, `"values":{`) || len(got.body) > 1<<20 {
				t.Errorf("%s: %d bytes, %.2000s", h.Name, len(got.body), got.body)
			}
		})
		all.Go(func() {
			got, err := s.try(t.Context(), "b-good", "POST", "/api/coderunner/run",
				script("outputs.log(kizen.api.get('/x').status_code)"))
			if err != nil || got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
				t.Errorf("beside %s: %d %s %v", h.Name, got.status, got.body, err)
			}
		})
	}
	all.Wait()
	s.requireWell()
	requireNoProcess(t, marker)
}

// TestHoldingsIncludeThoseOfARunningStep is a test of this file's tests.
func TestHoldingsIncludeThoseOfARunningStep(t *testing.T) {
	t.Parallel()
	api := newGateAPI(t)
	s := try(t, startRedisServer(t), t.TempDir(), "--sandbox", "off", "--warm", "0", "--slots", "2", "--api-root",
		api.root()).settle(2)
	s.ask("POST", "/executions", gated(newMarker()).with("execution_id", "runs"))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	held := strings.Join(s.holdings().beyond(s.before), "\n")
	for _, kind := range []string{"goroutines", "open files", "processes", "file /", "redis key kizen:"} {
		if !strings.Contains(held, kind) {
			t.Errorf("no %s in\n%s", kind, held)
		}
	}
	api.open()
	s.events("runs").until("finished")
	s.requireWell()
}
