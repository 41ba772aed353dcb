package main

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// startProxy starts the built binary's proxy command and returns when it has printed its address.
func startProxy(t *testing.T, arguments ...string) *sidecartest.Proxy {
	t.Helper()
	return sidecartest.StartProxy(t, nil, arguments...)
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

var customObjects = []route{{Method: "GET", Path: "/custom-objects",
	Responses: []cannedResponse{{Status: 200, JSON: []byte(`{"count": 7}`)}}}}

// TestProxyAuthenticatesCallsAndRevokesItsKeyAtTheEnd: the life of a proxy from its env file to the exit code: the API
// gets a signed key, health is OK, and after a signal Redis holds no record. All parts of the command meet.
func TestProxyAuthenticatesCallsAndRevokesItsKeyAtTheEnd(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			redisURL := startRedisServer(t)
			api := newRecordingAPI(t)
			api.expect(customObjects)
			envFile := filepath.Join(t.TempDir(), "env")
			p := startProxy(t, "--api-root", api.root(), "--redis-url", redisURL, "--env-file", envFile,
				"--business-id", "b-1", "--user-id", "u-1")

			written, err := os.ReadFile(envFile)
			if err != nil || string(written) != "KIZEN_API_URL="+p.URL+"\n" {
				t.Errorf("env file = %q, %v", written, err)
			}
			if info, err := os.Stat(envFile); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("env file: %v %v", info.Mode(), err)
			}
			status, body := get(t, p.URL+"/custom-objects")
			if status != 200 || body != `{"count": 7}` {
				t.Errorf("answer = %d %s", status, body)
			}
			call := api.apiCalls()[0]
			if strings.Count(call.header.Get("X-API-KEY"), ".") != 2 || call.header.Get("X-BUSINESS-ID") != "b-1" ||
				call.header.Get("X-USER-ID") != "u-1" {
				t.Errorf("the API got %v", call.header)
			}
			if healthy := sidecar(t, "", nil, "health", "--env-file", envFile); healthy.code != exitOK {
				t.Errorf("health = %d %s", healthy.code, healthy.stderr)
			}
			if code := p.Stop(t, signal); code != exitOK {
				t.Errorf("exit code %d\n%s", code, p.Log)
			}
			if _, err := os.Stat(envFile); err == nil {
				t.Error("the env file is left behind")
			}
			requireNoRecords(t, redisURL)
			if strings.Contains(p.Log.String(), call.header.Get("X-API-KEY")) {
				t.Error("the log shows the key")
			}
			if gone := sidecar(t, "", []string{"KIZEN_API_URL=" + p.URL}, "health"); gone.code != exitSidecar {
				t.Errorf("health of a stopped proxy = %d", gone.code)
			}
		})
	}
}

// TestProxyRenewsItsKeyWithoutFailingARequest: calls succeed without a gap while a key of one second is renewed twice.
// The minter's timer and the proxy's calls share the key.
func TestProxyRenewsItsKeyWithoutFailingARequest(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect(customObjects)
	p := startProxy(t, "--api-root", api.root(), "--key-lifetime", "1s")
	keys := map[string]bool{}
	for deadline := time.Now().Add(5 * time.Minute); len(keys) < 3 && time.Now().Before(deadline); {
		if status, body := get(t, p.URL+"/custom-objects"); status != 200 {
			t.Fatalf("answer = %d %s", status, body)
		}
		calls := api.apiCalls()
		keys[calls[len(calls)-1].header.Get("X-API-KEY")] = true
	}
	if len(keys) < 3 {
		t.Errorf("%d keys were used, want at least 3", len(keys))
	}
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.Log)
	}
}

// TestProxyRefusesRequestsWithoutItsCapability: a request without the random path gets 403, learns nothing of that
// path, and does not reach the API.
func TestProxyRefusesRequestsWithoutItsCapability(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect(customObjects)
	p := startProxy(t, "--api-root", api.root())
	address, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/custom-objects", "/", "/" + strings.Repeat("A", 43) + "/custom-objects"} {
		if status, body := get(t, "http://"+address.Host+path); status != 403 || strings.Contains(body, address.Path) {
			t.Errorf("GET %s = %d %s", path, status, body)
		}
	}
	if calls := api.apiCalls(); len(calls) != 0 {
		t.Errorf("the API was reached: %v", calls)
	}
}

// TestProxySaysWhichPortIsTaken: if another process listens at --listen, the last line names the address, with the exit
// code of a sidecar's failure.
func TestProxySaysWhichPortIsTaken(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := sidecar(t, "", nil, "proxy", "--listen", listener.Addr().String())
	last := lastLine(got.stderr)
	if got.code != exitSidecar || !strings.Contains(last, listener.Addr().String()) || !strings.Contains(last, "in use") {
		t.Errorf("exit code %d, %q", got.code, got.stderr)
	}
}

// TestTheClientModuleCallsThroughTheProxy: the Python module that kizen-sidecar client writes works in an ordinary
// interpreter. The module, the requests package and the proxy meet.
func TestTheClientModuleCallsThroughTheProxy(t *testing.T) {
	python := pythonWithRequests(t)
	api := newRecordingAPI(t)
	api.expect(customObjects)
	lib := t.TempDir()
	if got := sidecar(t, "", nil, "client", lib); got.code != exitOK {
		t.Fatalf("client: %d %s", got.code, got.stderr)
	}
	p := startProxy(t, "--api-root", api.root())
	script := exec.Command(python, "-c", `import kizen; print(kizen.api.get("/custom-objects").json()["count"])`)
	script.Env = []string{"PYTHONPATH=" + lib, "KIZEN_API_URL=" + p.URL}
	if out, err := script.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "7" {
		t.Errorf("%v: %s", err, out)
	}
}

// pythonWithRequests returns the Python that .ci/setup prepared.
func pythonWithRequests(t testing.TB) string {
	t.Helper()
	venv, err := filepath.Abs(filepath.Join(projectRoot, ".venv/bin/python"))
	if err != nil {
		t.Fatal(err)
	}
	for _, python := range []string{venv, "/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", "import requests").Run() == nil {
			return python
		}
	}
	t.Fatal("no python3 with requests; run .ci/setup test")
	return ""
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
