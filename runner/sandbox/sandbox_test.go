package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const python = "/usr/bin/python3"

// ordinaryUID is an unprivileged user without an account. Each run of the tests uses another one, because the kernel
// counts processes by user: the fork bombs of one run would count for another.
var ordinaryUID = uint32(20000 + os.Getpid()%20000)

// helperVariable makes the test binary run one of the helpers.
const helperVariable = "KIZEN_TEST_HELPER"

// outside is where tests make directories that programs can see. Forks have a private /tmp, which would hide
// directories in /tmp.
const outside = "/var/tmp"

// projectVariable contains the path of the project, which the tests' programs must not see.
const projectVariable = "KIZEN_TEST_PROJECT"

// helpers are the programs that the test binary can run as a separate process.
var helpers = map[string]func() int{"sidecar": sidecarHelper}

func TestMain(m *testing.M) {
	if helper, ok := helpers[os.Getenv(helperVariable)]; ok {
		os.Exit(helper())
	}
	// Initialise this process as the sidecar does.
	if err := Conceal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if _, err := os.Stat(python); err != nil {
		fmt.Fprintln(os.Stderr, "SKIPPED: the attacks on the sandbox need", python)
		if os.Getenv("KIZEN_TEST_REQUIRE") == "1" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(projectVariable) == "" {
		project, err := filepath.Abs("../..")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(projectVariable, project)
	}
	if os.Getenv(forkServerVariable) == "" {
		source, err := os.ReadFile("../python/kizen_runtime/forkserver.py")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(forkServerVariable, string(source))
	}
	goleak.VerifyTestMain(m)
}

// TestTortureEverythingAsOrdinaryUser runs all tests except those named TestTorture again as a user other than root.
func TestTortureEverythingAsOrdinaryUser(t *testing.T) {
	asOrdinaryUser(t, rareVariable+"=too", "-test.skip=^TestTorture")
}

// TestTortureEverythingInRareSandboxes runs the tests that cover several environments again in those that make test
// omits.
func TestTortureEverythingInRareSandboxes(t *testing.T) {
	again(t, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, rareVariable+"=only", "-test.run="+strings.Join([]string{
		"TestAttacksAreRefused", "TestOrdinaryProgramsWork", "TestNothingIsLeftAfterAnyKindOfExecution",
		"WholeTree$", "AreLimited$", "TestProcess", "TestEveryEndIsReported", "TestKillEndsEveryProcess",
	}, "|"))
}

func asOrdinaryUser(t *testing.T, variable string, arguments ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("already one")
	}
	again(t, &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: ordinaryUID, Gid: ordinaryUID}, Pdeathsig: syscall.SIGKILL,
	}, variable, arguments...)
}

// again runs this test binary with other attributes, one more environment variable and other arguments.
func again(t *testing.T, attributes *syscall.SysProcAttr, variable string, arguments ...string) {
	t.Helper()
	arguments = append(arguments, "-test.count=1")
	if testing.Verbose() {
		arguments = append(arguments, "-test.v")
	}
	command := exec.CommandContext(t.Context(), "/proc/self/exe", arguments...)
	command.Dir = "/"
	command.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "KIZEN_TEST_REQUIRE=" + os.Getenv("KIZEN_TEST_REQUIRE"),
		projectVariable + "=" + os.Getenv(projectVariable), forkServerVariable + "=" + os.Getenv(forkServerVariable),
		variable}
	command.SysProcAttr = attributes
	out, err := command.CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	t.Logf("its output:\n%s", out)
}

// sidecarHelper is a sidecar that runs a program until it is killed. Its arguments are the program and its arguments.
func sidecarHelper() int {
	mode := Config{}
	if os.Args[1] == "bare" {
		mode.without = bare
	}
	s, err := New(mode)
	if err == nil {
		if os.Args[1] == "forks" {
			forking.Store(s, true)
		}
		var process *Process
		var stop func()
		process, stop, err = start(context.Background(), s, Spec{Argv: os.Args[2:], Stdout: os.Stdout, Stderr: os.Stderr})
		if err == nil {
			process.Wait()
			stop() // not earlier: a fork server ends when its last reference is gone
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// bare is a typical unprivileged container, without namespaces and cgroups.
var bare = slices.Concat([]string{"user namespace"}, namespaceLayers, accounting)

// environments are the machines that the tests simulate. make test covers a machine that has everything, started afresh
// and as forks, and one that has least; [rare] ones between them are left to make torture.
var environments = map[string]Config{
	"everything":         {},
	"no user namespaces": {without: []string{"user namespace"}},
	"no cgroups":         {without: accounting},
	"no namespaces":      {without: bare},
	"forks":              {},
}

// rare lists the environments that only tests named TestTorture cover, unless rareVariable is set.
var rare = []string{"no user namespaces", "no cgroups"}

// rareVariable restricts tests to the rare environments ("only"), or adds these environments ("too").
const rareVariable = "KIZEN_TEST_RARE_SANDBOXES"

// inEnvironment reports whether a test covers an environment, see [rare].
func inEnvironment(t *testing.T, name string) bool {
	switch os.Getenv(rareVariable) {
	case "only":
		return slices.Contains(rare, name)
	case "too":
		return true
	}
	return !slices.Contains(rare, name) || strings.HasPrefix(t.Name(), "TestTorture")
}

// forking contains the sandboxes that start programs as forks of a server.
var forking sync.Map

// each runs a test in the named environments, if this machine can simulate them.
func each(t *testing.T, names []string, test func(t *testing.T, s *Sandbox)) {
	for _, name := range names {
		if !inEnvironment(t, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if name == "no user namespaces" && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			s := newSandbox(t, environments[name])
			if name == "forks" {
				forking.Store(s, true)
			}
			test(t, s)
		})
	}
}

func newSandbox(t *testing.T, config Config) *Sandbox {
	t.Helper()
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range s.Report() {
		if !layer.Held && !slices.Contains(config.without, layer.Name) {
			t.Logf("the machine lacks %s: %s", layer.Name, layer.Why)
		}
	}
	return s
}

// slots returns how many programs may run at the same time, each with its maximum number of processes.
func slots(s *Sandbox) int {
	if ns := s.namespaces(0, false); ns.shared() {
		return 1 // all run as one user, and the kernel counts by user
	}
	return 2 * runtime.NumCPU()
}

// result is the output of a program and how it ended.
type result struct {
	Exit
	out string
}

// run starts Python code in a sandbox and waits for it.
func run(t *testing.T, s *Sandbox, code string, change func(*Spec)) result {
	t.Helper()
	r, err := try(t.Context(), starts(s), code, change)
	if err != nil {
		t.Fatal(err)
	}
	if r.Err != nil {
		t.Errorf("the sandbox failed: %v", r.Err)
	}
	return r
}

// starter starts a program; stop ends the processes that were started only for it.
type starter func(ctx context.Context, spec Spec) (process *Process, stop func(), err error)

func starts(s *Sandbox) starter {
	return func(ctx context.Context, spec Spec) (*Process, func(), error) { return start(ctx, s, spec) }
}

func try(ctx context.Context, start starter, code string, change func(*Spec)) (result, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return result{}, err
	}
	defer r.Close()
	spec := Spec{
		Argv: []string{python, "-I", "-S", "-c", code},
		Env:  []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"}, Stdout: w, Stderr: w,
	}
	if change != nil {
		change(&spec)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	process, stop, err := start(ctx, spec)
	w.Close()
	if err != nil {
		return result{}, err
	}
	defer stop()
	out, _ := io.ReadAll(r)
	return result{process.Wait(), strings.TrimSpace(string(out))}, nil
}
