package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// forkServerVariable contains the source of the harness's fork server, because the tests that run as an ordinary user
// cannot read the file.
const forkServerVariable = "KIZEN_TEST_FORK_SERVER"

// forkServer is a Python that serves forks as the harness does. Each fork executes the program that it reads from its
// last descriptor.
const forkServer = `
import json, os
*files, told = serve(3)
argv, env = json.loads(os.read(told, 1 << 20))
os.close(told)
for i, fd in enumerate(files):
    os.dup2(fd, 3 + i)
os.execve(argv[0], argv, dict(variable.split("=", 1) for variable in env or ()))
`

// start starts a program as the test's sandbox does, directly or as a fork; stop ends the fork server.
func start(ctx context.Context, s *Sandbox, spec Spec) (process *Process, stop func(), err error) {
	if _, forks := forking.Load(s); !forks {
		process, err = s.Start(ctx, spec)
		return process, func() {}, err
	}
	if err := spec.validate(); err != nil {
		return nil, nil, err
	}
	server := spec
	server.Argv = []string{python, "-I", "-S", "-c", os.Getenv(forkServerVariable) + forkServer}
	server.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"}
	server.Files, server.Stdout, server.Stderr = nil, os.Stderr, os.Stderr
	f, err := s.StartForkServer(context.Background(), server)
	if err != nil {
		return nil, nil, err
	}
	stop = func() { f.Kill(); f.Wait() }
	if process, err = execute(ctx, f, spec); err != nil {
		stop()
	}
	return process, stop, err
}

// execute makes a fork execute a program.
func execute(ctx context.Context, f *ForkServer, spec Spec) (*Process, error) {
	told, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = told.Close(), tell.Close() }()
	if err := json.NewEncoder(tell).Encode([]any{spec.Argv, spec.Env}); err != nil {
		return nil, err
	}
	spec.Files = append(slices.Clone(spec.Files), told)
	return f.Fork(ctx, spec)
}

// launchForkServer starts a server that waits for its plan.
func launchForkServer(t *testing.T, spec Spec) *ForkServer {
	t.Helper()
	spec.Argv = []string{python, "-I", "-S", "-c", os.Getenv(forkServerVariable) + forkServer}
	f, err := newSandbox(t, Config{}).launchForkServer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Kill(); f.Wait() })
	return f
}

func newForkServer(t *testing.T, spec Spec) *ForkServer {
	t.Helper()
	f := launchForkServer(t, spec)
	plan, err := f.plan()
	if err == nil {
		err = f.sendPlan(plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestForksOfOneServerSeeNothingOfEachOther(t *testing.T) {
	f := newForkServer(t, Spec{})
	waiting := []string{python, "-I", "-S", "-c",
		"import os, socket, time\nopen('/tmp/mine', 'w'); open('/dev/shm/mine', 'w')\nprint('up', flush=True)\ntime.sleep(999)"}
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	other, err := execute(t.Context(), f, Spec{Argv: waiting, Stdout: printed, Stderr: printed})
	printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	seen := output(t, f, `
import os
print(os.listdir("/tmp"), os.listdir("/dev/shm"), sorted(p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()),
      os.getuid(), os.listdir("/proc/self/fd"), open("/proc/self/oom_score_adj").read().strip(), os.getcwd(), os.getsid(0) == os.getpid())
for pid in range(1, 50):
    if pid != os.getpid():
        try: os.kill(pid, 0); print("can signal", pid)
        except (ProcessLookupError, PermissionError): pass`)
	id := os.Geteuid()
	if id == 0 || f.ns.mapSelf != nil {
		id = insideID
	}
	if want := fmt.Sprintf("[] [] [] %d ['0', '1', '2', '3'] 1000 /tmp True", id); seen != want {
		t.Errorf("a fork saw %s\nwant %s", seen, want)
	}
	other.Kill()
	other.Wait()
}

func TestForksOfOneServerAreDifferentUsersOfTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	f := newForkServer(t, Spec{})
	seen := map[string]bool{}
	for range 3 {
		users := output(t, f, "print(open('/proc/self/uid_map').read().split()[-2])")
		if seen[users] {
			t.Errorf("two forks ran as user %s", users)
		}
		seen[users] = true
	}
}

func TestAForkAtItsProcessLimitDoesNotAffectOtherForks(t *testing.T) {
	limits := Limits{Processes: 16}
	f := newForkServer(t, Spec{Limits: limits})
	const greedy = `
import os, time
while True:
    try:
        if os.fork() == 0: time.sleep(999)
    except OSError: break
print("full", flush=True)
time.sleep(999)`
	for range 4 {
		out, printed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		_, err = execute(t.Context(), f, Spec{Argv: []string{python, "-I", "-S", "-c", greedy}, Stdout: printed,
			Stderr: printed, Limits: limits})
		printed.Close()
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "full\n" {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	if got := output(t, f, "import os\nfor _ in range(8):\n  if os.fork() == 0: os._exit(0)\nprint('fine')"); got != "fine" {
		t.Errorf("the other fork: %q", got)
	}
}

func TestForksEndIfTheirServerDies(t *testing.T) {
	f := newForkServer(t, Spec{})
	process, err := execute(t.Context(), f, Spec{Argv: []string{"/bin/sleep", "999"}})
	if err != nil {
		t.Fatal(err)
	}
	f.Kill()
	f.Wait()
	if exit := process.Wait(); exit.Code != -1 || exit.Err == nil {
		t.Errorf("got %+v", exit)
	}
	if process, err := execute(t.Context(), f, Spec{Argv: []string{"/bin/true"}}); err == nil {
		process.Wait()
		t.Error("a dead server forked")
	}
}

func TestAForkFailsIfTheServerDiesDuringItsRequest(t *testing.T) {
	// Unread data turns the end of the socket into a connection reset.
	f, err := newSandbox(t, Config{}).launchForkServer(t.Context(), Spec{Argv: []string{python, "-I", "-S", "-c",
		"import socket; socket.socket(fileno=3).recv(1, socket.MSG_PEEK)"}})
	if err != nil {
		t.Fatal(err)
	}
	process, err := execute(t.Context(), f, Spec{Argv: []string{"/bin/true"}})
	if err == nil {
		t.Errorf("got %v", process)
	}
	f.Kill()
	f.Wait()
}

func TestALayerThatAForkCannotSetUpFailsTheForkAndNotTheServer(t *testing.T) {
	for _, broken := range []struct {
		layer  string
		change func(*stage.ForkPlan)
	}{
		{stage.LayerFileSystem, func(plan *stage.ForkPlan) {
			plan.Mounts = append(plan.Mounts, stage.ForkMount{Type: "no such thing", Target: "/tmp"})
		}},
		{stage.LayerLandlock, func(plan *stage.ForkPlan) { plan.Landlock.Attr = []byte("short") }},
		{stage.LayerSeccomp, func(plan *stage.ForkPlan) { plan.Filter = []byte("not a program...") }},
		{stage.LayerLimits, func(plan *stage.ForkPlan) { plan.Limits[0].Resource = 99 }},
	} {
		t.Run(broken.layer, func(t *testing.T) {
			f := launchForkServer(t, Spec{})
			plan, err := f.plan()
			if err != nil {
				t.Fatal(err)
			}
			broken.change(&plan)
			if err := f.sendPlan(plan); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				process, err := execute(t.Context(), f, Spec{Argv: []string{"/bin/true"}})
				if failed, ok := errors.AsType[*layerError](err); !ok || failed.layer != broken.layer {
					t.Errorf("got %v, %v", process, err)
				}
			}
		})
	}
}

// output runs Python code in a fork and returns its output.
func output(t *testing.T, f *ForkServer, code string) string {
	t.Helper()
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	process, err := execute(t.Context(), f, Spec{Argv: []string{python, "-I", "-S", "-c", code}, Stdout: printed,
		Stderr: printed})
	printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	all, _ := io.ReadAll(out)
	process.Wait()
	return strings.TrimSpace(string(all))
}
