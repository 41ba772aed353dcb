package sidecartest

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Proxy is a running kizen-sidecar proxy.
type Proxy struct {
	*exec.Cmd
	URL string  // including the capability
	Log *Buffer // standard error

	rest chan string // standard output after the first line
}

// StartProxy starts the proxy command and returns once it has printed its address. The proxy is killed at the end of
// the test.
func StartProxy(t testing.TB, environment []string, arguments ...string) *Proxy {
	t.Helper()
	p := &Proxy{Cmd: Command(context.Background(), environment, append([]string{"proxy"}, arguments...)...),
		Log: &Buffer{}, rest: make(chan string, 1)}
	p.Stderr = p.Log
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait() // already waited for, or killed
	})
	lines := bufio.NewReader(stdout)
	first, err := lines.ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(first), "KIZEN_API_URL=")
	if err != nil || !ok {
		_ = p.Wait()
		t.Fatalf("the proxy did not print its address: %q %v\n%s", first, err, p.Log)
	}
	p.URL = address
	go func() {
		rest, _ := io.ReadAll(lines)
		p.rest <- string(rest)
	}()
	return p
}

// Stop sends a signal and returns the exit code.
func (p *Proxy) Stop(t testing.TB, signal os.Signal) int {
	t.Helper()
	if err := p.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return p.ExitCode(t)
}

// ExitCode waits until the proxy has ended.
func (p *Proxy) ExitCode(t testing.TB) int {
	t.Helper()
	select {
	case rest := <-p.rest:
		if _, more, _ := strings.Cut(rest, "\n"); rest != "" && (!strings.HasPrefix(rest, "TRACEPARENT=") || more != "") {
			t.Errorf("standard output contains more than the address and the trace: %q", rest)
		}
	case <-time.After(5 * time.Minute):
		t.Fatal("the proxy does not end")
	}
	_ = p.Wait() // ExitCode reports it
	return p.ProcessState.ExitCode()
}
