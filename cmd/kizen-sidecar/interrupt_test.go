package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// endlessStep starts a child in a session of its own, tells the API that it has started, and never ends.
const endlessStep = `
import subprocess, time
subprocess.Popen(["sleep", inputs.marker], start_new_session=True)
outputs.log("started")
kizen.api.post("/started")
while True:
    time.sleep(1)
`

// TestAnInterruptedRunRevokesItsKeyAndKillsItsStep: after SIGINT or SIGTERM, run prints a result, Redis holds no record
// of the key and the step has no process left. The signal handler, the sandbox and a real Redis meet.
func TestAnInterruptedRunRevokesItsKeyAndKillsItsStep(t *testing.T) {
	for i, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			redisURL := startRedisServer(t)
			api := newRecordingAPI(t)
			api.expect([]route{{Method: "POST", Path: "/started", Responses: []cannedResponse{{Status: 204}}}})
			marker := fmt.Sprintf("86400.%d%d", os.Getpid(), i)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			command := sidecarCommand(ctx, nil, "run", "--script", "-", "--json", "--input", "marker="+marker,
				"--api-root", api.root(), "--redis-url", redisURL)
			command.Stdin = strings.NewReader(endlessStep)
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return len(api.apiCalls()) == 1 })
			if records := recordsIn(t, redisURL); len(records) != 1 {
				t.Errorf("while the step runs redis holds %v, want one record", records)
			}
			if err := command.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait() // the exit code is checked below
			if code := command.ProcessState.ExitCode(); code != exitStepFailed {
				t.Errorf("exit code %d, want %d\n%s", code, exitStepFailed, &stderr)
			}
			var result struct {
				Logs  []string
				Error struct{ Kind string }
			}
			if err := json.Unmarshal(stdout.Bytes(), &result); err != nil || result.Error.Kind != "cancelled" ||
				len(result.Logs) != 1 {
				t.Errorf("result = %s, %v", &stdout, err)
			}
			requireNoRecords(t, redisURL)
			requireNoProcess(t, marker)
		})
	}
}

// requireNoProcess checks that no process has marker in its arguments.
func requireNoProcess(t *testing.T, marker string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if arguments, err := os.ReadFile(file); err == nil && bytes.Contains(arguments, []byte("sleep\x00"+marker)) {
			t.Errorf("%s: %q is left", file, arguments)
		}
	}
}
