package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binaries is where TestMain has built kizen-sidecar and kizen-platform.
var binaries string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kizen-binaries-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Another user must be able to start what is built here.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binaries = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", ".", "../kizen-platform")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the commands:", err)
		return 1
	}
	return m.Run()
}

// outcome is what a command left behind.
type outcome struct {
	code           int
	stdout, stderr string
}

// sidecar runs the built binary to its end. environment is added to a minimal
// one, so that nothing of the machine's own settings decides a test.
func sidecar(t *testing.T, stdin string, environment []string, arguments ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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

func sidecarCommand(ctx context.Context, environment []string, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, filepath.Join(binaries, "kizen-sidecar"), arguments...)
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environment...)
	return command
}

// requireProgram skips, loudly, a test whose program is missing; where
// everything must be there it fails instead.
func requireProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
			t.Fatalf("%s is not installed; run .ci/setup test", name)
		}
		t.Skipf("SKIPPED: %s is not installed; run .ci/setup test", name)
	}
	return path
}

// checkOneJSON says what is wrong with data that should be one JSON document.
func checkOneJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the first document")
	}
	return nil
}
