package page

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

func TestMain(m *testing.M) { os.Exit(sidecartest.Main(m, "kizen-sidecar")) }

// step is the body of a request, or another document.
type step map[string]any

func script(source string) step { return step{"runtime": "python-3-13", "user_script": source} }

func (s step) with(name string, value any) step {
	s[name] = value
	return s
}

// outcome is the result of a command.
type outcome struct {
	code           int
	stdout, stderr string
}

// sidecar runs the built binary to its end.
func sidecar(t *testing.T, stdin string, environment []string, arguments ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := sidecartest.Command(ctx, environment, arguments...)
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

// writeJSON writes a document as a file of dir and returns its path.
func writeJSON(t *testing.T, dir, name string, value any) string {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return sidecartest.WriteFile(t, dir, name, string(data))
}
