package main

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// callsOf returns the number of calls by outcome, as the proxy logs it when it stops.
func callsOf(t *testing.T, p *sidecartest.Proxy) map[string]int {
	t.Helper()
	if code := p.Stop(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.Log)
	}
	for line := range strings.Lines(p.Log.String()) {
		var record struct {
			Msg   string
			Calls map[string]int
		}
		if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "stopped" {
			return record.Calls
		}
	}
	t.Fatalf("the log does not count the calls:\n%s", p.Log)
	return nil
}

// TestTwoBusinessesCannotUseEachOthersProxy: the proxy of one business refuses the address of another, and shows
// nothing of it. Two processes of the binary call the same API with their own keys.
func TestTwoBusinessesCannotUseEachOthersProxy(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect(customObjects)
	var proxies [2]*sidecartest.Proxy
	for i, business := range []string{"b-one", "b-two"} {
		proxies[i] = startProxy(t, "--api-root", api.root(), "--business-id", business, "--user-id", "u", "--log-format",
			"json")
	}
	for i, own := range proxies {
		if status, _ := get(t, own.URL+"/custom-objects"); status != 200 {
			t.Errorf("own proxy: %d", status)
		}
		mine, _ := url.Parse(own.URL)
		theirs, _ := url.Parse(proxies[1-i].URL)
		for _, path := range []string{mine.Path + "/custom-objects", "/custom-objects", mine.Path + "/.." + theirs.Host} {
			if status, body := get(t, "http://"+theirs.Host+path); status != 403 || strings.Contains(body, "b-") ||
				strings.Contains(body, theirs.Path) {
				t.Errorf("the other's proxy: %d %s", status, body)
			}
		}
	}
	calls := api.apiCalls()
	if len(calls) != 2 || calls[0].header.Get("X-BUSINESS-ID") != "b-one" ||
		calls[1].header.Get("X-BUSINESS-ID") != "b-two" ||
		calls[0].header.Get("X-API-KEY") == calls[1].header.Get("X-API-KEY") {
		t.Errorf("the api saw %v", calls)
	}
	for _, p := range proxies {
		if counted := callsOf(t, p); counted["answered"] != 1 || counted["forbidden"] != 3 {
			t.Errorf("counted %v", counted)
		}
	}
}

// TestProxyAuditsEveryCall: the audit file has a line for a call that was answered and for one that was refused, and
// neither the file nor the log contains a secret. The proxy, the policy and the file's mode meet.
func TestProxyAuditsEveryCall(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect([]route{{Method: "GET", Path: "/x?a=1&access_token=hunter2",
		Responses: []cannedResponse{{Status: 200, Text: "four"}}}})
	file := filepath.Join(t.TempDir(), "audit")
	p := startProxy(t, "--api-root", api.root(), "--audit-file", file, "--log-format", "json", "--log-level", "debug")
	get(t, p.URL+"/x?a=1&access_token=hunter2")
	get(t, p.URL+"/..%2fx")
	if counted := callsOf(t, p); counted["answered"] != 1 || counted["bad_path"] != 1 {
		t.Errorf("counted %v", counted)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key := api.apiCalls()[0].header.Get("X-API-KEY")
	for _, secret := range []string{"hunter2", key} {
		if strings.Contains(string(written)+p.Log.String(), secret) {
			t.Errorf("%q is in\n%s\n%s", secret, written, p.Log)
		}
	}
	var lines []map[string]any
	for line := range strings.Lines(string(written)) {
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fields)
	}
	if len(lines) != 2 {
		t.Fatalf("the audit is\n%s", written)
	}
	for i, want := range []map[string]any{
		{"method": "GET", "path": "/x", "query": "a=1&access_token=[REDACTED]", "status": 200., "response_bytes": 4.,
			"outcome": "answered", "decision": "allow"},
		{"method": "GET", "path": "/..%2fx", "status": 400., "outcome": "bad_path", "decision": "deny"},
	} {
		for name, value := range want {
			if lines[i][name] != value {
				t.Errorf("line %d: %s is %v, want %v", i, name, lines[i][name], value)
			}
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("audit file: %v %v", info, err)
	}
}

// waitingAPI answers a request when it is released. entered receives one value for each request.
func waitingAPI(t *testing.T) (root string, entered chan struct{}, release func()) {
	t.Helper()
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-gate:
			_, _ = io.WriteString(w, "late")
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(api.Close)
	return api.URL + "/api", entered, func() { close(gate) }
}

// TestProxyEnforcesItsLimits: --max-body and --max-in-flight refuse calls beyond them, and the log at the end counts
// the refusals.
func TestProxyEnforcesItsLimits(t *testing.T) {
	root, entered, release := waitingAPI(t)
	p := startProxy(t, "--api-root", root, "--max-body", "10B", "--max-in-flight", "1", "--log-format", "json")
	response, err := http.Post(p.URL+"/x", "text/plain", strings.NewReader("eleven bytes"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("body beyond the limit: %d", response.StatusCode)
	}
	first := make(chan string, 1)
	go func() { first <- getLater(p.URL + "/x") }()
	<-entered
	if status, _ := get(t, p.URL+"/x"); status != http.StatusTooManyRequests {
		t.Errorf("a second call at once: %d", status)
	}
	release()
	if body := <-first; body != "late" {
		t.Errorf("the first call: %q", body)
	}
	if counted := callsOf(t, p); counted["body_too_large"] != 1 || counted["too_many_requests"] != 1 ||
		counted["answered"] != 1 {
		t.Errorf("counted %v", counted)
	}
}

// getLater is get for a goroutine other than the test's.
func getLater(url string) string {
	response, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// TestProxyLetsCallsFinishWithinTheGrace: after SIGTERM, a proxy accepts no new connection and still delivers the
// answer of a call in progress.
func TestProxyLetsCallsFinishWithinTheGrace(t *testing.T) {
	root, entered, release := waitingAPI(t)
	p := startProxy(t, "--api-root", root, "--shutdown-grace", "30s")
	call := make(chan string, 1)
	go func() { call <- getLater(p.URL + "/x") }()
	<-entered
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	address, _ := url.Parse(p.URL)
	waitFor(t, func() bool { // no new call is accepted
		conn, err := net.Dial("tcp", address.Host)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	release()
	if body := <-call; body != "late" {
		t.Errorf("the call under way: %q", body)
	}
	if code := p.ExitCode(t); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.Log)
	}
}

// TestProxyCutsCallsAfterTheGraceAndAtItsDeadline: a call of an API that does not answer ends with --shutdown-grace or
// with --ttl, and the process exits with 0. Signal, timer and connection meet.
func TestProxyCutsCallsAfterTheGraceAndAtItsDeadline(t *testing.T) {
	for name, arguments := range map[string][]string{
		"grace": {"--shutdown-grace", "50ms"}, "deadline": {"--ttl", "500ms", "--shutdown-grace", "50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			root, entered, _ := waitingAPI(t)
			p := startProxy(t, append(arguments, "--api-root", root)...)
			call := make(chan string, 1)
			go func() { call <- getLater(p.URL + "/x") }()
			<-entered
			if name == "grace" {
				_ = p.Process.Signal(syscall.SIGTERM)
			}
			if body := <-call; body == "late" {
				t.Errorf("the call under way: %q", body)
			}
			if code := p.ExitCode(t); code != exitOK {
				t.Errorf("exit code %d\n%s", code, p.Log)
			}
		})
	}
}

// tlsAPI is an API with TLS that counts its connections. ca is the file of its certificate authority. The certificate
// is for example.com and 127.0.0.1.
func tlsAPI(t testing.TB) (api *httptest.Server, ca string, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	api = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-BUSINESS-ID")+" "+r.Proto)
	}))
	api.EnableHTTP2 = true
	api.Config.ErrorLog = log.New(io.Discard, "", 0) // the test includes a caller that does not trust the authority
	api.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateActive || state == http.StateIdle { // the handshake is done
			connections.Add(1)
		}
	}
	api.StartTLS()
	t.Cleanup(api.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return api, ca, connections
}

// TestProxyVerifiesAndPrewarmsTLS: a proxy connects to a TLS API before the first call and speaks HTTP/2 to it. Without
// --api-ca, it refuses the certificate.
func TestProxyVerifiesAndPrewarmsTLS(t *testing.T) {
	api, ca, connections := tlsAPI(t)
	p := startProxy(t, "--api-root", api.URL+"/api", "--api-ca", ca, "--prewarm", "1", "--business-id", "b-1", "--user-id",
		"u")
	waitFor(t, func() bool { return connections.Load() > 0 }) // before any request
	if status, body := get(t, p.URL+"/x"); status != 200 || body != "b-1 HTTP/2.0" {
		t.Errorf("answer %d %s", status, body)
	}
	strange := startProxy(t, "--api-root", api.URL+"/api", "--prewarm", "0")
	if status, body := get(t, strange.URL+"/x"); status != http.StatusBadGateway ||
		!strings.Contains(body, "certificate") {
		t.Errorf("without its authority: %d %s", status, body)
	}
}

// TestProxySpeaksPlainHTTPOnlyToLoopback: an http API on another machine needs --insecure-api. With that flag the proxy
// starts.
func TestProxySpeaksPlainHTTPOnlyToLoopback(t *testing.T) {
	refused := sidecar(t, "", nil, "proxy", "--api-root", "http://192.0.2.1/api")
	if refused.code == exitOK || !strings.Contains(lastLine(refused.stderr), "plain http") {
		t.Errorf("exit code %d, %s", refused.code, refused.stderr)
	}
	startProxy(t, "--api-root", "http://192.0.2.1/api", "--insecure-api", "--prewarm", "0")
}

// TestProxyGoesThroughTheOperatorsProxy: with HTTPS_PROXY, calls go through a CONNECT tunnel, whose request carries no
// key. The variable is read from the environment of a real process.
func TestProxyGoesThroughTheOperatorsProxy(t *testing.T) {
	api, ca, _ := tlsAPI(t)
	asked := make(chan string, 10)
	operators := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.RequestURI + " " + r.Header.Get("X-API-KEY")
		up, err := net.Dial("tcp", api.Listener.Addr().String())
		if err != nil {
			return
		}
		defer up.Close()
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down) }() // ends with down
		_, _ = io.Copy(down, up)
	}))
	t.Cleanup(operators.Close)
	p := sidecartest.StartProxy(t, []string{"HTTPS_PROXY=" + operators.URL}, "--api-root", "https://example.com/api",
		"--api-ca", ca,
		"--prewarm", "0", "--business-id", "b-1", "--user-id", "u")
	if status, body := get(t, p.URL+"/x"); status != 200 || body != "b-1 HTTP/2.0" {
		t.Errorf("answer %d %s", status, body)
	}
	if got := <-asked; got != "CONNECT example.com:443 " {
		t.Errorf("the operator's proxy was asked %q", got)
	}
	p.Stop(t, syscall.SIGTERM)
}
