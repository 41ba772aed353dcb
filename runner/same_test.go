package runner_test

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

//go:embed testdata/observe.py
var observations string

// different are the observations that may differ, with the reason.
var different = map[string]string{
	"sys.modules":   "a warm interpreter has already imported the modules that most steps use",
	"sys.meta_path": "the finders that defer imports, or that wait for requests, are removed once it is imported",
	"sys.orig_argv": "the command line has the mode of the interpreter: warm, or fork server",
	"warnings":      "requests adds filters",
	"exit handlers": "modules that a warm interpreter has imported add their own",
	"process id":    "the first process of a cold start has threads, which use ids too",
	"frozen":        "the garbage collector skips the objects that a warm interpreter has loaded",
}

// starts are the ways to start an interpreter.
func starts(t *testing.T, config runner.Config) map[string]func(ctx context.Context) (*runner.Prepared, error) {
	t.Helper()
	r := newRunner(t, config)
	limits := runner.Limits{}.WithDefaults()
	ways := map[string]func(ctx context.Context) (*runner.Prepared, error){
		"cold": func(ctx context.Context) (*runner.Prepared, error) {
			return r.Prepare(ctx, runner.DefaultRuntime, limits)
		},
		"warm": func(ctx context.Context) (*runner.Prepared, error) {
			return r.PrepareWarm(ctx, runner.DefaultRuntime, limits)
		},
	}
	f, err := r.StartForkServer(t.Context(), runner.DefaultRuntime, limits)
	switch {
	case err == nil:
		t.Cleanup(f.Close)
		ways["fork"] = f.Prepare
	case !errors.Is(err, sandbox.ErrCannotFork):
		t.Fatal(err)
	default:
		t.Logf("SKIPPED for forks: %v", err)
	}
	return ways
}

// prepare starts an interpreter in one of these ways.
func prepare(t *testing.T, start func(ctx context.Context) (*runner.Prepared, error)) *runner.Prepared {
	t.Helper()
	prepared, err := start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return prepared
}

func TestAStepSeesTheSameColdWarmAndInAFork(t *testing.T) {
	seen := map[string]map[string]string{}
	for way, start := range starts(t, runner.Config{}) {
		result, err := prepare(t, start).Run(context.Background(), runner.Execution{ID: "same", Script: []byte(observations)})
		if err != nil || result.Outcome != outcomes.OK {
			t.Fatalf("%s: %v %+v\n%s", way, err, result.Error, result.Stderr)
		}
		seen[way] = map[string]string{}
		for _, log := range result.Logs {
			name, value, _ := strings.Cut(log, "=")
			seen[way][name] = value
		}
	}
	agreed := map[string]bool{}
	for name, cold := range seen["cold"] {
		agreed[name] = true
		for _, way := range slices.Sorted(maps.Keys(seen)) {
			if got := seen[way][name]; got != cold {
				agreed[name] = false
				if different[name] == "" {
					t.Errorf("%s: %s\n%s: %s\n%s: %s", name, firstDifference(cold, got), "cold", cold, way, got)
				}
			}
		}
	}
	for name := range different {
		if agreed[name] {
			t.Errorf("%s is the same, and listed as different", name)
		}
	}
	if len(agreed) < 60 {
		t.Errorf("only %d observations were made", len(agreed))
	}
	for name, want := range map[string]string{
		"__name__":  `'__main__', '/step/script.py'`,
		"find_spec": "requests/__init__.py",
		"threads":   "MainThread",
	} {
		if !strings.Contains(seen["cold"][name], want) {
			t.Errorf("%s is %s, want %s in it", name, seen["cold"][name], want)
		}
	}
}

// firstDifference shows where two texts start to differ.
func firstDifference(a, b string) string {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	from := max(0, i-30)
	return fmt.Sprintf("%q beside %q", a[from:min(len(a), i+60)], b[from:min(len(b), i+60)])
}

// TestNoFrameOfTheRuntimeIsShown checks failures that pass through code of Python or the harness.
func TestNoFrameOfTheRuntimeIsShown(t *testing.T) {
	for way, start := range starts(t, runner.Config{}) {
		for script, want := range map[string]string{
			"quit(1)":               "SystemExit: 1",
			"exit('no luck')":       "SystemExit: no luck",
			"import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
			"import sys\nsys.modules['requests'] = None\nfor name in [n for n in sys.modules if n.startswith('kizen_runtime.client')]: del sys.modules[name]\nkizen.api": "ImportError",
		} {
			result, err := prepare(t, start).Run(context.Background(), runner.Execution{ID: "trace", Script: []byte(script)})
			if err != nil || result.Error == nil {
				t.Fatalf("%s: %s: %v", way, script, err)
			}
			detail := result.Error.Detail
			if !strings.Contains(result.Error.Message, want) || strings.Count(detail, "File ") != 1 ||
				!strings.Contains(detail, `File "script.py", line `) {
				t.Errorf("%s: %s: %s\n%s", way, script, result.Error.Message, detail)
			}
		}
	}
}
