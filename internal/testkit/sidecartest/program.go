// Package sidecartest runs the built commands for the tests of several packages. It builds them once for a test
// binary, starts them, waits until they are ready, and ends them with the test.
package sidecartest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

// module is the module that contains the commands.
const module = "github.com/kizen/kizen-sidecar"

// programs is the directory with the built commands.
var programs string

// built is the environment variable that names a directory with the commands that make build has built. Without it,
// Main builds them.
const built = "KIZEN_TEST_BIN"

// Main builds the named commands of this module as make build does, or uses those in the directory KIZEN_TEST_BIN, and
// then runs the tests. TestMain must exit with the result.
func Main(m *testing.M, names ...string) int {
	dir, err := os.MkdirTemp("", "kizen-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Other users must be able to run the commands.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	programs = dir
	if err := provide(dir, names); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// provide puts the commands into dir.
func provide(dir string, names []string) error {
	if from := os.Getenv(built); from != "" {
		for _, name := range names {
			program, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				return fmt.Errorf("use the commands in %s: %w", built, err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), program, 0o755); err != nil {
				return fmt.Errorf("copy %s: %w", name, err)
			}
		}
		return nil
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("find the module of the commands: %w", err)
	}
	build := exec.Command("go", "build", "-trimpath", "-tags", "nomsgpack", "-ldflags", "-s -w", "-o", dir+"/")
	for _, name := range names {
		build.Args = append(build.Args, "./cmd/"+name)
	}
	// So the commands use the versions of their own module, also in tests of another module.
	build.Dir = strings.TrimSpace(string(root))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the commands: %w", err)
	}
	return nil
}

// Program returns the path of a command that Main has built.
func Program(name string) string { return filepath.Join(programs, name) }

// Command returns kizen-sidecar with arguments. environment is added to a minimal environment, so that the machine's
// settings do not affect tests.
func Command(ctx context.Context, environment []string, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, Program("kizen-sidecar"), arguments...)
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environment...)
	return command
}

// Buffer is a buffer that a test may read while a process writes to it.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// WaitFor polls until condition holds. It is for events in other processes. Its timeout catches hangs.
func WaitFor(t testing.TB, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not hold within five minutes")
		}
	}
}

// WriteFile writes a file into dir and returns its path.
func WriteFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// FreeAddress returns a loopback address on which no process listened a moment ago.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(redistest.FreePort(t)))
}
