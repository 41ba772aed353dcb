package sidecartest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Service is a kizen-sidecar serve, or worker, that answers.
type Service struct {
	*exec.Cmd
	URL   string        // of the control API; a worker has none
	Admin string        // of /readyz and /metrics
	Token string        // that requests must carry; empty where callers have tokens of their own
	Log   *Buffer       // standard error
	Ended chan struct{} // closed when the process is gone

	t     testing.TB
	ready string // the file, there while executions are taken
}

// StartService starts a command that writes a ready file and returns once it has. It is killed with the test.
func StartService(t testing.TB, environment []string, arguments ...string) *Service {
	t.Helper()
	return StartCommand(t, Command(context.Background(), environment, arguments...))
}

// StartCommand is StartService for a command that is kizen-sidecar in the end. It adds the flags that it needs.
func StartCommand(t testing.TB, command *exec.Cmd) *Service {
	t.Helper()
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{dir: 0o777, filepath.Dir(dir): 0o755} { // the command may run as another user
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	ready := filepath.Join(dir, "ready.json")
	command.Args = append(command.Args, "--ready-file", ready, "--admin-listen", "127.0.0.1:0")
	if wantsToken(command.Args) {
		command.Args = append(command.Args, "--token-file", filepath.Join(dir, "token"))
	}
	arguments := command.Args[1:]
	s := &Service{t: t, ready: ready, Cmd: command, Log: &Buffer{}, Ended: make(chan struct{})}
	s.Stderr = s.Log
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.Ended)
		_ = s.Wait() // the exit code says it
	}()
	t.Cleanup(func() {
		_ = s.Process.Kill()
		<-s.Ended
		if t.Failed() {
			t.Logf("log of %v:\n%s", arguments[0], s.Log)
		}
	})
	WaitFor(t, func() bool {
		select {
		case <-s.Ended:
			t.Fatalf("%v ended with %d", arguments, s.ProcessState.ExitCode())
		default:
		}
		return s.readAddresses(ready)
	})
	return s
}

// wantsToken reports whether a command is a serve that has no other say in who may call: its token must be the test's
// own.
func wantsToken(arguments []string) bool {
	return slices.Contains(arguments, "serve") && !slices.ContainsFunc(arguments, func(a string) bool {
		return a == "--callers" || a == "--allow-anonymous" || a == "--token-file"
	})
}

// Authorize lets a request in.
func (s *Service) Authorize(r *http.Request) {
	if s.Token != "" {
		r.Header.Set("Authorization", "Bearer "+s.Token)
	}
}

// readAddresses reads a ready file, unless it is not there yet or not whole.
func (s *Service) readAddresses(file string) bool {
	var addresses struct {
		URL   string `json:"url"`
		Admin string `json:"admin_url"`
		Token string `json:"token"`
	}
	data, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(data, &addresses) != nil {
		return false
	}
	s.URL, s.Admin, s.Token = addresses.URL, addresses.Admin, addresses.Token
	return true
}

// Stop asks it to end, and returns its exit code.
func (s *Service) Stop() int {
	s.t.Helper()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	return s.ExitCode()
}

// ExitCode waits until it has ended.
func (s *Service) ExitCode() int {
	s.t.Helper()
	select {
	case <-s.Ended:
	case <-time.After(5 * time.Minute):
		s.t.Fatal("it does not end")
	}
	code := s.ProcessState.ExitCode()
	if _, err := os.Stat(s.ready); code == 0 && err == nil {
		s.t.Error("its ready file is still there")
	}
	return code
}

// Readiness is what /readyz answers; the status is 0 without an answer.
func (s *Service) Readiness() (status int, body string) { return s.get("/readyz") }

// Metrics is what Prometheus would be given.
func (s *Service) Metrics() string {
	s.t.Helper()
	status, page := s.get("/metrics")
	if status != http.StatusOK {
		s.t.Fatalf("/metrics: %d %s", status, page)
	}
	return page
}

func (s *Service) get(path string) (status int, body string) {
	response, err := http.Get(s.Admin + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(text)
}
