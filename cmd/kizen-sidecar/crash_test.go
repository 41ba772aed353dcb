package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// panicVariable makes the test binary execute a run whose sidecar panics on one of its goroutines.
const panicVariable = "KIZEN_TEST_PANIC"

func panicElsewhere() {
	endWithDocument(streams{os.Stdin, os.Stdout, os.Stderr}, []string{"run", "--json"})
	for range 10 { // only one of them is reported
		routine.Go(func() { panic("index out of range") })
	}
	select {}
}

// TestAPanicOfAnyGoroutineIsAFailureWithItsDocument: a panic outside main still prints one result document, even if
// several goroutines panic at once. The panic ends its process, so the test binary starts itself once more.
func TestAPanicOfAnyGoroutineIsAFailureWithItsDocument(t *testing.T) {
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), panicVariable+"=1")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	_ = command.Run() // the exit code is checked below
	if code := command.ProcessState.ExitCode(); code != exitSidecar || checkOneJSON(stdout.Bytes()) != nil ||
		!strings.Contains(stdout.String(), "index out of range") {
		t.Errorf("%d %v %s", code, checkOneJSON(stdout.Bytes()), stdout.String())
	}
	if !strings.Contains(stderr.String(), "panicElsewhere") || !strings.Contains(stderr.String(), "please report it") {
		t.Errorf("standard error: %s", stderr.String())
	}
}

// TestAPanicIsAFailureOfTheSidecarWithItsDocument: after a panic, run --json prints a document and serve prints none,
// each with the exit code of a sidecar's failure.
func TestAPanicIsAFailureOfTheSidecarWithItsDocument(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := crashed(streams{strings.NewReader(""), &stdout, &stderr}, []string{"run", "step", "--json"},
		"index out of range", []byte("goroutine 1"))
	var document struct {
		RequestID string `json:"request_id"`
		Logs      []string
		Error     any
	}
	if err := json.Unmarshal(stdout.Bytes(), &document); err != nil || code != exitSidecar ||
		!strings.Contains(stdout.String(), "index out of range") {
		t.Errorf("%d %v %s", code, err, stdout.String())
	}
	if !strings.Contains(stderr.String(), "goroutine 1") || !strings.Contains(stderr.String(), "please report it") {
		t.Errorf("standard error: %s", stderr.String())
	}
	stdout.Reset()
	if code := crashed(streams{strings.NewReader(""), &stdout, &stderr}, []string{"serve"}, "x", nil); code != exitSidecar || stdout.Len() > 0 {
		t.Errorf("serve: %d %s", code, stdout.String())
	}
}
