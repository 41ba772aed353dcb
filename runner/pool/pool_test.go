package pool

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var limits = runner.Limits{Wall: 20 * time.Second}.WithDefaults()

func newPool(t testing.TB, size int, config runner.Config) *Pool {
	t.Helper()
	if _, _, err := runner.FindInterpreter(runner.DefaultRuntime, config.Python, false); err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	steps, err := runner.New(config)
	if err != nil {
		t.Fatal(err)
	}
	p := New(Config{Source: steps, Size: size, Limits: limits})
	t.Cleanup(p.Close)
	return p
}

// take waits for a warm interpreter.
func take(t testing.TB, p *Pool) *runner.Prepared {
	t.Helper()
	select {
	case prepared := <-p.of(runner.DefaultRuntime).waiting:
		return prepared
	case <-time.After(5 * time.Minute):
		t.Fatal("no interpreter became warm")
		return nil
	}
}

// run runs script in a warm interpreter. The outputs "x" and "y" are strings.
func run(t testing.TB, p *Pool, script string, secrets map[string]runner.Secret) runner.Result {
	t.Helper()
	prepared := take(t, p)
	prepared.Relimit(limits)
	result, err := prepared.Run(context.Background(), runner.Execution{
		ID: "warm", Script: []byte(script), Secrets: secrets,
		Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "y", Type: "s"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != outcomes.OK {
		t.Fatalf("%s: %+v", result.Outcome, result.Error)
	}
	return result
}

// hunts are pairs of scripts. The first leaves something behind, and the next execution searches for it and raises if
// it finds it. found does both in one execution, to show that the search works.
var hunts = []struct{ name, leave, look string }{
	{"globals", "import builtins, __main__\nbuiltins.leak = __main__.leak = leak = 1",
		"import builtins, __main__\nassert not hasattr(builtins, 'leak') and not hasattr(__main__, 'leak') and 'leak' not in globals()"},
	{"modules", "import sys, types\nsys.modules['leak'] = types.ModuleType('leak')",
		"import sys\nassert 'leak' not in sys.modules"},
	{"changed modules", "import json, requests\njson.leak = requests.Session.leak = requests.get.__globals__['leak'] = 1",
		"import json, requests\nassert not hasattr(json, 'leak') and not hasattr(requests.Session, 'leak') and 'leak' not in requests.get.__globals__"},
	{"the harness", "type(kizen).leak = type(outputs).leak = 1",
		"assert not hasattr(type(kizen), 'leak') and not hasattr(type(outputs), 'leak')"},
	{"import hooks and path", "import sys\nsys.path.append('/tmp/leak'); sys.meta_path.append('leak')",
		"import sys\nassert '/tmp/leak' not in sys.path and 'leak' not in sys.meta_path"},
	{"files", "open('/tmp/leak', 'w').close(); open('/dev/shm/leak', 'w').close()",
		"import os\nassert not os.listdir('/tmp') and not os.listdir('/dev/shm')"},
	{"environment", "import os\nos.environ['LEAK'] = '1'",
		"import os\nassert 'LEAK' not in os.environ and b'LEAK' not in open('/proc/self/environ', 'rb').read()"},
	{"working directory", "import os\nos.mkdir('/tmp/d'); os.chdir('/tmp/d')", "import os\nassert os.getcwd() == '/tmp'"},
	{"signal handlers", "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)",
		"import signal\nassert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL"},
	{"umask", "import os\nos.umask(0o777)", "import os\nassert os.umask(0o22) != 0o777"},
	{"threads", "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
		"import threading\nassert threading.active_count() == 1"},
	{"processes", "import subprocess\nsubprocess.Popen(['sleep', '99'], start_new_session=True)",
		"import os\nassert not [p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid()))]"},
	{"descriptors", "import socket\nsockets = [socket.socket() for _ in range(9)]",
		"import os\nassert len(os.listdir('/proc/self/fd')) <= 7, os.listdir('/proc/self/fd')"},
	{"flags of descriptors", "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK); fcntl.fcntl(0, 10, 9)",
		"import fcntl, os\nassert not fcntl.fcntl(0, fcntl.F_GETFL) & os.O_NONBLOCK and not fcntl.fcntl(0, 11)"},
	{"cookies and sessions", "import requests\nrequests.sessions.Session.__init__.__defaults__ = ('leak',)",
		"import requests\nassert requests.sessions.Session.__init__.__defaults__ is None"},
}

func TestAnExecutionSeesNothingOfAnEarlierOne(t *testing.T) {
	p := newPool(t, 2, runner.Config{})
	for _, hunt := range hunts {
		t.Run(hunt.name, func(t *testing.T) {
			run(t, p, hunt.leave, nil)
			run(t, p, hunt.look, nil)
			run(t, p,
				hunt.leave+"\ntry:\n  exec("+quote(hunt.look)+")\nexcept AssertionError: pass\nelse: raise Exception('not found')", nil)
		})
	}
}

func quote(s string) string {
	return `"` + strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`).Replace(s) + `"`
}

// secretHunt searches all memory that the step can read. Its pattern does not match itself.
const secretHunt = `
import re
pattern, found = re.compile(b'hush[-]hush[-]4711'), 0
with open('/proc/self/mem', 'rb') as memory:
    for line in open('/proc/self/maps').read().splitlines():
        span, mode = line.split()[:2]
        if 'r' not in mode or '[v' in line:
            continue
        start, end = (int(x, 16) for x in span.split('-'))
        memory.seek(start)
        try:
            found += len(pattern.findall(memory.read(end - start)))
        except OSError:
            pass
outputs.x = str(found > 0)
`

func TestASecretIsInTheMemoryOfItsOwnExecutionOnly(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	own := run(t, p, "s = secrets['k']"+secretHunt, map[string]runner.Secret{"k": runner.NewSecret("hush-hush-4711")})
	// This interpreter was loaded while the sidecar's memory contained the secret.
	next := run(t, p, secretHunt, nil)
	if got := own.Values[0].Value().V; got != "True" {
		t.Fatalf("the search does not find an existing secret: %v", got)
	}
	if got := next.Values[0].Value().V; got != "False" {
		t.Errorf("the next execution found the secret: %v", got)
	}
}

func TestRandomStatesDiffer(t *testing.T) {
	p := newPool(t, 2, runner.Config{})
	seen := map[any]bool{}
	for range 4 {
		result := run(t, p,
			"import random, uuid, tempfile\noutputs.x = f'{random.random()} {random.SystemRandom().random()}'\noutputs.y = f'{uuid.uuid4()} {next(tempfile._get_candidate_names())}'", nil)
		for _, value := range result.Values {
			for part := range strings.FieldsSeq(value.Value().V.(string)) {
				if seen[part] {
					t.Errorf("%s came twice", part)
				}
				seen[part] = true
			}
		}
	}
}

func TestConnectionsAreNotShared(t *testing.T) {
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	p := newPool(t, 1, runner.Config{})
	prepared := take(t, p)
	if opened.Load() != 0 {
		t.Error("a waiting interpreter has opened a connection")
	}
	prepared.Discard()
	for n := range int64(3) {
		run(t, p, "import requests\nsession = requests.Session()\nfor _ in range(3): session.get('"+server.URL+"')", nil)
		if opened.Load() != n+1 {
			t.Errorf("%d executions used %d connections", n+1, opened.Load())
		}
	}
}

func TestAWarmInterpreterIsLoadedBeforeItsExecutionBegins(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	result := run(t, p, "import sys\nassert 'requests' in sys.modules and sys.modules['__main__'].__name__ == '__main__'",
		nil)
	if result.Phases.Spawn != 0 {
		t.Errorf("the phases are %+v", result.Phases)
	}
}

func TestThePoolStartsAColdInterpreterIfNoneFits(t *testing.T) {
	p := newPool(t, 0, runner.Config{})
	for name, asked := range map[string]runner.Limits{"nothing waits": limits, "other limits": {Memory: 256 << 20}} {
		prepared, err := p.Prepare(context.Background(), "", asked)
		if err != nil {
			t.Fatal(err)
		}
		result, err := prepared.Run(context.Background(),
			runner.Execution{ID: name, Script: []byte("import sys\nassert 'requests' not in sys.modules")})
		if err != nil || result.Outcome != outcomes.OK {
			t.Errorf("%s: %v %+v", name, err, result.Error)
		}
	}
}

func TestAnInterpreterIsForkedOnDemandIfNoneWaits(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	first := take(t, p)
	defer first.Discard()
	if p.runtimes[runner.DefaultRuntime].server == nil {
		t.Skip("forks are not available")
	}
	for range 5 {
		prepared, err := p.Prepare(context.Background(), "", limits)
		if err != nil {
			t.Fatal(err)
		}
		result, err := prepared.Run(context.Background(),
			runner.Execution{ID: "demand", Script: []byte("import sys\nassert 'requests' in sys.modules")})
		if err != nil || result.Outcome != outcomes.OK {
			t.Errorf("%v %+v", err, result.Error)
		}
	}
}

func TestWithoutForksEachInterpreterIsLoaded(t *testing.T) {
	p := newPool(t, 1, runner.Config{Sandbox: sandbox.ModeOff})
	run(t, p, "import sys\nassert 'requests' in sys.modules", nil)
	if p.runtimes[runner.DefaultRuntime].server != nil {
		t.Error("forks although the sandbox is off")
	}
}

func TestAServerThatDiedIsReplaced(t *testing.T) {
	p := newPool(t, 0, runner.Config{})
	s := newRuntimePool(p, runner.DefaultRuntime)
	t.Cleanup(s.close)
	for range 2 {
		prepared, err := s.load()
		if err != nil {
			t.Fatal(err)
		}
		if s.server == nil {
			prepared.Discard()
			t.Skip("forks are not available")
		}
		result, err := prepared.Run(context.Background(), runner.Execution{ID: "again", Script: []byte("pass")})
		if err != nil || result.Outcome != outcomes.OK {
			t.Errorf("%v %+v", err, result.Error)
		}
		s.server.Close()
	}
}

func TestLimitsOfTheExecutionHoldInAWarmInterpreter(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	for _, c := range []struct {
		script string
		limits runner.Limits
		want   runner.Outcome
	}{
		{"while True: pass", runner.Limits{Wall: 300 * time.Millisecond}, outcomes.Timeout},
		{"while True: pass", runner.Limits{Wall: 20 * time.Second, CPU: 300 * time.Millisecond}, outcomes.CPULimit},
		{"outputs.x = 'x' * 9999", runner.Limits{Result: 4096}, outcomes.OutputLimit},
		{"raise ValueError", runner.Limits{}, outcomes.Exception},
	} {
		prepared := take(t, p)
		prepared.Relimit(c.limits.WithDefaults())
		result, err := prepared.Run(context.Background(),
			runner.Execution{ID: "l", Script: []byte(c.script), Outputs: runner.Outputs{{Name: "x", Type: "s"}}})
		if err != nil || result.Outcome != c.want {
			t.Errorf("%s: got %s, %v: %+v", c.script, result.Outcome, err, result.Error)
		}
		if result.Evidence.CPU > 5*time.Second {
			t.Errorf("loading counts: %+v", result.Evidence)
		}
	}
}

func TestAWarmInterpreterHasANetworkOfItsOwn(t *testing.T) {
	p := newPool(t, 1, runner.Config{Network: sandbox.NetworkKizenOnly})
	first, second := take(t, p), take(t, p)
	defer first.Discard()
	defer second.Discard()
	if first.Listener() == nil || second.Listener() == nil {
		t.Fatal("the interpreter has no listener")
	}
}

func TestAnOldOrDeadInterpreterIsReplaced(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	p.config.MaxAge = time.Nanosecond
	s := newRuntimePool(p, runner.DefaultRuntime)
	t.Cleanup(s.close)
	var servers []*runner.ForkServer
	for range 2 {
		prepared, err := s.load()
		if err != nil {
			t.Fatal(err)
		}
		s.offer(prepared)
		if !ended(prepared.Done()) {
			t.Error("an old interpreter still waits")
		}
		servers = append(servers, s.server)
	}
	if servers[0] == servers[1] {
		t.Error("the fork server is not replaced")
	}
	s.retired.Wait()
	if !ended(servers[0].Done()) {
		t.Error("the old fork server is still running")
	}
}

func TestOnlyALimitedNumberOfForksShareAHashSeed(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	p.config.MaxForks = 3
	s := newRuntimePool(p, runner.DefaultRuntime)
	t.Cleanup(s.close)
	seeds := map[any]int{}
	for range 7 {
		prepared, err := s.load()
		if err != nil {
			t.Fatal(err)
		}
		prepared.Relimit(limits)
		result, err := prepared.Run(t.Context(), runner.Execution{
			ID: "seed", Script: []byte("outputs.x = str(hash('seed'))"), Outputs: runner.Outputs{{Name: "x", Type: "s"}},
		})
		if err != nil || result.Outcome != outcomes.OK {
			t.Fatalf("%s: %+v, %v", result.Outcome, result.Error, err)
		}
		seeds[result.Values[0].Value().V]++
	}
	if got := slices.Sorted(maps.Values(seeds)); !slices.Equal(got, []int{1, 3, 3}) {
		t.Errorf("interpreters with the same seed: %v", got)
	}
}

// onceChosen prints the values that Python and the kernel choose once for each executed program: the seed of hash(),
// the bytes of AT_RANDOM (getauxval(3)) and the address of the C library.
const onceChosen = `
import ctypes
libc = ctypes.CDLL(None)
libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
outputs.x = str(hash("seed")) + " " + ctypes.string_at(libc.getauxval(25), 16).hex()
outputs.y = hex(ctypes.cast(libc.getauxval, ctypes.c_void_p).value)`

func TestExecutedInterpretersShareNothingThatIsChosenOnce(t *testing.T) {
	for name, want := range map[string]int{"forked": 1, "executed": 4} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, 1, runner.Config{})
			p.config.Exec = name == "executed"
			first := take(t, p)
			if p.runtimes[runner.DefaultRuntime].server == nil && name == "forked" {
				first.Discard()
				t.Skip("forks are not available")
			}
			first.Discard()
			seen, places := map[any]bool{}, map[any]bool{}
			for range 4 {
				result := run(t, p, onceChosen, nil)
				seen[result.Values[0].Value().V], places[result.Values[1].Value().V] = true, true
			}
			if len(seen) != want || want == 1 && len(places) != 1 || want > 1 && len(places) == 1 {
				t.Errorf("of four interpreters: %v at %v", seen, places)
			}
		})
	}
}

// failing is a source that starts nothing.
type failing struct{ asked chan struct{} }

func (failing) Prepare(context.Context, runner.Runtime, runner.Limits) (*runner.Prepared, error) {
	return nil, runner.ErrNoPython
}

func (failing) StartForkServer(context.Context, runner.Runtime, runner.Limits) (*runner.ForkServer, error) {
	return nil, sandbox.ErrCannotFork
}

func (f failing) PrepareWarm(context.Context, runner.Runtime, runner.Limits) (*runner.Prepared, error) {
	f.asked <- struct{}{}
	return nil, runner.ErrNoPython
}

// replaceable is a source that can be replaced.
type replaceable struct{ atomic.Pointer[runner.Runner] }

func (r *replaceable) Prepare(ctx context.Context, runtime runner.Runtime,
	limits runner.Limits) (*runner.Prepared, error) {
	return r.Load().Prepare(ctx, runtime, limits)
}

func (r *replaceable) PrepareWarm(ctx context.Context, runtime runner.Runtime,
	limits runner.Limits) (*runner.Prepared, error) {
	return r.Load().PrepareWarm(ctx, runtime, limits)
}

func (r *replaceable) StartForkServer(ctx context.Context, runtime runner.Runtime,
	limits runner.Limits) (*runner.ForkServer, error) {
	return r.Load().StartForkServer(ctx, runtime, limits)
}

func TestThePoolIsReadyAsLongAsItCanBeFilled(t *testing.T) {
	p := newPool(t, 1, runner.Config{})
	working, err := runner.New(runner.Config{})
	if err != nil {
		t.Fatal(err)
	}
	broken, err := runner.New(runner.Config{Python: "/no/such/python"})
	if err != nil {
		t.Fatal(err)
	}
	source := &replaceable{}
	source.Store(working)
	p.config.Source = source
	if err := p.Check(runner.DefaultRuntime); err == nil || !strings.Contains(err.Error(), "is loading") {
		t.Errorf("before the first: %v", err)
	}
	taken := take(t, p)
	if err := p.Check(runner.DefaultRuntime); err != nil {
		t.Errorf("after the first was taken: %v", err)
	}
	taken.Discard()
	waitFor(t, "the next interpreter", func() bool { return p.Ready() == 1 })
	source.Store(broken)
	p.Keep(runner.Python313)
	waitFor(t, "the other runtime to fail", func() bool {
		err := p.Check(runner.Python313)
		return err != nil && strings.Contains(err.Error(), "no warm interpreter")
	})
	if err := p.Check(runner.DefaultRuntime); err != nil {
		t.Errorf("another runtime is missing: %v", err)
	}
}

// waitFor waits until a condition is true.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(5 * time.Minute); !holds(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func TestASourceThatFailsFailsTheExecutionAndNotThePool(t *testing.T) {
	source := failing{make(chan struct{}, 1)}
	p := New(Config{Source: source, Size: 1})
	if _, err := p.Prepare(context.Background(), "", runner.Limits{}); !errors.Is(err, runner.ErrNoPython) {
		t.Errorf("got %v", err)
	}
	<-source.asked
	p.Close()
	if _, err := p.Prepare(context.Background(), "", runner.Limits{}); !errors.Is(err, runner.ErrNoPython) {
		t.Errorf("got %v", err)
	}
}
