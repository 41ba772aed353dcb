package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/audit"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/pool"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// lines is a log that tests can read while it is written. It signals each line.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1024)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.more <- struct{}{} }()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// hostConfig returns a configuration with an embedded Redis.
func hostConfig(t *testing.T, log *lines) HostConfig {
	t.Helper()
	embedded, err := redisconn.StartEmbedded()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(embedded.Close)
	client, err := redisconn.Open(redisconn.Config{Embedded: embedded})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := minter.GenerateKeySet()
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.ForCalls()
	if err != nil {
		t.Fatal(err)
	}
	return HostConfig{Embedded: embedded, Execution: execution.Config{
		Redis: client, Keys: keys, Engine: engine,
		Proxy: proxy.Config{APIRoot: &url.URL{Scheme: "http", Host: "127.0.0.1:1", Path: "/api"}},
		Log:   slog.New(slog.NewTextHandler(log, nil)),
	}}
}

// newDaemon returns a daemon without warm interpreters, which the test may change before it serves.
func newDaemon(t *testing.T, log *lines) *Daemon {
	t.Helper()
	host, err := Open(hostConfig(t, log))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := runner.New(runner.Config{Sandbox: sandbox.ModeOff})
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		Host: host, Runner: steps, Warm: pool.New(pool.Config{Source: steps}), Telemetry: &telemetry.Telemetry{},
		Slots: 3, DrainTimeout: time.Minute, AdminListen: "127.0.0.1:0", Log: host.config.Execution.Log,
	}
	t.Cleanup(d.Close)
	return d
}

// answer returns the status and the body of the response to a GET request.
func answer(t *testing.T, address string) (int, string) {
	t.Helper()
	response, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestADaemonAnnouncesItselfAndDrains(t *testing.T) {
	log := newLines()
	d := newDaemon(t, log)
	d.ReadyFile = filepath.Join(t.TempDir(), "ready.json")
	accepting := errors.New("still begins")
	admin, err := d.Admin(func() error { return accepting })
	if err != nil {
		t.Fatal(err)
	}
	api, err := Bind("--listen", "127.0.0.1:0", 1,
		&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_,
				_ = io.WriteString(w, "api")
		})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	began, drained, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- d.Serve(ctx, Service{
			API: api, Admin: admin, Token: runner.NewSecret("hunter2hunter2hunter2"), TokenFile: "/run/token",
			Begin:   func() error { accepting = nil; close(began); return nil },
			Running: func() int { return 2 },
			Drain: func(context.Context) {
				if _, err := os.Stat(d.ReadyFile); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the ready file exists during the drain: %v", err)
				}
				if status, _ := answer(t, admin.URL+"/healthz"); status != 200 {
					t.Errorf("operators get %d during the drain", status)
				}
				close(drained)
			},
		})
	}()
	<-began
	for !strings.Contains(log.String(), "msg=serving slots=3 admin_url="+admin.URL+" url="+api.URL) {
		<-log.more
	}
	text, err := os.ReadFile(d.ReadyFile)
	var ready map[string]string
	if err := errors.Join(err, json.Unmarshal(text, &ready)); err != nil || ready["url"] != api.URL ||
		ready["admin_url"] != admin.URL || ready["token"] != "hunter2hunter2hunter2" {
		t.Errorf("%s, %v", text, err)
	}
	if info, err := os.Stat(d.ReadyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if status, body := answer(t, api.URL); status != 200 || body != "api" {
		t.Errorf("%d %q", status, body)
	}
	if status, body := answer(t, admin.URL+"/readyz"); status != 200 || !strings.Contains(body, `"accepting":"ok"`) ||
		!strings.Contains(body, `"redis":"ok"`) {
		t.Errorf("%d %s", status, body)
	}
	stop()
	<-drained
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := http.Get(api.URL); err == nil {
		t.Error("the API answers after the end")
	}
	if logged := log.String(); !strings.Contains(logged, "msg=draining running=2 drain_timeout=1m0s") ||
		!strings.Contains(logged, "file=/run/token") || strings.Contains(logged, "hunter2") {
		t.Errorf("%s", logged)
	}
}

func TestADaemonThatCannotBeginOrServeEnds(t *testing.T) {
	broken := errors.New("redis is gone")
	for name, row := range map[string]struct {
		change func(d *Daemon, s *Service)
		want   string
	}{
		"begin": {func(_ *Daemon, s *Service) { s.Begin = func() error { return broken } }, "redis is gone"},
		"ready file": {func(d *Daemon, _ *Service) { d.ReadyFile = "/no/such/folder/ready" },
			`write --ready-file "/no/such/folder/ready": no such file or directory`},
		"listener": {func(_ *Daemon, s *Service) { _ = s.Admin.listener.Close() }, "serve on 127.0.0.1:"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, newLines())
			admin, err := d.Admin(func() error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			drains := 0
			s := Service{Admin: admin, Running: func() int { return 0 }, Drain: func(context.Context) { drains++ }}
			row.change(d, &s)
			if err := d.Serve(t.Context(), s); err == nil || !strings.Contains(err.Error(), row.want) || drains != 1 {
				t.Errorf("%v after %d drains, want %q after one", err, drains, row.want)
			}
		})
	}
}

func TestADrainEndsWithItsTimeout(t *testing.T) {
	log := newLines()
	d := newDaemon(t, log)
	d.AdminListen, d.DrainTimeout = "", time.Millisecond
	if admin, err := d.Admin(nil); admin != nil || err != nil {
		t.Errorf("%v, %v; want no server without an address", admin, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	err := d.Serve(ctx, Service{Running: func() int { return 1 },
		Drain: func(limited context.Context) { <-limited.Done() }})
	if err != nil {
		t.Error(err)
	}
}

func TestReadiness(t *testing.T) {
	d := newDaemon(t, newLines())
	d.RequireSandbox = true
	if checks := d.Checks(); checks["sandbox"](t.Context()) == nil || checks["warm"] != nil || checks["audit"] != nil {
		t.Errorf("%v: a sandbox without layers should be unready, and nothing else is checked", checks)
	}
	d.RequireSandbox, d.WarmSize = false, 1
	checks := d.Checks()
	if err := checks["sandbox"](t.Context()); err != nil {
		t.Error(err)
	}
	if err := checks["warm"](t.Context()); err == nil {
		t.Error("ready before an interpreter was started")
	}
}

func TestNamesAreThoseOfFlagsCertificateAndMachine(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	names := (&Daemon{HostNames: []string{"a.example"}}).Names("b.example")
	for name, want := range map[string]bool{"a.example": true, "b.example": true, own: true, "127.0.0.1:80": true,
		"c.example": false} {
		if names.Allow(name) != want {
			t.Errorf("%s: allowed %v, want %v", name, !want, want)
		}
	}
}

func TestAHostOwnsRedisAndTheAuditFile(t *testing.T) {
	log := newLines()
	config := hostConfig(t, log)
	file := filepath.Join(t.TempDir(), "audit")
	var err error
	if config.Audit, err = audit.Open(file); err != nil {
		t.Fatal(err)
	}
	host, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Checks()["audit"](t.Context()); err != nil || !host.Embedded() {
		t.Errorf("embedded %v, audit %v", host.Embedded(), err)
	}
	host.Close()
	if err := host.Redis().Ping(t.Context()).Err(); err == nil {
		t.Error("Redis is open after Close")
	}
	config = hostConfig(t, log)
	config.Execution.Engine = nil
	if host, err = Open(config); err == nil || host != nil {
		t.Errorf("without an engine: %v, %v", host, err)
	}
	if err := config.Execution.Redis.Ping(t.Context()).Err(); err == nil {
		t.Error("Redis is open although Open failed")
	}
}

func TestSIGHUPReloadsTheSigningKeys(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "keys.jwk")
	write := func() {
		t.Helper()
		key, err := minter.NewSigningKey(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		// The watch of the folder does not see a file that is written in place.
		if err := os.WriteFile(file, []byte(key.JWK().Reveal()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	log := newLines()
	config := hostConfig(t, log)
	var err error
	if config.Execution.Keys, err = minter.LoadKeySet(minter.KeySetConfig{Path: file}); err != nil {
		t.Fatal(err)
	}
	host, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	stop := host.Follow(t.Context())
	<-log.more // the watch has begun, and with it the handling of signals
	keys := config.Execution.Keys
	before := keys.Current()
	write()
	for keys.Current() == before {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-log.more:
		case <-time.After(5 * time.Minute):
			t.Fatal("the signal did nothing")
		}
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(log.String(), "could not be reloaded; the previous ones stay in use") {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		<-log.more
	}
	stop()
}

func TestBind(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for address, row := range map[string]struct {
		want string
		code int
	}{
		taken.Addr().String(): {"--listen " + taken.Addr().String() +
			": bind: address already in use; free it, or choose another", exit.Failed},
		"127.0.0.1":              {`--listen "127.0.0.1" is not an address; write it like 127.0.0.1:8378`, exit.Usage},
		"127.0.0.1:http":         {`--listen "127.0.0.1:http" is not an address`, exit.Usage},
		"127.0.0.1:65536":        {`--listen "127.0.0.1:65536" is not an address`, exit.Usage},
		"no.such.host.invalid:1": {"--listen no.such.host.invalid:1: lookup", exit.Failed},
	} {
		if server, err := Bind("--listen", address, 1, &http.Server{}); server != nil || exit.Code(err) != row.code ||
			!strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, exit code %d; want %q", address, err, exit.Code(err), row.want)
		}
	}
	server, err := Bind("--listen", "127.0.0.1:0", 1, &http.Server{Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	stop := server.Start(slog.New(slog.DiscardHandler))
	if status, _ := answer(t, server.URL); status != 404 {
		t.Errorf("status %d", status)
	}
	stop()
	unused, err := Bind("--listen", "127.0.0.1:0", 1, &http.Server{})
	if err != nil {
		t.Fatal(err)
	}
	unused.Close()
	if _, err := net.Dial("tcp", strings.TrimPrefix(unused.URL, "http://")); err == nil {
		t.Error("a server that was closed before it served still listens")
	}
}
