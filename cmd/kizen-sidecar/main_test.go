package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestMain builds the binaries that the tests of this package start. A test belongs here if something must hold for the
// command as a user starts it, and no package below brings together the parts that decide about it; its comment names
// them. Tests named TestTorture run long or use much of the machine.
func TestMain(m *testing.M) {
	if os.Getenv(panicVariable) != "" {
		panicElsewhere()
	}
	os.Exit(sidecartest.Main(m, "kizen-sidecar", "kizen-platform"))
}

// Short names for the harness.
var (
	sidecarCommand = sidecartest.Command
	waitFor        = sidecartest.WaitFor
	writeFile      = sidecartest.WriteFile
	freeAddress    = sidecartest.FreeAddress
)

// outcome is the result of a command.
type outcome struct {
	code           int
	stdout, stderr string
}

// sidecar runs the built binary to its end. environment is added to a minimal one, so that the machine's own settings
// do not affect a test.
func sidecar(t *testing.T, stdin string, environment []string, arguments ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := sidecarCommand(ctx, environment, arguments...)
	command.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("start %v: %v", arguments, err)
	}
	return outcome{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// requireProgram returns the path of the first of names that is installed. If none is, it skips the test loudly, or
// fails it if KIZEN_TEST_REQUIRE is set.
func requireProgram(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missingForTest(t, names[0])
	return ""
}

func missingForTest(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
		t.Fatalf("%s is not installed; run .ci/setup test", what)
	}
	t.Skipf("SKIPPED: %s is not installed; run .ci/setup test", what)
}

// checkOneJSON returns an error unless data is exactly one JSON document.
func checkOneJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more data follows the first document")
	}
	return nil
}

// TestNoErrorContainsTerminalControlCharacters: an argument with escape sequences reaches the terminal only in visible
// form. The parser's errors and our own take different ways to standard error.
func TestNoErrorContainsTerminalControlCharacters(t *testing.T) {
	const hostile = "x\x1b[31m\u009b\u202e"
	for _, arguments := range [][]string{{hostile}, {"run", "--" + hostile},
		{"run", "--script", "-", "--input", hostile + "=1"}} {
		got := sidecar(t, "pass", nil, arguments...)
		if got.code != exitUsage || !strings.Contains(got.stderr, "x␛[31m") ||
			strings.ContainsAny(got.stderr, "\x1b\u009b\u202e") {
			t.Errorf("%q: exit code %d, %q", arguments, got.code, got.stderr)
		}
	}
}
