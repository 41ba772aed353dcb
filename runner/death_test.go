package runner_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

const mib = 1 << 20

// Each step first logs and prints something. Every result must contain both.
const lastWords = "outputs.x = 'assigned'\noutputs.log('last words'); print('printed')\n"

type death struct {
	name    string
	script  string
	limits  runner.Limits
	outcome runner.Outcome
	// says and detail are parts of error.error and error.detail.
	says, detail string
	code         int
	signal       syscall.Signal
}

var deaths = []death{
	{name: "raise", script: "raise ValueError('no')", outcome: outcomes.Exception, says: "ValueError: no",
		detail: `File "script.py", line 3, in <module>`, code: 1},
	{name: "a full disk on a server", script: "raise RuntimeError('the server says: [Errno 28] No space left on device')",
		outcome: outcomes.Exception, says: "left on device"},
	{name: "base exception", script: "raise KeyboardInterrupt", outcome: outcomes.Exception, says: "KeyboardInterrupt"},
	{name: "sys.exit", script: "import sys; sys.exit(7)", outcome: outcomes.Exited, says: "SystemExit: 7", code: 7},
	{name: "sys.exit of a text", script: "import sys; sys.exit('no luck')", outcome: outcomes.Exited,
		says: "SystemExit: no luck", code: 1},
	{name: "sys.exit of True", script: "import sys; sys.exit(True)", outcome: outcomes.Exited, says: "SystemExit: True",
		code: 1},
	{name: "sys.exit of a signal", script: "import signal, sys; sys.exit(signal.SIGTERM)", outcome: outcomes.Exited,
		says: "SystemExit", code: 15},
	{name: "sys.exit of a huge number", script: "import sys; sys.exit(2 ** 70)", outcome: outcomes.Exited,
		says: "SystemExit: 1180591620717411303424", code: 1},
	{name: "os._exit", script: "import os; os._exit(3)", outcome: outcomes.Exited,
		says: "exited: the step's process left with code 3 and did not hand over a result", code: 3},
	{name: "a frame that begins and does not end",
		script: "import os\nfor fd in range(3, 256):\n  try: os.write(fd, b'\\x00\\x00\\x10\\x00')\n  except OSError: pass\nraise ValueError", outcome: outcomes.Exited, says: "did not hand over a result", code: 1},
	{name: "os._exit with code 0", script: "import os; os._exit(0)", outcome: outcomes.ResultMissing,
		says: "result missing"},
	{name: "SIGKILL", script: "import os; os.kill(os.getpid(), 9)", outcome: outcomes.KilledBySignal, says: "SIGKILL",
		code: -1, signal: syscall.SIGKILL},
	{name: "SIGTERM", script: "import os; os.kill(os.getpid(), 15)", outcome: outcomes.KilledBySignal, says: "SIGTERM",
		code: -1, signal: syscall.SIGTERM},
	{name: "abort", script: "import os; os.abort()", outcome: outcomes.KilledBySignal, says: "SIGABRT", code: -1,
		signal: syscall.SIGABRT},
	{name: "segmentation fault", script: "import ctypes; ctypes.string_at(0)", outcome: outcomes.KilledBySignal,
		says: "SIGSEGV", detail: "  File \"script.py\", line 3, in <module>\n    import ctypes", code: -1,
		signal: syscall.SIGSEGV},
	{name: "recursion", script: "def f(): f()\nf()", outcome: outcomes.Exception, says: "RecursionError"},
	{name: "stack overflow", script: "import faulthandler; faulthandler._stack_overflow()",
		outcome: outcomes.KilledBySignal, says: "SIGSEGV", code: -1, signal: syscall.SIGSEGV},
	{name: "infinite loop", script: "while True: pass", limits: runner.Limits{Wall: time.Second},
		outcome: outcomes.Timeout, says: "timeout: the step was still running at its limit of 1s",
		detail: "Main thread (most recent call last):\n  File \"script.py\", line 3, in <module>\n    while True: pass\n"},
	{name: "infinite loop in C", script: "def f(): sum(iter(int, 1))\nf()", limits: runner.Limits{Wall: time.Second},
		outcome: outcomes.Timeout, says: "1s",
		detail: "line 4, in <module>\n    f()\n  File \"script.py\", line 3, in f\n    def f(): sum(iter(int, 1))\n"},
	{name: "a thread that does not end",
		script: "import threading, time\ndef work(): time.sleep(99)\nthreading.Thread(target=work, name='worker').start()",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout,
		says:   "timeout: the step's body had ended, and its thread \"worker\" was still running at its limit of 1s",
		detail: "Thread \"worker\" (most recent call last):\n  File \"script.py\", line 4, in work\n"},
	{name: "a thread that does not end, outside the step's code",
		script: "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), name='worker').start()",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "its thread \"worker\" was",
		detail: "Thread \"worker\" (most recent call last):\n  in no line of the step's own\n"},
	{name: "a thread that does not end after the body failed",
		script: "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\nraise ValueError('no')",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout,
		says:   "timeout: the step's body had ended with ValueError: no, and its thread \"Thread-1 (sleep)\" was",
		detail: "line 5, in <module>\n    raise ValueError('no')\n"},
	{name: "one of two threads that does not end",
		script: "import threading, time\nfor i in (0.1, 99): threading.Thread(target=time.sleep, args=(i,), name=f'for {i}').start()", limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "its thread \"for 99\" was"},
	{name: "an executor that does not end",
		script: "import time\nfrom concurrent.futures import ThreadPoolExecutor\ndef work(): time.sleep(99)\nThreadPoolExecutor(2).submit(work)", limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "its thread \"ThreadPoolExecutor-0_0\" was", detail: "line 5, in work\n"},
	{name: "an exit handler that does not end",
		script: "import atexit, time\n@atexit.register\ndef late(): time.sleep(99)", limits: runner.Limits{Wall: time.Second},
		outcome: outcomes.Timeout,
		says:    "timeout: the step's body had ended, and an exit handler was still running at its limit of 1s",
		detail:  "Main thread (most recent call last):\n  File \"script.py\", line 5, in late\n"},
	{name: "threads beside a busy main thread",
		script: "import threading, time\ndef work(): time.sleep(99)\nthreading.Thread(target=work).start()\nwhile True: pass",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "1s",
		detail: "line 6, in <module>\n    while True: pass\n\nAnother thread (most recent call last):\n  File \"script.py\", line 4, in work\n"},
	{name: "deadlock", script: "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "1s"},
	{name: "signals ignored",
		script: "import signal, time\nfor s in (1, 2, 3, 13, 14, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "1s"},
	{name: "child holds the pipe",
		script: "import subprocess, time\nsubprocess.Popen(['sleep', '99'], start_new_session=True)\ntime.sleep(99)",
		limits: runner.Limits{Wall: time.Second}, outcome: outcomes.Timeout, says: "1s"},
	{name: "CPU time", script: "while True: pass", limits: runner.Limits{CPU: time.Second}, outcome: outcomes.CPULimit,
		says:   "cpu limit: the step used more than 1s of processor time",
		detail: "Main thread (most recent call last):\n  File \"script.py\", line 3, in <module>\n    while True: pass\n"},
	{name: "CPU time of children",
		script: "import os, time\nfor _ in range(3):\n  if os.fork() == 0:\n    while True: pass\ntime.sleep(15)",
		limits: runner.Limits{CPU: time.Second}, outcome: outcomes.CPULimit, says: "1s",
		detail: "line 7, in <module>\n    time.sleep(15)\n"},
	{name: "CPU time of a thread",
		script: "import threading\ndef work():\n  while True: pass\nthreading.Thread(target=work).start()",
		limits: runner.Limits{CPU: time.Second}, outcome: outcomes.CPULimit, says: "1s", detail: "line 5, in work\n"},
	{name: "memory", script: "x = []\nwhile True: x.append(bytearray(b'x' * 1048576))",
		limits: runner.Limits{Memory: 128 * mib}, outcome: outcomes.MemoryLimit, says: "128 MiB"},
	{name: "memory that grows slowly",
		script: "import time\nx = []\ndef grow():\n  while True: x.append(bytearray(b'x' * 1048576)); time.sleep(0.02)\ngrow()", limits: runner.Limits{Memory: 128 * mib}, outcome: outcomes.MemoryLimit, says: "128 MiB", detail: "When the step was last seen near its limit:\n\nMain thread (most recent call last):\n  File \"script.py\", line 7, in <module>\n    grow()\n  File \"script.py\", line 6, in grow\n"},
	{name: "memory that grows slowly with signals reset",
		script: "import signal, time\nfor s in range(1, signal.NSIG):\n  if s not in (9, 19, 32, 33): signal.signal(s, signal.SIG_DFL)\nx = []\nwhile len(x) < 90: x.append(bytearray(b'x' * 1048576)); time.sleep(0.02)\nraise ValueError('lives')", limits: runner.Limits{Memory: 128 * mib}, outcome: outcomes.Exception, says: "ValueError: lives", detail: "line 8"},
	{name: "memory of four children",
		script: "import os, time\nfor _ in range(4):\n  if os.fork() == 0:\n    x = bytearray(b'x' * (60 << 20)); time.sleep(30)\ntime.sleep(15)", limits: runner.Limits{Memory: 160 * mib}, outcome: outcomes.MemoryLimit, says: "160 MiB"},
	{name: "memory of four children of 300 MB",
		script: "import os, time\nfor _ in range(4):\n  if os.fork() == 0:\n    x = bytearray(b'x' * (300 << 20)); time.sleep(30)\ntime.sleep(15)", outcome: outcomes.MemoryLimit, says: "1 GiB"},
	{name: "processes", script: "import os, time\nfor _ in range(99):\n  if os.fork() == 0: time.sleep(30)",
		limits: runner.Limits{Processes: 16}, outcome: outcomes.ProcessLimit, says: "16 processes"},
	{name: "threads",
		script: "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()", limits: runner.Limits{Processes: 16}, outcome: outcomes.ProcessLimit, says: "16 processes"},
	{name: "open files", script: "x = [open('/dev/null') for _ in range(999)]", limits: runner.Limits{OpenFiles: 128},
		outcome: outcomes.Exception, says: "128 open files"},
	{name: "file size", script: "open('/tmp/x', 'wb').write(b'x' * (3 << 20))", limits: runner.Limits{FileSize: 2 * mib},
		outcome: outcomes.OutputLimit, says: "2 MiB"},
	{name: "size of /tmp", script: "for i in range(9): open(f'/tmp/{i}', 'wb').write(b'x' * (1 << 20))",
		limits: runner.Limits{TmpSize: 4 * mib}, outcome: outcomes.OutputLimit, says: "4 MiB"},
	{name: "files in /tmp", script: "for i in range(1 << 17): open(f'/tmp/{i}', 'w').close()",
		outcome: outcomes.OutputLimit, says: "in 65536 files"},
	{name: "size of /dev/shm", script: "open('/dev/shm/x', 'wb').write(bytes(70 << 20))", outcome: outcomes.OutputLimit,
		says: "/dev/shm 64 MiB"},
	{name: "result size", script: "outputs.x = 'x' * (2 << 20)", limits: runner.Limits{Result: mib},
		outcome: outcomes.OutputLimit, says: "output limit: the result is larger than 1 MiB"},
	{name: "syntax error", script: "x = = 1", outcome: outcomes.SyntaxError, says: "SyntaxError"},
	{name: "result that cannot be written", script: "outputs.n = object()", outcome: outcomes.ResultNotSerialisable,
		says:   `TypeError: output "n" cannot be written as 'n': expected a number, got object`,
		detail: `File "script.py", line 3`},
	{name: "number that is not finite",
		script:  "from decimal import Decimal\ndef f(): outputs.n = Decimal('Infinity')\nf()",
		outcome: outcomes.ResultNotSerialisable,
		says:    `TypeError: output "n" cannot be written as 'n': expected a finite number, got Decimal Decimal('Infinity')`,
		detail:  "line 4, in f"},
	{name: "list that holds itself", script: "l = []\nl.append(l)\noutputs.l = l", outcome: outcomes.ResultNotSerialisable,
		says: `lists nest deeper than 64`, detail: "line 5"},
	{name: "list that changes after its assignment", script: "l = []\noutputs.l = l\nl.append(object())",
		outcome: outcomes.ResultNotSerialisable,
		says:    `TypeError: output "l" cannot be written as 'l': element 0: expected a value that has a Kizen type, got object`,
		detail:  `File "script.py", line 4`},
	{name: "result whose error cannot be formatted",
		script: "class E(Exception):\n  def __str__(self): raise self\nclass N:\n  def __index__(self): raise E\noutputs.n = N()", outcome: outcomes.ResultNotSerialisable, says: `"n"`},
	{name: "result that exits with code 0",
		script:  "class N:\n  def __index__(self): raise SystemExit(0)\noutputs.n = N()",
		outcome: outcomes.ResultNotSerialisable, says: `output "n"`, detail: "SystemExit"},
	{name: "half a surrogate pair", script: "outputs.x = 'a\\ud800'", outcome: outcomes.ResultNotSerialisable,
		says: `output "x"`, detail: "line 3"},
	{name: "raise under a small limit on results", script: "raise ValueError('no' * 999)",
		limits: runner.Limits{Result: 1 << 10}, outcome: outcomes.Exception, says: "ValueError: nono"},
	{name: "raise without a descriptor left",
		script: "x = []\ntry:\n  while True: x.append(open('/dev/null'))\nexcept OSError: pass\nraise ValueError('really')",
		limits: runner.Limits{OpenFiles: 64}, outcome: outcomes.Exception, says: "ValueError: really", detail: "line 7"},
	{name: "raise without modules", script: "import sys; sys.modules.clear(); raise ValueError('no')",
		outcome: outcomes.Exception, says: "ValueError"},
	{name: "raise without imports", script: "import builtins; builtins.__import__ = None; raise ValueError('no')",
		outcome: outcomes.Exception, says: "ValueError"},
	{name: "raise at the bottom of the stack", script: "import sys; sys.setrecursionlimit(30); raise ValueError('no')",
		outcome: outcomes.Exception, says: "ValueError"},
	{name: "no builtins", script: "import builtins; builtins.len = builtins.isinstance = None; raise ValueError('no')",
		outcome: outcomes.ResultMissing, says: "without handing over a result"},
	{name: "signal handler that raises in the end",
		script: "import signal\ndef late(*_): raise KeyboardInterrupt\nsignal.signal(signal.SIGALRM, late)\nclass L(list):\n  def __iter__(self): signal.raise_signal(signal.SIGALRM); raise ValueError('really')\nl = L()\nL.__iter__, iterate = list.__iter__, L.__iter__\noutputs.l = l\nL.__iter__ = iterate", outcome: outcomes.ResultNotSerialisable, says: "ValueError: output \"l\" cannot be written as 'l': really"},
	{name: "undeclared output", script: "outputs.undeclared = 1", outcome: outcomes.Exception, says: "undeclared"},
	{name: "every descriptor closed", script: "import os; os.closerange(0, 1024)", outcome: outcomes.ResultMissing,
		says: "result missing"},
	{name: "garbage on every descriptor",
		script: "import os\nfor fd in range(3, 256):\n  try: os.write(fd, b'\\x00\\x00\\x00\\x02{}' * 9 + b'garbage' * 99)\n  except OSError: pass\nraise ValueError", outcome: outcomes.ResultMissing},
	{name: "forged result",
		script: "import os, json\nbody = json.dumps({'k': 'result', 'n': '0' * 32, 'ok': True, 'values': {'x': {'t': 's', 'v': 'forged'}}}).encode()\nfor fd in range(3, 256):\n  try: os.write(fd, len(body).to_bytes(4, 'big') + body)\n  except OSError: pass\nraise ValueError('really')", outcome: outcomes.Exception, says: "ValueError: really"},
}

func TestEveryFailureHasItsOutcomeAndMessage(t *testing.T) {
	r := newRunner(t, runner.Config{})
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			prepared, err := r.Prepare(context.Background(), runner.DefaultRuntime, limitsWith(d.limits))
			if err != nil {
				t.Fatal(err)
			}
			d.check(t, prepared)
		})
	}
}

func TestFailuresInAForkAreReportedTheSame(t *testing.T) {
	f := newForkServer(t, runner.Config{})
	defer f.Close()
	for _, d := range deaths {
		limits := limitsWith(d.limits)
		if d.limits.Wall != 0 || d.limits.CPU != 0 || !limits.ShareProcess(runner.Limits{}.WithDefaults()) {
			continue // it takes too long, or needs a separate server
		}
		t.Run(d.name, func(t *testing.T) {
			prepared, err := f.Prepare(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			prepared.Relimit(limits)
			d.check(t, prepared)
		})
	}
}

// check runs the step in an interpreter that already has the limits.
func (d death) check(t *testing.T, prepared *runner.Prepared) {
	t.Helper()
	script := lastWords + d.script
	if d.outcome == outcomes.SyntaxError {
		script = d.script
	}
	begun := time.Now()
	result, err := prepared.Run(context.Background(), runner.Execution{
		ID: d.name, Script: []byte(script), Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "n", Type: "n"},
			{Name: "l", Type: "l"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != d.outcome || result.Error == nil {
		t.Fatalf("got %s, want %s: %+v\nstderr: %s", result.Outcome, d.outcome, result.Error, result.Stderr)
	}
	if !strings.Contains(result.Error.Message, d.says) || !strings.Contains(result.Error.Detail, d.detail) {
		t.Errorf("got %q, want %q in it\ndetail %s", result.Error.Message, d.says, result.Error.Detail)
	}
	if result.Values != nil {
		t.Errorf("outputs of a failed step were kept: %v", result.Values)
	}
	if len(result.Logs) != 1 && d.outcome != outcomes.SyntaxError {
		t.Errorf("the logs are %q", result.Logs)
	}
	if result.Stdout != "printed\n" && d.outcome != outcomes.SyntaxError {
		t.Errorf("%q is left of the printed output", result.Stdout)
	}
	if d.signal != result.Evidence.Signal && d.signal != 0 || d.code != 0 && d.code != result.Evidence.ExitCode {
		t.Errorf("the evidence is %+v", result.Evidence)
	}
	if d.outcome == outcomes.Timeout {
		if result.Evidence.Wall < d.limits.Wall {
			t.Errorf("stopped after %s, before its limit", result.Evidence.Wall)
		}
		late := time.Since(begun) - d.limits.Wall
		if late > 30*time.Second {
			t.Errorf("returned %s after its limit: the runner waited for a process that ignores signals or keeps the pipe open",
				late)
		}
		t.Logf("returned %s after the limit", late)
	}
}

func TestAFullDiskIsAnExceptionWithoutAPrivateFileSystem(t *testing.T) {
	for mode, want := range map[sandbox.Mode]runner.Outcome{sandbox.ModeOff: outcomes.Exception,
		sandbox.ModeAuto: outcomes.OutputLimit} {
		r := newRunner(t, runner.Config{Sandbox: mode})
		if mode == sandbox.ModeAuto && slices.Contains(r.Sandbox().Withheld(), stage.LayerFileSystem) {
			t.Skip("private file systems are not available")
		}
		result := run(t, r, "raise OSError(28, 'No space left on device')")
		if result.Outcome != want || strings.Contains(result.Error.Message, "/tmp") != (want == outcomes.OutputLimit) {
			t.Errorf("--sandbox=%s: got %s: %+v", mode, result.Outcome, result.Error)
		}
	}
}

func TestEveryOutcomeOfAFailedStepIsTested(t *testing.T) {
	// Outcomes that are not deaths of a step: success, a stop from outside, our own errors, and executions whose step
	// did not run here.
	known := []runner.Outcome{outcomes.OK, outcomes.Cancelled, outcomes.Internal, outcomes.Refused, outcomes.NotStarted,
		outcomes.WorkerDied}
	for _, d := range deaths {
		known = append(known, d.outcome)
	}
	for _, outcome := range outcomes.All() {
		if !slices.Contains(known, outcome) {
			t.Errorf("no step dies of %s", outcome)
		}
	}
}

func TestNoResourceIsLeftAfterAnyFailure(t *testing.T) { requireNothingLeft(t, 1) }

func TestTortureNoResourceIsLeftAfterManyFailures(t *testing.T) { requireNothingLeft(t, 12) }

// requireNothingLeft runs steps of every kind several times, and counts the resources that they leave in this process.
// The sandbox's own test counts the resources that they leave on the machine.
func requireNothingLeft(t *testing.T, times int) {
	t.Helper()
	r := newRunner(t, runner.Config{})
	scripts := []string{"outputs.x = 'done'",
		"import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"}
	for _, d := range deaths {
		if d.limits.Wall == 0 && d.limits.CPU == 0 && d.outcome != outcomes.MemoryLimit {
			scripts = append(scripts, d.script)
		}
	}
	run(t, r, "pass")
	before := held(t)
	var numbers atomic.Int64
	var running sync.WaitGroup
	for range 2 * goruntime.NumCPU() {
		running.Go(func() {
			for i := int(numbers.Add(1)) - 1; i < times*len(scripts); i = int(numbers.Add(1)) - 1 {
				execution := runner.Execution{
					ID: "many", Script: []byte(scripts[i%len(scripts)]),
					Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "n", Type: "n"}},
				}
				if _, err := r.Run(context.Background(), execution); err != nil {
					t.Errorf("%s: %v", execution.Script, err)
				}
			}
		})
	}
	running.Wait()
	if after := held(t); after != before {
		t.Errorf("before %s, after %s", before, after)
	}
	t.Logf("%d executions of %d kinds", times*len(scripts), len(scripts))
}

// held returns this process's descriptors and children.
func held(t *testing.T) string {
	t.Helper()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var children []byte
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range lists {
		list, _ := os.ReadFile(path) // the thread may have ended
		children = append(children, list...)
	}
	return fmt.Sprintf("%d descriptors, children %q", len(descriptors), children)
}

func limitsWith(l runner.Limits) runner.Limits {
	if l.Wall == 0 {
		l.Wall = 20 * time.Second
	}
	return l.WithDefaults()
}

func TestACancelledStepIsStopped(t *testing.T) {
	r := newRunner(t, runner.Config{})
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	time.AfterFunc(200*time.Millisecond, func() { cancel(errors.New("enough")) })
	result, err := r.Run(ctx, runner.Execution{ID: "c", Script: []byte("outputs.log('hi')\nimport time; time.sleep(30)")})
	if err != nil || result.Outcome != outcomes.Cancelled {
		t.Fatalf("got %+v, %v", result, err)
	}
}

func TestASparseMappingDoesNotCountAsMemory(t *testing.T) {
	result := run(t, newRunner(t, runner.Config{}), "import mmap; m = mmap.mmap(-1, 4 << 30); outputs.x = 'kept'")
	if result.Outcome != outcomes.OK {
		t.Errorf("got %s: %+v", result.Outcome, result.Error)
	}
}

func TestThreadsAndProcessesThatOutliveTheBodyAreKilled(t *testing.T) {
	r := newRunner(t, runner.Config{})
	for name, script := range map[string]string{
		"thread":           "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
		"child":            "import subprocess; subprocess.Popen(['sleep', '60'])",
		"daemon":           "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)",
		"child with nohup": "import subprocess; subprocess.Popen(['nohup', 'setsid', 'sleep', '60'])",
	} {
		result := run(t, r, script+"\noutputs.x = 'done'")
		if result.Outcome != outcomes.OK || result.Phases.Teardown > 5*time.Second {
			t.Errorf("%s: %s after %s: %+v", name, result.Outcome, result.Phases.Teardown, result.Error)
		}
	}
}

func TestMuchOutputDoesNotBlockTheStep(t *testing.T) {
	result := run(t, newRunner(t, runner.Config{}),
		"import os\nfor _ in range(100): os.write(1, b'x' * (1 << 20)); os.write(2, b'y' * 4096)\nprint('end')\noutputs.x = 'done'")
	if result.Outcome != outcomes.OK || len(result.Stdout) != 8<<10 || !strings.HasSuffix(result.Stdout, "end\n") {
		t.Errorf("got %s: %+v, %d bytes printed", result.Outcome, result.Error, len(result.Stdout))
	}
}

func TestATruncatedSecretIsRedacted(t *testing.T) {
	secret := "s3cret-4711-" + strings.Repeat("z", 20)
	r := newRunner(t, runner.Config{})
	// Wherever the kept output begins, it must contain no part of the secret.
	for _, after := range []int{8<<10 - 5, 8 << 10, 16<<10 - 30, 16<<10 - 5, 16 << 10} {
		result := run(t, r, fmt.Sprintf("print(secrets['k'] + 'x' * %d, end='')", after), func(e *runner.Execution) {
			e.Secrets = map[string]runner.Secret{"k": runner.NewSecret(secret)}
		})
		if strings.Contains(result.Stdout, "z") || !strings.HasSuffix(result.Stdout, strings.Repeat("x", 8000)) ||
			len(result.Stdout) > 8<<10 {
			t.Errorf("%d bytes after the secret: %d bytes, %.40q", after, len(result.Stdout), result.Stdout)
		}
	}
}

func TestAnEmptyMessageCountsAsOneByte(t *testing.T) {
	result := run(t, newRunner(t, runner.Config{}), ownFrames+"for _ in range(120): send({'k': 'log', 'm': ''}, 1000)\n",
		func(e *runner.Execution) {
			e.Timeout = runner.MaxWall // under the race detector on a busy machine
		})
	if result.Outcome != outcomes.OK || len(result.Logs) != 100<<10 || result.Dropped.Messages != 120000-100<<10 {
		t.Errorf("%d messages were kept, dropped %+v, %s: %+v", len(result.Logs), result.Dropped, result.Outcome,
			result.Error)
	}
}

func TestAForkedChildThatLogsTooMuchLosesTheRestOfItsLogs(t *testing.T) {
	result := run(t, newRunner(t, runner.Config{}), `
import os
if os.fork() == 0:
  for _ in range(400000): outputs.log("x")
  os._exit(0)
os.wait()`)
	if result.Outcome != outcomes.OK || len(result.Logs) != 100<<10 || result.Dropped.Messages < (400000-100<<10)/2 {
		t.Errorf("%d messages were kept, dropped %+v, %s: %+v", len(result.Logs), result.Dropped, result.Outcome,
			result.Error)
	}
}

// ownFrames is a step that reads the nonce from the harness and sends frames in its place.
const ownFrames = `
import json, posix, sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "channel"):
    frame = frame.f_back
channel = frame.f_locals["self"].channel
def send(fields, times):
    body = json.dumps({"n": channel.nonce, **fields}).encode()
    for _ in range(times):
        posix.write(channel.events, body)
`

func TestCallsWithTheLargestHeadersAreRecordedUnderASmallLimitOnResults(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := range 60 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat(`"`, 2048))
		}
	}))
	t.Cleanup(server.Close)
	prepared, err := newRunner(t, runner.Config{}).Prepare(t.Context(), runner.DefaultRuntime,
		limitsWith(runner.Limits{Result: 1 << 10}))
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("import requests; requests.get(%q)", server.URL)
	result, err := prepared.Run(t.Context(), runner.Execution{ID: "headers", Script: []byte(script)})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != outcomes.OK || len(result.HTTP.Requests) != 1 {
		t.Errorf("%s: %+v, %d calls", result.Outcome, result.Error, len(result.HTTP.Requests))
	}
}

func TestLogsAreCappedAndCounted(t *testing.T) {
	result := run(t, newRunner(t, runner.Config{}),
		"outputs.log('é' * 5000)\nfor i in range(300): outputs.log('x' * 1000)")
	total := 0
	for _, line := range result.Logs {
		total += len(line)
	}
	if result.Outcome != outcomes.OK || len(result.Logs[0]) != 8192 || total > 100<<10 || result.Dropped.Messages < 190 {
		t.Errorf("got %s: first %d bytes, %d in all, dropped %+v", result.Outcome, len(result.Logs[0]), total, result.Dropped)
	}
}

func TestTheLimitsOfAnExecutionAreChecked(t *testing.T) {
	r := newRunner(t, runner.Config{})
	_, err := r.Run(context.Background(), runner.Execution{Script: []byte("\xff"), Timeout: time.Minute, Memory: -1})
	var fields *runner.FieldErrors
	want := `{"memory":["must be positive"],"timeout":["must be at most 55s, not 1m0s"],"user_script":["the script is not UTF-8; save it as UTF-8"]}`
	if !errors.As(err, &fields) || !sameJSON(t, marshal(t, fields), want) {
		t.Errorf("got %v", err)
	}
}

func TestAnInterpreterThatDoesNotStartIsTheSidecarsFailure(t *testing.T) {
	for python, want := range map[string]error{
		"/nonexistent/python3":   runner.ErrNoPython,
		"/bin/true":              runner.ErrNoPython,
		"/bin/false":             runner.ErrNoPython,
		calledPython(t, "true"):  runner.ErrHarness,
		calledPython(t, "false"): runner.ErrHarness,
		"/etc/passwd":            runner.ErrNoPython,
	} {
		r, err := runner.New(runner.Config{Python: python})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(context.Background(), runner.Execution{ID: "x", Script: []byte("pass")}); !errors.Is(err, want) {
			t.Errorf("%s gave %v, want %v", python, err, want)
		}
	}
}

// calledPython is a program that is a Python only by name.
func calledPython(t *testing.T, program string) string {
	t.Helper()
	binary, err := os.ReadFile("/bin/" + program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "python3.13")
	if err := os.WriteFile(path, binary, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func ExampleOutcome() {
	for _, outcome := range outcomes.All() {
		fmt.Println(outcome)
	}
	// Output:
	// ok
	// syntax_error
	// exception
	// timeout
	// cpu_limit
	// memory_limit
	// process_limit
	// output_limit
	// killed_by_signal
	// exited
	// result_missing
	// result_not_serialisable
	// cancelled
	// internal
	// refused
	// not_started
	// worker_died
}
