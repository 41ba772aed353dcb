package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// poisons are the requests and the steps of the corpus that made the sidecar use gigabytes or much processor time, or
// could.
func poisons() (all []any) {
	for _, request := range attacks.Requests() {
		all = append(all, json.RawMessage(request.Body))
	}
	// There are many expensive steps with the others between them, because the results that serve keeps of them add up.
	for _, heavy := range attacks.ExpensiveSteps() {
		all = append(all, script(heavy.Source).with("inputs", json.RawMessage(heavy.Inputs)).with("output_types",
			json.RawMessage(heavy.OutputTypes)))
	}
	for _, forgery := range attacks.Forgeries() {
		all = append(all, script(forgery.Source()).with("output_types", step{"x": "s", "l": "l"}).with("timeout_ms", 30_000))
	}
	return all
}

// cgroupOfMemory creates a memory cgroup with a limit in bytes, and returns its directory.
func cgroupOfMemory(t *testing.T, bytes int) string {
	t.Helper()
	var dir string
	for root, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes",
		"/sys/fs/cgroup": "memory.max"} {
		made := filepath.Join(root, fmt.Sprintf("kizen-test-%d", os.Getpid()))
		if os.Mkdir(made, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(made, file), fmt.Append(nil, bytes), 0o644) == nil {
			dir = made
			break
		}
		_ = os.Remove(made)
	}
	if dir == "" {
		missingForTest(t, "a memory cgroup that this user may create")
	}
	t.Cleanup(func() {
		// The groups of steps are below it.
		_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() && path != dir {
				_ = os.Remove(path)
			}
			return nil
		})
		_ = os.Remove(dir)
	})
	return dir
}

// memoryUsed returns how many bytes of memory a cgroup uses.
func memoryUsed(t *testing.T, dir string) int {
	t.Helper()
	for _, file := range []string{"memory.usage_in_bytes", "memory.current"} {
		if content, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			used, err := strconv.Atoi(strings.TrimSpace(string(content)))
			if err != nil {
				t.Fatal(err)
			}
			return used
		}
	}
	t.Fatalf("%s does not say how much memory it uses", dir)
	return 0
}

// within returns a command that runs in a cgroup.
func within(dir string, command *exec.Cmd) *exec.Cmd {
	inside := exec.Command("/bin/sh", append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, dir},
		command.Args...)...)
	inside.Env = command.Env
	return inside
}

// TestTortureTheMachinesMemoryIsNotTheStepsLimit fills the cgroup of serve: once by a step, and once before the step's
// code has begun. The results must not name a limit that the step has not reached.
func TestTortureTheMachinesMemoryIsNotTheStepsLimit(t *testing.T) {
	const group, left = 160 << 20, 5 << 20
	dir := cgroupOfMemory(t, group)
	redis, disk := startRedisServer(t), t.TempDir()
	s := tryWith(t, redis, disk, within(dir, tryCommand(redis, disk, "--warm", "0", "--slots", "2", "--memory",
		"1GiB"))).settle(2)

	got := s.ask("POST", "/api/coderunner/run", script("all = []\nwhile True: all.append(bytearray(b'x' * (1 << 20)))"))
	var d struct {
		Error struct {
			Error, Kind string
			Evidence    struct {
				Peak        int64 `json:"peak_memory_bytes"`
				OutOfMemory bool  `json:"out_of_memory"`
			}
		}
	}
	if err := json.Unmarshal([]byte(got.body), &d); err != nil || got.status != 400 || d.Error.Kind != "killed_by_signal" ||
		!strings.Contains(d.Error.Error, "had not reached its own limit") || d.Error.Evidence.Peak > group ||
		!d.Error.Evidence.OutOfMemory {
		t.Errorf("a step that uses up the machine's memory: %d %s %v", got.status, got.body, err)
	}
	s.requireWell()

	// A file in memory stays charged to the cgroup, and no process can be killed for it.
	filler := filepath.Join("/dev/shm", filepath.Base(dir))
	t.Cleanup(func() { _ = os.Remove(filler) })
	size := group - left - memoryUsed(t, dir)
	fill := within(dir, exec.Command("sh", "-c", `head -c "$0" /dev/zero >"$1"`, fmt.Sprint(size), filler))
	if output, err := fill.CombinedOutput(); err != nil {
		t.Fatalf("fill the cgroup: %v %s", err, output)
	}
	got = s.ask("POST", "/api/coderunner/run", script("outputs.log(1)"))
	if got.status != 503 || !strings.Contains(got.body, "the memory of this machine") {
		t.Errorf("a step for whose Python no memory is left: %d %s", got.status, got.body)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.requireWell()
}

// TestTortureNoStepAndNoRequestEndsStarvesOrBloatsServe: serve has a memory limit and gets a poisoned request or step
// each second.
func TestTortureNoStepAndNoRequestEndsStarvesOrBloatsServe(t *testing.T) {
	const well, slots, group = 100, 8, 256 << 20
	dir := cgroupOfMemory(t, group)
	api := newGateAPI(t)
	api.open()
	redis, disk := startRedisServer(t), t.TempDir()
	command := tryCommand(redis, disk, "--warm", "1", "--slots", fmt.Sprint(slots), "--queue-timeout", "5m", "--timeout",
		"30s",
		"--memory", "48MiB", "--api-root", api.root())
	s := tryWith(t, redis, disk, within(dir, command)).settle(slots)
	if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.Process.Pid)); err != nil ||
		!strings.Contains(string(groups), filepath.Base(dir)) {
		t.Fatalf("serve is not in the cgroup with the limit: %s %v", groups, err)
	}
	before := sidecartest.AnonymousMiB(t, s.Process.Pid)

	done := make(chan struct{})
	var poisoned, all sync.WaitGroup
	poisoned.Go(func() {
		requests := poisons()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				if i >= len(requests) {
					return
				}
			case <-tick.C:
			}
			request := requests[i%len(requests)]
			poisoned.Go(func() {
				got, err := s.try(t.Context(), "b-bad", "POST", "/api/coderunner/run", request)
				if err != nil || len(got.body) > 10<<20 || got.status >= 500 {
					t.Errorf("poison %d: %d, %d bytes, %v", i%len(requests), got.status, len(got.body), err)
				}
			})
		}
	})
	work := make(chan int)
	for range slots / 2 {
		all.Go(func() {
			for range work {
				got, err := s.try(t.Context(), "b-good", "POST", "/api/coderunner/run",
					script("outputs.log(kizen.api.get('/x').status_code)"))
				if err != nil || got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
					t.Errorf("well-behaved: %d %s %v", got.status, got.body, err)
				}
			}
		})
	}
	for i := range well {
		work <- i
	}
	close(work)
	all.Wait()
	close(done)
	poisoned.Wait()
	const kept = group / 8 >> 20 // MiB that results of finished executions may take
	waitFor(t, func() bool { return sidecartest.AnonymousMiB(t, s.Process.Pid) < before+kept+32 })
	s.requireWell()
}
