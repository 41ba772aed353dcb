package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/fleet"
)

// TestQueueCommands: an operator finds a dead letter, retries it, drains the queue, and cancels a waiting execution.
func TestQueueCommands(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	queue := func(code int, arguments ...string) (stdout, stderr string) {
		t.Helper()
		done := sidecar(t, "", nil, append(append([]string{"queue"}, arguments...), "--redis-url", redisURL)...)
		if done.code != code {
			t.Errorf("queue %v: exit code %d, want %d: %s", arguments, done.code, code, done.stderr)
		}
		return done.stdout, done.stderr
	}
	if stdout, _ := queue(exitOK, "list"); stdout != "kizen: 0 waiting, 0 put off, 0 active, 0 dead, 0 trimmed\n" {
		t.Errorf("an empty queue: %s", stdout)
	}
	for _, arguments := range [][]string{{"show", "b-1/none"}, {"retry", "b-1/none"}, {"retry", "--dead"},
		{"cancel", "b-1/none"}, {"discard", "b-1/none"}, {"discard", "--dead"},
		{"drain", "--resume"}} {
		if _, stderr := queue(exitNothing, arguments...); !strings.HasPrefix(stderr, "kizen-sidecar: queue \"kizen\"") {
			t.Errorf("queue %v: %s", arguments, stderr)
		}
	}
	for _, arguments := range [][]string{{"retry"}, {"retry", "--dead", "b-1/e"}, {"list", "--limit", "0"},
		{"list", "--queue", "a b"}} {
		queue(exitUsage, arguments...)
	}
	api := newTally(t, 10)
	w := startWorker(t, redisURL, api.URL+"/api", "--attempts", "1")
	enqueue(t, store, forFleet("e-1", "pass").with("execution_id", "no id"))
	waitFor(t, func() bool {
		var found fleet.Overview
		stdout, _ := queue(exitOK, "list", "--state", "dead", "--json")
		return json.Unmarshal([]byte(stdout), &found) == nil && found.Dead == 1 &&
			strings.Contains(found.Tasks[0].Reason, "has no execution id")
	})
	if stdout, _ := queue(exitOK, "discard", "--dead"); stdout != "discarded: 1 dead letters\n" {
		t.Errorf("discarded: %s", stdout)
	}
	queue(exitOK, "drain")
	enqueue(t, store, forFleet("e-2", "kizen.api.post('/ran/e-2')"))
	if stdout, _ := queue(exitOK, "list"); !strings.Contains(stdout, "1 waiting") ||
		!strings.Contains(stdout, "drained") || !strings.Contains(stdout, "b-1/e-2") {
		t.Errorf("a drained queue: %s", stdout)
	}
	queue(exitOK, "cancel", "b-1/e-2")
	queue(exitNothing, "cancel", "b-1/e-2")
	queue(exitOK, "drain", "--resume")
	var shown fleet.Execution
	waitFor(t, func() bool {
		stdout, _ := queue(exitOK, "show", "b-1/e-2", "--json")
		return json.Unmarshal([]byte(stdout), &shown) == nil && shown.State == fleet.TaskGone
	})
	if shown.Outcome != "cancelled" || !strings.Contains(string(shown.Result), "cancelled") {
		t.Errorf("shown %+v", shown)
	}
	if ran, _ := api.look(); ran != 0 {
		t.Error("the cancelled execution ran")
	}
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
