package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// all names every environment.
var all = slices.Sorted(maps.Keys(environments))

func TestEveryEndIsReported(t *testing.T) {
	ends := []struct {
		name, code string
		exit       int
		signal     syscall.Signal
	}{
		{"falls off the end", "pass", 0, 0},
		{"raises", "raise ValueError", 1, 0},
		{"exits", "import sys; sys.exit(3)", 3, 0},
		{"exits at once", "import os; os._exit(7)", 7, 0},
		{"kills itself", "import os; os.kill(os.getpid(), 9)", -1, syscall.SIGKILL},
		{"terminates itself", "import os; os.kill(os.getpid(), 15)", -1, syscall.SIGTERM},
		{"kills its group", "import os; os.killpg(0, 9)", -1, syscall.SIGKILL},
		{"crashes", "import ctypes; ctypes.string_at(0)", -1, syscall.SIGSEGV},
		{"aborts", "import os; os.abort()", -1, syscall.SIGABRT},
		{"overflows the stack",
			"import sys, threading; sys.setrecursionlimit(10**9)\nclass A:\n def __repr__(self): return repr(self)\nrepr(A())",
			-1, syscall.SIGSEGV},
		{"closes every descriptor", "import os; os.closerange(0, 100); os._exit(5)", 5, 0},
		{"leaves a thread behind",
			"import threading, time, os\nthreading.Thread(target=time.sleep, args=(999,), daemon=True).start(); os._exit(4)", 4,
			0},
	}
	each(t, all, func(t *testing.T, s *Sandbox) {
		for _, end := range ends {
			t.Run(end.name, func(t *testing.T) {
				r := run(t, s, end.code, nil)
				if r.Code != end.exit || r.Signal != end.signal {
					t.Errorf("got exit code %d, signal %v, output %q", r.Code, r.Signal, r.out)
				}
				if r.OOMKilled || r.CPUExceeded || r.Killed || r.ProcessesRefused || r.Survivors > 0 {
					t.Errorf("got %+v", r.Exit)
				}
				if r.PeakMemory < mib || r.PeakMemory > 200*mib || r.CPU <= 0 {
					t.Errorf("implausible: peak memory %d, processor time %v", r.PeakMemory, r.CPU)
				}
			})
		}
	})
}

// survivors leaves five processes behind that try to survive, and prints a line when they run.
const survivors = `
import os, signal, time
ready, tell = os.pipe()
def stay(daemonise):
    if os.fork(): return
    for n in range(1, 65):
        try: signal.signal(n, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if daemonise:
        os.setsid()
        if os.fork(): os._exit(0)
        os.chdir("/"); os.umask(0)
    os.write(tell, b"x")
    if daemonise == 2:
        while True: pass
    time.sleep(9999)
for kind in (0, 0, 1, 1, 2): stay(kind)
got = 0
while got < 5: got += len(os.read(ready, 5))
`

func TestNoProcessSurvivesTheMainProcess(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		marker := fmt.Sprintf("kizen-marker-%d-%s", os.Getpid(), t.Name())
		r := run(t, s, survivors+"os._exit(6)", func(spec *Spec) { spec.Argv = append(spec.Argv, marker) })
		// The parents of new daemons may still exist.
		if r.Code != 6 || r.Survivors < 5 || r.Survivors > 8 {
			t.Errorf("got %+v, want exit code 6 and five survivors or a few more; output %q", r.Exit, r.out)
		}
		if left := processesWith(marker); len(left) > 0 {
			t.Errorf("still there: %v", left)
		}
	})
}

func TestKillEndsEveryProcess(t *testing.T) {
	for _, how := range []string{"Kill", "context"} {
		t.Run(how, func(t *testing.T) {
			each(t, all, func(t *testing.T, s *Sandbox) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				marker := fmt.Sprintf("kizen-marker-%d-%s", os.Getpid(), t.Name())
				out, printed, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				process, stop, err := start(ctx, s, Spec{
					Argv:   []string{python, "-I", "-S", "-c", survivors + "print('up', flush=True)\nwhile True: pass", marker},
					Stdout: printed, Stderr: printed,
				})
				printed.Close()
				if err != nil {
					t.Fatal(err)
				}
				defer stop()
				if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
					t.Errorf("got %q, %v", line, err)
				}
				if how == "Kill" {
					process.Kill()
				} else {
					cancel()
				}
				exit := process.Wait()
				if !exit.Killed || exit.Code != -1 || exit.Signal != syscall.SIGKILL || exit.Err != nil {
					t.Errorf("got %+v", exit)
				}
				if left := processesWith(marker); len(left) > 0 {
					t.Errorf("still there: %v", left)
				}
				process.Kill() // late, and harmless
			})
		})
	}
}

func TestTheStepDiesWithTheSidecar(t *testing.T) {
	for _, kind := range []string{"full", "forks", "bare"} {
		t.Run(kind, func(t *testing.T) {
			marker := fmt.Sprintf("kizen-marker-%d-%s", os.Getpid(), t.Name())
			code := survivors + "print('up', flush=True)\nwhile True: pass"
			sidecar := sidecarWith(t, kind, code, marker)
			// A handle opened before a process's death cannot refer to a later process.
			var handles []unix.PollFd
			for _, pid := range processesWith(marker) {
				if pid == sidecar.Process.Pid {
					continue
				}
				fd, err := unix.PidfdOpen(pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				handles = append(handles, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
			if len(handles) != 6 {
				t.Errorf("found %d processes of the step, want 6", len(handles))
			}
			if err := sidecar.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = sidecar.Wait()
			for i := range handles {
				n, err := unix.Poll(handles[i:i+1], 1000)
				for err == unix.EINTR {
					n, err = unix.Poll(handles[i:i+1], 1000)
				}
				if n != 1 {
					t.Errorf("a process survives the sidecar by more than a second: %v", err)
				}
			}
		})
	}
}

// processesWith returns the host's IDs of the processes that have a word in their command line.
func processesWith(word string) []int {
	var found []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		content, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Split(string(content), "\x00"), word) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			found = append(found, pid)
		}
	}
	return found
}

// leftovers returns the resources that programs may have left on the host and in this process.
func leftovers(t *testing.T, s *Sandbox) map[string]string {
	t.Helper()
	left := make(map[string]string)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for mount := range strings.Lines(string(mounts)) {
		// Ignore mounts of other tests on their own directories.
		if !strings.Contains(mount, filepath.Join(os.TempDir(), "Test")) {
			left["mounts"] += mount
		}
	}
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	left["descriptors"] = fmt.Sprint(len(descriptors))
	children, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range children {
		list, _ := os.ReadFile(path)
		left["processes"] += string(list)
	}
	for name, dir := range map[string]string{"memory cgroups": s.groups.memory, "pids cgroups": s.groups.pids} {
		if dir != "" {
			groups, _ := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%s%d-*", groupPrefix, os.Getpid())))
			left[name] = fmt.Sprint(groups)
		}
	}
	for _, dir := range []string{os.TempDir(), "/dev/shm", "/var/tmp"} {
		for _, pattern := range []string{"kizen-step-x", fmt.Sprintf("kizen-step-%d-*", os.Getpid())} {
			files, _ := filepath.Glob(filepath.Join(dir, pattern))
			left[dir] += fmt.Sprint(files)
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	left["own cgroup"] = string(own)
	return left
}

// namesNamespaces prints the namespaces that a program is in.
const namesNamespaces = "import os\nfor n in os.listdir('/proc/self/ns'): print(os.readlink('/proc/self/ns/' + n), flush=True)\n"

// kindsOfExecutions end in every possible way and try to leave resources behind.
var kindsOfExecutions = []struct {
	name, code string
	change     func(*Spec)
}{
	{"falls off the end", "pass", nil},
	{"raises", "raise ValueError", nil},
	{"exits", "raise SystemExit(3)", nil},
	{"exits at once", "os._exit(7)", nil},
	{"cannot be parsed", "x = = 1", nil},
	{"kills itself", "os.kill(os.getpid(), 9)", nil},
	{"kills its group", "os.killpg(0, 9)", nil},
	{"kills what it can", "os.kill(-1, 9)", nil},
	{"crashes", "import ctypes; ctypes.string_at(0)", nil},
	{"overflows the stack",
		"import sys; sys.setrecursionlimit(10**9)\nclass A:\n def __repr__(self): return repr(self)\nrepr(A())", nil},
	{"closes every descriptor", "os.closerange(0, 1024); os._exit(5)", nil},
	{"opens descriptors until there are no more", "while True: os.dup(0)",
		func(spec *Spec) { spec.Limits.OpenFiles = 64 }},
	{"leaves a thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(999,)).start(); os._exit(4)",
		nil},
	{"leaves daemons", survivors, nil},
	{"leaves processes that are stopped",
		"import signal\nfor _ in range(3):\n if os.fork() == 0: os.setsid(); os.kill(os.getpid(), signal.SIGSTOP)", nil},
	{"leaves files", "for d in (os.environ['HOME'], '/dev/shm'): open(d + '/kizen-step-x', 'w').write('x')", nil},
	{"leaves shared memory",
		"import multiprocessing.shared_memory as m\nm.SharedMemory('kizen-step-x', True, 4096)\nos._exit(0)", nil},
	{"leaves a queue", "import multiprocessing as m; m.Queue(); os._exit(0)", nil},
	{"leaves sockets",
		"import socket\na = socket.create_server(('127.0.0.1', 0)); b = socket.socket(socket.AF_UNIX); b.bind(os.environ['HOME'] + '/s'); os._exit(0)", nil},
	{"takes too much memory", "x = bytearray(os.urandom(1 << 20) * 99)\nwhile True: x += x",
		func(spec *Spec) { spec.Limits.Memory = 64 * mib }},
	{"takes too much time", "while True: pass", func(spec *Spec) { spec.Limits.CPU = 20 * time.Millisecond }},
	{"prints without end", "while True: os.write(1, bytes(65536))",
		func(spec *Spec) { spec.Stdout, spec.Limits.CPU = nil, 20*time.Millisecond }},
	{"forks without end", "while True: os.fork()",
		func(spec *Spec) { spec.Limits.CPU, spec.Limits.Processes = 20*time.Millisecond, 16 }},
	{"forks daemons without end", "while True:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass",
		func(spec *Spec) { spec.Limits.CPU, spec.Limits.Processes = 20*time.Millisecond, 16 }},
}

func TestNothingIsLeftAfterAnyKindOfExecution(t *testing.T) {
	requireNothingLeft(t, len(kindsOfExecutions))
}

// requireNothingLeft runs executions of every kind and compares the host's resources before and after.
func requireNothingLeft(t *testing.T, executions int) {
	kinds := kindsOfExecutions
	each(t, all, func(t *testing.T, s *Sandbox) {
		run(t, s, "pass", nil)
		before := leftovers(t, s)
		start, stop := starts(s), func() {}
		if _, forks := forking.Load(s); forks {
			server := newForkServer(t, Spec{})
			start = func(ctx context.Context, spec Spec) (*Process, func(), error) {
				process, err := execute(ctx, server, spec)
				return process, func() {}, err
			}
			stop = func() { server.Kill(); server.Wait() }
		}
		own := ownNamespaces(t, "/proc/self/ns/*")
		var (
			numbers atomic.Int64
			running sync.WaitGroup
			mu      sync.Mutex
			foreign = make(map[string]bool)
		)
		for range slots(s) {
			running.Go(func() {
				for i := int(numbers.Add(1)) - 1; i < executions; i = int(numbers.Add(1)) - 1 {
					kind := kinds[i%len(kinds)]
					r, err := try(t.Context(), start, namesNamespaces+kind.code, kind.change)
					if err != nil || r.Err != nil {
						t.Errorf("%s: %v, %v", kind.name, err, r.Err)
					}
					mu.Lock()
					for name := range strings.FieldsSeq(r.out) {
						if !own[name] {
							foreign[name] = true
						}
					}
					mu.Unlock()
				}
			})
		}
		running.Wait()
		stop()
		for what, now := range leftovers(t, s) {
			if now != before[what] {
				t.Errorf("%s: before %s, after %s", what, before[what], now)
			}
		}
		// An orphan may belong to another test's sidecar and end soon.
		var kept []string
		defer func() { t.Log("last in use:", kept) }()
		eventually(t, "no namespace of a program is in use", func() bool {
			kept = inUse(t, foreign)
			return len(kept) == 0
		})
		if s.holds(layerPID) && len(foreign) == 0 {
			t.Error("no program had its own namespace")
		}
		t.Logf("%d executions of %d kinds, in %d separate namespaces", executions, len(kinds), len(foreign))
	})
}

// inUse returns the namespaces that processes of this test are in.
func inUse(t *testing.T, namespaces map[string]bool) (found []string) {
	t.Helper()
	for _, pid := range ours(t) {
		for name := range ownNamespaces(t, "/proc/"+pid+"/ns/*") {
			if namespaces[name] {
				found = append(found, name+" by "+pid)
			}
		}
	}
	return found
}

// ours returns the processes that this test may have left: its descendants, and orphans. Namespaces must be checked by
// process, because the kernel reuses their numbers: a step of another test may now have the number of one of ours.
func ours(t *testing.T) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parents := make(map[string]string)
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		// The name before it may contain spaces and parentheses.
		if fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])); len(fields) > 1 {
			parents[filepath.Base(filepath.Dir(path))] = fields[1]
		}
	}
	var found []string
	for pid, parent := range parents {
		orphan := parent == "1"
		for parent != "" && parent != strconv.Itoa(os.Getpid()) {
			parent = parents[parent]
		}
		if orphan || parent != "" {
			found = append(found, pid)
		}
	}
	return found
}

func ownNamespaces(t *testing.T, pattern string) map[string]bool {
	t.Helper()
	links, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil {
			found[name] = true
		}
	}
	return found
}

// TestDirectoriesAreRemovedWhateverIsInThem covers machines without private file systems.
func TestDirectoriesAreRemovedWhateverIsInThem(t *testing.T) {
	s := newSandbox(t, environments["no namespaces"])
	for _, left := range []struct{ name, code string }{
		{"closed directories",
			"os.makedirs('a/b/c'); open('a/b/f', 'w'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)"},
		{"directories deeper than there are descriptors", "for _ in range(3000): os.mkdir('d'); os.chdir('d')"},
		{"names that are not text", "os.mkdir(b'\\xff\\n'); open(b'\\xff\\n/\\xfe', 'w')"},
		{"links that lead out of the directory", "os.symlink('/', 'root'); os.symlink('..', 'up'); os.mkfifo('f')"},
		{"many files", "os.mkdir('a')\nfor i in range(3000): open('a/%d' % i, 'w').close()"},
	} {
		t.Run(left.name, func(t *testing.T) {
			tmp := t.TempDir()
			for dir := tmp; dir != os.TempDir(); dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o755); err != nil { // each program runs as a different user
					t.Fatal(err)
				}
			}
			t.Setenv("TMPDIR", tmp)
			fewDescriptors(t, 500)
			if r := run(t, s, "import os\nos.chdir(os.environ['HOME'])\n"+left.code, nil); r.out != "" || r.Code != 0 {
				t.Fatalf("%+v: %s", r.Exit, r.out)
			}
			found, err := os.ReadDir(tmp)
			if err != nil || len(found) != 0 {
				t.Errorf("left %v, %v", found, err)
			}
		})
	}
}

// fewDescriptors limits the number of this process's open files until the test ends.
func fewDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
}

func TestStaleCgroupsAreRemoved(t *testing.T) {
	s := newSandbox(t, Config{})
	if s.groups.memory == "" {
		t.Skip("no writable cgroup")
	}
	dead := exec.Command("/bin/true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(s.groups.memory, fmt.Sprintf("%s%d-1", groupPrefix, dead.Process.Pid))
	if err := os.Mkdir(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	newSandbox(t, Config{})
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", stale, err)
	}
}

func TestMissingLayersAreReportedAndRequired(t *testing.T) {
	for _, layer := range isolation {
		_, err := New(Config{Mode: ModeRequired, without: []string{layer}})
		if missing, ok := err.(*MissingError); !ok || !slices.Contains(missing.Layers, layer) {
			t.Errorf("without %s: %v", layer, err)
		}
	}
	s, err := New(Config{Mode: ModeRequired})
	if err != nil {
		t.Skipf("this machine lacks layers: %v", err)
	}
	if r := run(t, s, "print('ok')", nil); r.out != "ok" {
		t.Errorf("got %q", r.out)
	}
	for _, layer := range s.Report() {
		if layer.Required != slices.Contains(isolation, layer.Name) || layer.Means == "" || (!layer.Held && layer.Why == "") {
			t.Errorf("incomplete: %+v", layer)
		}
	}
}

// TestAFailingLayerIsFoundByTheFirstStart breaks a layer after New has probed it.
func TestAFailingLayerIsFoundByTheFirstStart(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.filter = filter("not a program of eight bytes each")
	if r := run(t, s, "print('ok')", nil); r.out != "ok" {
		t.Errorf("got %q", r.out)
	}
	if missing := s.Report().Missing(); !slices.Equal(missing, []string{stage.LayerSeccomp}) {
		t.Errorf("missing: %v", missing)
	}
}

// TestMemoryThatRanOutIsNoFaultOfALayer: otherwise the next program would run without the layer.
func TestMemoryThatRanOutIsNoFaultOfALayer(t *testing.T) {
	s := newSandbox(t, Config{})
	if !slices.ContainsFunc(s.Report(), func(l Layer) bool { return l.Name == layerMemoryCgroup && l.Held }) {
		t.Skip("SKIPPED: no memory cgroup can be made here")
	}
	s.probed.Store(false)
	_, err := s.Start(t.Context(), Spec{Argv: []string{"/bin/true"}, Limits: Limits{Memory: mib}})
	if err == nil || !strings.Contains(err.Error(), "the kernel killed its first process") {
		t.Errorf("a program without memory: %v", err)
	}
	if s.blame(err) || len(s.Report().Missing()) > 0 {
		t.Errorf("missing: %v", s.Report().Missing())
	}
	if r := run(t, s, "print('ok')", nil); r.out != "ok" {
		t.Errorf("the next program: %q", r.out)
	}
}

// TestExhaustionIsNoFaultOfALayer: a machine that lacks files at the moment still has its layers, so nothing may run
// without them.
func TestExhaustionIsNoFaultOfALayer(t *testing.T) {
	s := newSandbox(t, Config{})
	before := s.Report().Missing()
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN} {
		event := stage.Event{Kind: stage.Failed, Layer: stage.LayerFileSystem, Error: "mount: " + errno.Error(),
			Errno: int(errno)}
		for _, err := range []error{&layerError{event.Layer, stageError{event}},
			&layerError{err: fmt.Errorf("start: %w", errno)}} {
			if s.blame(err) || !slices.Equal(s.Report().Missing(), before) {
				t.Errorf("%v: missing are %v", err, s.Report().Missing())
			}
		}
	}
	if !s.holds(stage.LayerFileSystem) {
		t.Skip("SKIPPED: private file systems are not available")
	}
	event := stage.Event{Kind: stage.Failed, Layer: stage.LayerFileSystem, Error: "mount: denied",
		Errno: int(syscall.EPERM)}
	if !s.blame(&layerError{event.Layer, stageError{event}}) || s.holds(stage.LayerFileSystem) {
		t.Error("a layer that the kernel denies is not taken for missing")
	}
}

// TestNoSandboxIsPreparedWithoutFiles: otherwise everything would run without the layers that need a file to be found.
func TestNoSandboxIsPreparedWithoutFiles(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{})
	if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); back != nil {
		t.Fatal(back)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
}
