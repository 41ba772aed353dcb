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

// Service is a running kizen-sidecar serve or worker.
type Service struct {
	*exec.Cmd
	URL   string        // of the control API; a worker has none
	Admin string        // of /readyz and /metrics
	Token string        // for requests; empty if callers have their own tokens
	Log   *Buffer       // standard error
	Ended chan struct{} // closed when the process is gone

	t     testing.TB
	ready string // the ready file, which exists while the service accepts executions
}

// StartService starts a command and returns once it has written its ready file. The command is killed at the end of
// the test.
func StartService(t testing.TB, environment []string, arguments ...string) *Service {
	t.Helper()
	return StartCommand(t, Command(context.Background(), environment, arguments...))
}

// StartCommand is StartService for a command that ends up running kizen-sidecar. It adds the flags that StartService
// needs.
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
		_ = s.Wait() // ExitCode reports it
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

// wantsToken reports whether a command is a serve without other settings for its callers, so that it needs the test's
// token.
func wantsToken(arguments []string) bool {
	return slices.Contains(arguments, "serve") && !slices.ContainsFunc(arguments, func(a string) bool {
		return a == "--callers" || a == "--allow-anonymous" || a == "--token-file"
	})
}

// Authorize adds the token to a request.
func (s *Service) Authorize(r *http.Request) {
	if s.Token != "" {
		r.Header.Set("Authorization", "Bearer "+s.Token)
	}
}

// readAddresses reads a ready file. It returns false if the file does not exist yet or is incomplete.
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

// Stop asks the service to end, and returns its exit code.
func (s *Service) Stop() int {
	s.t.Helper()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	return s.ExitCode()
}

// ExitCode waits until the service has ended.
func (s *Service) ExitCode() int {
	s.t.Helper()
	select {
	case <-s.Ended:
	case <-time.After(5 * time.Minute):
		s.t.Fatal("the service does not end")
	}
	code := s.ProcessState.ExitCode()
	if _, err := os.Stat(s.ready); code == 0 && err == nil {
		s.t.Error("the ready file still exists")
	}
	return code
}

// Readiness returns the response of /readyz; the status is 0 without a response.
func (s *Service) Readiness() (status int, body string) { return s.get("/readyz") }

// Metrics returns the response of /metrics.
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
