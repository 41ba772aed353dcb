package runner_test

import (
	"context"
	"errors"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

func newForkServer(t *testing.T, config runner.Config) *runner.ForkServer {
	t.Helper()
	f, err := newRunner(t, config).StartForkServer(t.Context(), runner.DefaultRuntime, runner.Limits{}.WithDefaults())
	if errors.Is(err, sandbox.ErrCannotFork) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// runForked runs a script in a fork.
func runForked(t *testing.T, f *runner.ForkServer, script string) (runner.Result, error) {
	t.Helper()
	prepared, err := f.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return prepared.Run(context.Background(), runner.Execution{ID: "fork", Script: []byte(script)})
}

func TestAForkLearnsNothingFromItsServer(t *testing.T) {
	f := newForkServer(t, runner.Config{})
	defer f.Close()
	result, err := runForked(t, f, `
import os, sys, threading
frame, seen = sys._getframe(), []
while frame:
    seen += [type(v).__name__ for v in frame.f_locals.values()]
    frame = frame.f_back
assert 'socket' not in seen and '_Fork' not in seen, seen
assert os.getppid() == 1 and os.getpid() == 2 and threading.active_count() == 1
assert sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:3] == [0, 1, 2] and len(os.listdir('/proc/self/fd')) <= 7
for name in ('environ', 'mem', 'maps', 'fd', 'root', 'cwd'):
    try: os.stat(f'/proc/1/{name}')
    except (FileNotFoundError, PermissionError): continue
    raise AssertionError(name)
`)
	if err != nil || result.Outcome != outcomes.OK {
		t.Errorf("got %s, %v: %+v", result.Outcome, err, result.Error)
	}
}

func TestCloseWaitsForTheLastFork(t *testing.T) {
	f := newForkServer(t, runner.Config{})
	prepared, err := f.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		f.Close()
	}()
	result, err := prepared.Run(context.Background(), runner.Execution{ID: "last", Script: []byte("pass")})
	if err != nil || result.Outcome != outcomes.OK {
		t.Errorf("the server did not wait: got %s, %v", result.Outcome, err)
	}
	<-closed
}

func TestStartForkServerFailsWithoutNamespaces(t *testing.T) {
	r := newRunner(t, runner.Config{Sandbox: sandbox.ModeOff})
	f, err := r.StartForkServer(t.Context(), runner.DefaultRuntime, runner.Limits{}.WithDefaults())
	if !errors.Is(err, sandbox.ErrCannotFork) {
		t.Errorf("got %v, %v", f, err)
	}
}
