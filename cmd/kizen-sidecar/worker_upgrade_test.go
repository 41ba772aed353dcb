package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// olderBuild is the commit of the older workers: the last one whose tasks and records had no version.
const olderBuild = "a19d7ec"

// buildOlder builds kizen-sidecar of olderBuild. If the clone lacks that commit, the test is skipped.
func buildOlder(t *testing.T) (program string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sources, archive := filepath.Join(dir, "sources"), filepath.Join(dir, "sources.tar")
	extracted := exec.Command("git", "archive", "--output", archive, olderBuild)
	extracted.Dir = projectRoot
	if output, err := extracted.CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: the clone has no commit %s to build older workers from; fetch its history: %s", olderBuild, output)
	}
	if err := os.Mkdir(sources, 0o755); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "kizen-sidecar")
	build := exec.Command("go", "build", "-trimpath", "-tags", "nomsgpack", "-buildvcs=false", "-ldflags", "-s -w", "-o",
		program, "./cmd/kizen-sidecar")
	build.Dir, build.Env = sources, append(os.Environ(), "CGO_ENABLED=0")
	for _, command := range []*exec.Cmd{exec.Command("tar", "-xf", archive, "-C", sources), build} {
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command.Args, err, output)
		}
	}
	return program
}

// TestTortureWorkersOfTwoVersionsShareAQueue runs two workers of an older build and two of this one. One of each is
// killed while all of its slots run a step. Nothing is lost, nothing runs twice, and every callback arrives.
func TestTortureWorkersOfTwoVersionsShareAQueue(t *testing.T) {
	const total, slots, workersOfEach = 120, 3, 2
	older := buildOlder(t)
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api, callbacks := newTally(t, 0), newReceiver(t)
	var bodies []step
	for i := range total {
		id := fmt.Sprintf("e-%03d", i)
		bodies = append(bodies, forFleet(id, "kizen.api.post('/ran/"+id+"')").with("callback_url", callbacks.URL+"/hook"))
	}
	enqueue(t, store, bodies...)
	secret := writeFile(t, t.TempDir(), "webhook.secret", webhookSecret)
	arguments := []string{"worker", "--redis-url", redisURL, "--api-root", api.URL + "/api", "--lease", "3s", "--slots",
		fmt.Sprint(slots),
		"--webhook-secret-file", secret, "--webhook-allow", "127.0.0.0/8"}
	var workers []*sidecartest.Service
	for i := range 2 * workersOfEach {
		command := sidecarCommand(context.Background(), nil, arguments...)
		if i%2 == 0 {
			command.Path, command.Args[0] = older, older
		}
		workers = append(workers, sidecartest.StartCommand(t, command))
	}
	waitFor(t, func() bool { _, held := api.look(); return held == len(workers)*slots })
	for _, victim := range workers[:2] { // one of each build
		_ = victim.Process.Signal(syscall.SIGKILL)
		<-victim.Ended
	}
	close(api.release)
	for done := 0; done < total; { // each wait has its own timeout
		waitFor(t, func() bool { return len(endings(t, store)) > done })
		done = len(endings(t, store))
	}
	waitFor(t, func() bool { return callbacks.count() == total })
	outcomes := map[string]int{}
	for id, outcome := range endings(t, store) {
		outcomes[outcome]++
		if ran := api.ran[id]; ran > 1 || outcome == "ok" && ran != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, ran)
		}
		if callbacks.outcomes[id] != outcome {
			t.Errorf("%s ended %s, and its callback said %q", id, outcome, callbacks.outcomes[id])
		}
	}
	t.Logf("outcomes: %v", outcomes)
	if died := 2 * slots; outcomes["worker_died"] != died || outcomes["ok"] != total-died {
		t.Errorf("outcomes %v, want %d whose worker died and all others ok", outcomes, died)
	}
	for _, worker := range workers[2:] {
		if code := worker.Stop(); code != exitOK {
			t.Errorf("exit code %d", code)
		}
	}
}
