package sandbox

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

func TestMemoryLimitCountsTheWholeTree(t *testing.T) {
	// Filled with random bytes, so that neither the kernel nor Python can merge or omit pages.
	const fill = `
import os, sys, time
noise = os.urandom(1 << 20)
def fill(mb): return [bytearray(noise) for _ in range(mb)]
`
	programs := []struct {
		name, code string
		killed     bool
	}{
		{"one process over the limit", fill + "x = fill(128); time.sleep(1); print('survived')", true},
		{"four processes that are over it together", fill + `
for _ in range(4):
    if os.fork() == 0: x = fill(30); time.sleep(600); os._exit(0)
for _ in range(4): os.wait()
print("survived", flush=True)`, true},
		{"a process whose first thread has ended", fill + `
import ctypes, threading
def go_on(): x = fill(128); time.sleep(1); print("survived", flush=True); os._exit(0)
if os.fork() == 0:
    threading.Thread(target=go_on).start()
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2), of the calling thread
os.wait()`, true},
		{"four processes that share what they have", fill + `
x = fill(45)
pids = []
ready, tell = os.pipe(); hold, release = os.pipe()
for _ in range(4):
    if os.fork() == 0: os.close(release); os.write(tell, b"x"); os.read(hold, 1); os._exit(0)
got = 0
while got < 4: got += len(os.read(ready, 4))
time.sleep(0.2)
os.close(release)
for _ in range(4): os.wait()
print("survived")`, false},
		{"a sparse mapping of 4 GB", fill + `
import mmap
m = mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(0, 4 << 30, 1 << 28): m[i] = 1
time.sleep(0.1)
print("survived")`, false},
		{"children one after the other", fill + `
for _ in range(5):
    if os.fork() == 0: x = fill(45); os._exit(0)
    os.wait()
print("survived")`, false},
	}
	each(t, all, func(t *testing.T, s *Sandbox) {
		for _, program := range programs {
			t.Run(program.name, func(t *testing.T) {
				r := run(t, s, program.code, func(spec *Spec) { spec.Limits.Memory = 96 * mib })
				if r.OOMKilled != program.killed || strings.Contains(r.out, "survived") == program.killed {
					t.Errorf("got %+v, output %q", r.Exit, r.out)
				}
				if program.killed && (r.PeakMemory < 80*mib || r.Killed) {
					t.Errorf("got peak memory %d MiB, killed by us: %v", r.PeakMemory/mib, r.Killed)
				}
			})
		}
	})
}

func TestProcessesAreLimited(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		r := run(t, s, `
import os, time
n = 0
while True:
    try:
        if os.fork() == 0: time.sleep(600)
    except BlockingIOError: break
    n += 1
time.sleep(0.1)
print(n)`, func(spec *Spec) { spec.Limits.Processes = 40 })
		n, err := strconv.Atoi(r.out)
		if err != nil || n < 30 || n > 40+stage.Threads {
			t.Errorf("started %q processes", r.out)
		}
		if !r.ProcessesRefused || r.Survivors != n || r.PeakProcesses > 40+stage.Threads {
			t.Errorf("got %+v", r.Exit)
		}
	})
}

func TestProcessesCountUntilTheyAreWaitedFor(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		r := run(t, s, `
import os
while True:
    try:
        if os.fork() == 0: os._exit(0)
    except BlockingIOError: break`, func(spec *Spec) { spec.Limits.Processes = 40 })
		if !r.ProcessesRefused {
			t.Errorf("got %+v", r.Exit)
		}
	})
}

func TestCPULimitCountsTheWholeTree(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		for name, code := range map[string]string{
			"one process":     "while True: pass",
			"two processes":   "import os; os.fork()\nwhile True: pass",
			"many short ones": "import os\nwhile True:\n if os.fork() == 0: sum(range(10**6)); os._exit(0)\n os.wait()",
			"orphans":         "import os\nwhile True:\n if os.fork() == 0:\n  if os.fork() == 0: sum(range(10**6))\n  os._exit(0)\n os.wait()",
		} {
			t.Run(name, func(t *testing.T) {
				r := run(t, s, code, func(spec *Spec) { spec.Limits.CPU = 300 * time.Millisecond })
				if !r.CPUExceeded || r.OOMKilled || r.Killed || r.CPU < 250*time.Millisecond {
					t.Errorf("got %+v", r.Exit)
				}
			})
		}
	})
}

func TestProcessorTimeSpentOnAProgramCountsTowardsItsLimit(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		charged := func(ctx context.Context, spec Spec) (*Process, func(), error) {
			process, stop, err := start(ctx, s, spec)
			if err == nil {
				process.ChargeCPU(time.Hour)
			}
			return process, stop, err
		}
		r, err := try(t.Context(), charged, "import time; time.sleep(600)",
			func(spec *Spec) { spec.Limits.CPU = time.Minute })
		if err != nil {
			t.Fatal(err)
		}
		if !r.CPUExceeded || r.CPU > time.Minute {
			t.Errorf("got %+v", r.Exit)
		}
	})
}

func TestFilesAreLimited(t *testing.T) {
	programs := []struct{ name, code string }{
		{"the size of /tmp", `
import errno
try:
    for i in range(100): open(f"/tmp/{i}", "wb").write(bytes(1 << 20))
except OSError as e: print(errno.errorcode[e.errno], i)`},
		{"the number of files in /tmp", `
import errno
try:
    for i in range(1 << 17): open(f"/tmp/{i}", "wb").close()
except OSError as e: print(errno.errorcode[e.errno], 16 if i > 60000 else i)`},
		{"the size of /dev/shm", `
import errno
try:
    for i in range(100): open(f"/dev/shm/{i}", "wb").write(bytes(4 << 20))
except OSError as e: print(errno.errorcode[e.errno], i)`},
	}
	each(t, []string{"forks", "everything", "no user namespaces", "no cgroups"}, func(t *testing.T, s *Sandbox) {
		for _, program := range programs {
			t.Run(program.name, func(t *testing.T) {
				r := run(t, s, program.code, func(spec *Spec) { spec.Limits.Tmp = 16 * mib })
				if r.out != "ENOSPC 16" && r.out != "ENOSPC 15" {
					t.Errorf("got %q", r.out)
				}
			})
		}
	})
	each(t, all, func(t *testing.T, s *Sandbox) {
		r := run(t, s, `
import errno, os
try: f = open(os.environ["HOME"] + "/f", "wb"); f.write(bytes(3 << 20)); f.flush()
except OSError as e: print(errno.errorcode[e.errno])
try:
    while True: os.dup(0)
except OSError as e: print(errno.errorcode[e.errno], flush=True)
os._exit(0)`, func(spec *Spec) { spec.Limits.FileSize, spec.Limits.OpenFiles = 2*mib, 32 })
		if strings.Join(strings.Fields(r.out), " ") != "EFBIG EMFILE" {
			t.Errorf("got %q", r.out)
		}
	})
}
