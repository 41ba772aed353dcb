package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestREADMEListsEveryExample: the table in README.md has a row for each folder in examples.
func TestREADMEListsEveryExample(t *testing.T) {
	examples, err := os.ReadDir(filepath.Join(projectRoot, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range examples {
		if !strings.Contains(readText(t, "README.md"), "| `examples/"+example.Name()+"` |") {
			t.Errorf("README.md does not list examples/%s", example.Name())
		}
	}
}

// TestTheDemoShowsThePageOfItsStepAndLeavesNothing: examples/demo runs as shipped, from its script through the platform
// and the sidecar to the step's output, and removes its temporary files.
func TestTheDemoShowsThePageOfItsStepAndLeavesNothing(t *testing.T) {
	dir, temporary := t.TempDir(), t.TempDir()
	symlink(t, sidecartest.Program(""), filepath.Join(dir, "bin"))
	symlink(t, filepath.Join(projectRoot, "examples"), filepath.Join(dir, "examples"))
	demo := exec.CommandContext(t.Context(), filepath.Join(dir, "examples/demo"), "--log-level=error")
	demo.Env = []string{"PATH=" + filepath.Dir(pythonWithRequests(t)) + ":" + os.Getenv("PATH"),
		"HOME=" + os.Getenv("HOME"), "TMPDIR=" + temporary}
	out, err := demo.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Count Custom Objects succeeded") ||
		!strings.Contains(string(out), "number_of_objects  n  7") {
		t.Errorf("%v\n%s", err, out)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("it left %v (%v)", left, err)
	}
}

// TestTheExampleOfAnOrchestratorGetsItsResult: examples/enqueue, compiled as a user would, gets its result from a
// worker. The public client, a real Redis and the built worker meet.
func TestTheExampleOfAnOrchestratorGetsItsResult(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	sidecartest.StartService(t, nil, "worker", "--redis-url", redisURL, "--api-root", "http://127.0.0.1:1/api")
	orchestrator := exec.CommandContext(t.Context(), "go", "run", "./examples/enqueue", `outputs.log("hello")`)
	orchestrator.Dir, orchestrator.Env = projectRoot,
		append(os.Environ(), "REDIS_URL="+redisURL, "KIZEN_BUSINESS_ID=b-1", "KIZEN_USER_ID=u-1")
	out, err := orchestrator.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "ok\n{") || !strings.Contains(string(out), `"logs":["hello"]`) {
		t.Errorf("%v\n%s", err, out)
	}
}
