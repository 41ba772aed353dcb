package observed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kizen-observed-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "kizen-sidecar")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "../..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the command:", err)
		return 1
	}
	return m.Run()
}

// command is the binary in an environment that holds nothing of this machine's own settings.
func command(ctx context.Context, environment []string, arguments ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, binary, arguments...)
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environment...)
	return c
}

// lockedBuffer is written by a process's copier while a test reads it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// served is a serve that answers.
type served struct {
	URL   string `json:"url"`
	Admin string `json:"admin_url"`
	t     *testing.T
	cmd   *exec.Cmd
	log   lockedBuffer
	ended chan struct{}
}

func serve(t *testing.T, environment []string, arguments ...string) *served {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready.json")
	s := &served{t: t, ended: make(chan struct{})}
	s.cmd = command(context.Background(), environment, append([]string{
		"serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--ready-file", ready}, arguments...)...)
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // its exit code says it
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		if t.Failed() {
			t.Logf("log of serve:\n%s", s.log.String())
		}
	})
	waitFor(t, func() bool {
		data, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(data, s) == nil
	})
	return s
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what is waited for does not come")
		}
	}
}

// run has a step run, and returns the answer.
func (s *served) run(traceparent string, body map[string]any) (status int, answer string) {
	s.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+"/api/coderunner/run", bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("X-BUSINESS-ID", "b-1")
	request.Header.Set("X-USER-ID", "u-1")
	if traceparent != "" {
		request.Header.Set("traceparent", traceparent)
		request.Header.Set("tracestate", "vendor=1")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

// metrics is what Prometheus would be given.
func (s *served) metrics() string {
	s.t.Helper()
	response, err := http.Get(s.Admin + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("/metrics: %d, %v", response.StatusCode, err)
	}
	return string(page)
}

// stop ends serve, which sends what it still has to tell.
func (s *served) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which the exit code says
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("serve ended with %d", code)
	}
}

func script(source string) map[string]any {
	return map[string]any{"runtime": "python-3-13", "user_script": source}
}

// api is an API that notes which headers it was sent.
type api struct {
	*httptest.Server
	mu   sync.Mutex
	sent []*http.Request
	text []string // bodies
}

func startAPI(t *testing.T) *api {
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.sent, a.text = append(a.sent, r), append(a.text, string(body))
		a.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "missing") {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `{"count": 2}`) // the caller may have gone
	}))
	t.Cleanup(a.Close)
	return a
}

// header is what was sent to path under a name.
func (a *api) header(path, name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.sent {
		if r.URL.Path == path {
			return r.Header.Get(name)
		}
	}
	return ""
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
