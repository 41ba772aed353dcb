package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// descriptors is how many files a process holds open.
func (s *served) descriptors() int {
	files, _ := os.ReadDir("/proc/" + strconv.Itoa(s.Process.Pid) + "/fd")
	return len(files)
}

// children is the processes that it started and that are left.
func (s *served) children() string {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(s.Process.Pid) + "/task/*/children")
	var all string
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		all += string(text)
	}
	return strings.TrimSpace(all)
}

// requireNothingLeft waits until a server that is idle again holds no more
// than before: processes and descriptors, each of which a goroutine waits for.
func (s *served) requireNothingLeft(descriptors int) {
	s.t.Helper()
	waitFor(s.t, func() bool { return s.children() == "" && s.descriptors() <= descriptors })
}

// warmed is how many descriptors it holds when it has run a step and is idle.
func (s *served) warmed() int {
	s.t.Helper()
	if got := s.ask("POST", "/api/coderunner/run", script("kizen.api.get('/x')")); got.status != 200 {
		s.t.Fatalf("%d %s", got.status, got.body)
	}
	waitFor(s.t, func() bool { return s.children() == "" })
	return s.descriptors() + 16 // idle connections to the API, to Redis and of this client come and go
}

func TestServeOutlivesItsRedis(t *testing.T) {
	address := freeAddress(t)
	program := requireProgram(t, "redis-server")
	start := func() (stop func()) {
		_, port, _ := strings.Cut(address, ":")
		server := exec.Command(program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
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
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--redis-url", "redis://"+address, "--redis-timeout", "500ms")
	before := s.warmed()
	marker := newMarker()
	s.ask("POST", "/executions", gated(marker).with("execution_id", "runs"))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	stop()
	if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("without redis: %d %s", got.status, got.body)
	}
	if status, _ := s.Readiness(); status != 503 {
		t.Errorf("ready without redis: %d", status)
	}
	api.open()
	if data := s.events("runs").until("finished"); !strings.Contains(data, `"outcome":"ok"`) {
		t.Errorf("what ran ended with %s", data)
	}
	start()
	waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
	if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 200 {
		t.Errorf("with redis again: %d %s", got.status, got.body)
	}
	requireNoProcess(t, marker)
	s.requireNothingLeft(before)
	requireNoRecords(t, "redis://"+address)
}

// TestServeForgetsCallersThatHangUp has every caller go while its step runs or
// waits.
func TestServeForgetsCallersThatHangUp(t *testing.T) {
	const callers = 1000
	redisURL := startRedisServer(t)
	api := newGateAPI(t)
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--redis-url", redisURL, "--slots", "4", "--queue-depth", "2000")
	before := s.warmed()
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
	if got := s.ask("POST", "/api/coderunner/run", script("outputs.log(1)")); got.status != 200 {
		t.Errorf("the next: %d %s", got.status, got.body)
	}
	s.requireNothingLeft(before)
	requireNoProcess(t, marker)
	requireNoRecords(t, redisURL)
}

func TestServeWithoutPythonRefusesAndLeavesNothing(t *testing.T) {
	redisURL := startRedisServer(t)
	api := newGateAPI(t)
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--redis-url", redisURL, "--python", "/no/such/python")
	before := s.descriptors() + 16
	for range 5 {
		if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 503 || !strings.Contains(got.body, "runner_unavailable") {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	s.requireNothingLeft(before)
	requireNoRecords(t, redisURL)
}

func TestServeIsolatesHostileStepsFromEachOther(t *testing.T) {
	redisURL := startRedisServer(t)
	api := newGateAPI(t)
	api.open()
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--redis-url", redisURL, "--slots", "4", "--timeout", "3s", "--memory", "128MiB", "--tmp-size", "8MiB")
	before := s.warmed()
	marker := newMarker()
	hostile := map[string]struct{ source, kind string }{
		"endless":      {"while True: pass", "timeout"},
		"memory":       {"b = []\nwhile True: b.append(bytearray(8 << 20))", "memory_limit"},
		"killed":       {"import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed_by_signal"},
		"exits":        {"import os\nos._exit(3)", "exited"},
		"full disk":    {"open('/tmp/x', 'wb').write(bytes(64 << 20))", "output_limit"},
		"leaves child": {"import subprocess\nsubprocess.Popen(['sleep', '" + marker + "'], start_new_session=True)\nraise SystemError('x')", "exception"},
	}
	var all sync.WaitGroup
	for name, h := range hostile {
		all.Go(func() {
			got, err := s.try(t.Context(), "b-bad", "POST", "/api/coderunner/run", script(h.source))
			if err != nil || got.status != 400 || !strings.Contains(got.body, `"kind":"`+h.kind+`"`) {
				t.Errorf("%s: %d %s %v", name, got.status, got.body, err)
			}
		})
		all.Go(func() {
			got, err := s.try(t.Context(), "b-good", "POST", "/api/coderunner/run", script("outputs.log(kizen.api.get('/x').status_code)"))
			if err != nil || got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
				t.Errorf("beside %s: %d %s %v", name, got.status, got.body, err)
			}
		})
	}
	all.Wait()
	s.requireNothingLeft(before)
	requireNoProcess(t, marker)
	requireNoRecords(t, redisURL)
}
