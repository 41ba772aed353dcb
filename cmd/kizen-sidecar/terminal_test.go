package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// onTerminal runs the built binary with a terminal for its standard output and
// error, and returns what a person would have seen.
func onTerminal(t *testing.T, script string, environment ...string) string {
	t.Helper()
	terminal, side, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := sidecarCommand(ctx, append(environment, "TERM=xterm-256color"), "run", "--script", "-")
	command.Stdin = strings.NewReader(script)
	command.Stdout, command.Stderr = side, side
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = side.Close() // the command has it: reading ends with the command
	seen, _ := io.ReadAll(terminal)
	if err := command.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, seen)
	}
	return string(seen)
}

const colour = "\x1b[1;32m" // bold green

func TestATerminalGetsColoursUnlessNoColorIsSet(t *testing.T) {
	if seen := onTerminal(t, "outputs.log('hello')"); !strings.Contains(seen, colour) {
		t.Errorf("no colour in %q", seen)
	}
	seen := onTerminal(t, "outputs.log('hello')", "NO_COLOR=1")
	if strings.Contains(seen, colour) || !strings.Contains(seen, "hello") {
		t.Errorf("NO_COLOR is not honoured in %q", seen)
	}
}

func TestTheLogIsTextOnATerminalAndJSONElsewhere(t *testing.T) {
	if seen := onTerminal(t, "pass", "KIZEN_LOG=debug"); !strings.Contains(seen, `level=INFO msg="execution ended"`) {
		t.Errorf("no line of text in %q", seen)
	}
	if got := sidecar(t, "pass", nil, "run", "--script", "-"); !strings.Contains(got.stderr, `"level":"INFO","msg":"execution ended"`) {
		t.Errorf("no line of JSON in %q", got.stderr)
	}
	if got := sidecar(t, "pass", []string{"KIZEN_LOG_FORMAT=text"}, "run", "--script", "-"); !strings.Contains(got.stderr, `level=INFO msg="execution ended"`) {
		t.Errorf("no line of text, which was asked for, in %q", got.stderr)
	}
}

func TestATerminalSeesThatALongStepRunsAndForHowLong(t *testing.T) {
	if seen := onTerminal(t, "import time; time.sleep(1.5)"); !strings.Contains(seen, "running standard input 1.") {
		t.Errorf("no spinner in %q", seen)
	}
	if seen := onTerminal(t, "pass"); strings.Contains(seen, "running standard input") {
		t.Errorf("a spinner for a short step in %q", seen)
	}
}

func TestWhatIsNoTerminalGetsNeitherColoursNorASpinner(t *testing.T) {
	got := sidecar(t, "import time; time.sleep(1.5)", []string{"TERM=xterm-256color"}, "run", "--script", "-")
	if strings.Contains(got.stdout+got.stderr, "\x1b") || strings.Contains(got.stderr, "running standard input") {
		t.Errorf("escape sequences in %q %q", got.stdout, got.stderr)
	}
}
