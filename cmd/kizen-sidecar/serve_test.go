package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// served is a kizen-sidecar serve or worker that a test calls.
type served struct {
	*sidecartest.Service
	t *testing.T
}

// startServe starts the built binary's serve command and returns when it is ready.
func startServe(t *testing.T, arguments ...string) *served {
	t.Helper()
	return startServing(t, append([]string{"serve", "--listen", "127.0.0.1:0"}, arguments...)...)
}

// startServing starts a command that writes a ready file.
func startServing(t *testing.T, arguments ...string) *served {
	t.Helper()
	return &served{sidecartest.StartService(t, nil, arguments...), t}
}

// answer is a response of serve.
type answer struct {
	status int
	header http.Header
	body   string
}

// document decodes the answer as a result.
func (a answer) document(t *testing.T) document {
	t.Helper()
	var d document
	if err := json.Unmarshal([]byte(a.body), &d); err != nil || d.RequestID == "" {
		t.Fatalf("%d without a result: %v\n%s", a.status, err, a.body)
	}
	return d
}

// ask sends a request as existing clients do, for business b-1 and user u-1.
func (s *served) ask(method, path string, body any) answer {
	s.t.Helper()
	return s.askFor("b-1", method, path, body)
}

func (s *served) askFor(business, method, path string, body any) answer {
	s.t.Helper()
	got, err := s.try(s.t.Context(), business, method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

func (s *served) try(ctx context.Context, business, method, path string, body any) (answer, error) {
	var sent io.Reader
	if body != nil {
		text, raw := body.(json.RawMessage) // a body that need not be valid JSON
		if !raw {
			var err error
			if text, err = json.Marshal(body); err != nil {
				return answer{}, err
			}
		}
		sent = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.URL+path, sent)
	if err != nil {
		return answer{}, err
	}
	s.Authorize(r)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("X-BUSINESS-ID", business)
	r.Header.Set("X-USER-ID", "u-1")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(text)}, err
}

// step is the body of a request.
type step map[string]any

func script(source string) step { return step{"runtime": "python-3-13", "user_script": source} }

func (s step) with(name string, value any) step {
	s[name] = value
	return s
}

// gateAPI is an API whose steps wait at /gate until the test opens it.
type gateAPI struct {
	*httptest.Server
	gate    chan struct{}
	open    func()
	waiting atomic.Int64
	calls   atomic.Int64
}

func newGateAPI(t testing.TB) *gateAPI {
	t.Helper()
	api := &gateAPI{gate: make(chan struct{})}
	api.open = sync.OnceFunc(func() { close(api.gate) })
	api.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.calls.Add(1)
		if r.URL.Path == "/api/gate" {
			api.waiting.Add(1)
			defer api.waiting.Add(-1)
			select {
			case <-api.gate:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(api.Close)
	t.Cleanup(api.open) // before Close, which waits for requests in flight
	return api
}

func (a *gateAPI) root() string { return a.URL + apiRootPath }

// gateStep waits at the gate. Its child has its own session, so only the end of the whole sandbox ends it.
const gateStep = `
import subprocess
subprocess.Popen(["sleep", inputs.marker], start_new_session=True)
outputs.log("started")
kizen.api.get("/gate")
outputs.log("passed")
`

func gated(marker string) step {
	return script(gateStep).with("inputs", step{"marker": step{"t": "s", "v": marker}})
}

// newMarker returns an argument that identifies a process of this test.
func newMarker() string { return fmt.Sprintf("86400.%d%d", os.Getpid(), markers.Add(1)) }

var markers atomic.Int64

// TestServeAnswersExistingClients: requests in the form of existing clients get the status, values, logs and errors
// that those clients read. HTTP, secrets file, a real Python, the proxy and Redis meet.
func TestServeAnswersExistingClients(t *testing.T) {
	redisURL := startRedisServer(t)
	api := newRecordingAPI(t)
	api.expect(customObjects)
	secrets := writeFile(t, t.TempDir(), "secrets.json", `{"b-1": {"MY_KEY": "hunter2hunter2"}}`)
	s := startServe(t, "--api-root", api.root(), "--redis-url", redisURL, "--secrets-file", secrets)

	t.Run("a step that succeeds", func(t *testing.T) {
		got := s.ask("POST", "/api/coderunner/run", json.RawMessage(`{"runtime": "python-3-13",
			"user_script": "outputs.doubled = inputs.n * 2\noutputs.log(kizen.api.get('/custom-objects').json()['count'])\noutputs.log(secrets['MY_KEY'])",
			"inputs": {"n": {"t": "n", "v": "21.0"}}, "output_types": {"doubled": "n"}, "secrets": ["MY_KEY"]}`))
		d := got.document(t)
		if got.status != 200 || d.Error != nil || !sameJSON(d.Values["doubled"], []byte(`{"t": "n", "v": "42.0"}`)) {
			t.Errorf("%d %s", got.status, got.body)
		}
		if strings.Join(d.Logs, "|") != "7|[REDACTED]" || d.HTTPRequests.Count != 1 ||
			d.HTTPRequests.Requests[0].Status != 200 {
			t.Errorf("logs %q, http %+v", d.Logs, d.HTTPRequests)
		}
		call := api.apiCalls()[0]
		if call.header.Get("X-BUSINESS-ID") != "b-1" || call.header.Get("X-USER-ID") != "u-1" ||
			strings.Count(call.header.Get("X-API-KEY"), ".") != 2 {
			t.Errorf("the API got %v", call.header)
		}
		if strings.Contains(s.Log.String()+got.body, call.header.Get("X-API-KEY")) {
			t.Error("the key is in the answer or the log")
		}
	})
	t.Run("nulls", func(t *testing.T) {
		got := s.ask("POST", "/api/coderunner/run",
			json.RawMessage(`{"runtime": "python-3-12", "user_script": "pass", "inputs": null, "output_types": null}`))
		if got.status != 200 || !strings.Contains(got.body, `"error":null`) {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	t.Run("a step that fails", func(t *testing.T) {
		got := s.ask("POST", "/api/coderunner/run", script("outputs.log('before')\n\nraise ValueError('no <luck>')"))
		d := got.document(t)
		if got.status != 400 || d.Values != nil || d.Error == nil || d.Error.Error != "ValueError: no <luck>" ||
			len(d.Logs) != 1 {
			t.Errorf("%d %s", got.status, got.body)
		}
		if !strings.HasPrefix(d.Error.Detail, "Traceback") || !strings.Contains(d.Error.Detail, `File "script.py", line 3`) ||
			strings.Count(d.Error.Detail, "File ") != 1 {
			t.Errorf("detail %q", d.Error.Detail)
		}
	})
	for name, c := range map[string]struct{ body, want string }{
		"an unknown type": {`{"runtime": "python-3-13", "user_script": "pass", "inputs": {"x": {"t": "mail", "v": 1}}}`,
			`{"inputs": {"x": {"t": ["Invalid Kizen type 'mail'"]}}}`},
		"an unknown secret": {`{"runtime": "python-3-13", "user_script": "pass", "secrets": ["NOPE"]}`,
			`{"secrets": ["secret \"NOPE\" does not exist"]}`},
		"an unknown runtime": {`{"runtime": "ruby", "user_script": "pass"}`, `{"runtime": [`},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.ask("POST", "/api/coderunner/run", json.RawMessage(c.body))
			same := sameJSON([]byte(got.body), []byte(c.want)) ||
				strings.HasPrefix(got.body, strings.ReplaceAll(c.want, " ", ""))
			if got.status != 400 || !same || strings.Contains(got.body, "request_id") {
				t.Errorf("%d %s, want %s", got.status, got.body, c.want)
			}
		})
	}
	requireNoRecords(t, redisURL)
	if code := s.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// stream reads the events of an execution, one at a time.
type stream struct {
	t     *testing.T
	body  io.Closer
	lines *bufio.Scanner
}

func (s *served) events(id string) *stream {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), "GET", s.URL+"/executions/"+id+"/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Authorize(r)
	r.Header.Set("X-BUSINESS-ID", "b-1")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = response.Body.Close() })
	return &stream{s.t, response.Body, bufio.NewScanner(response.Body)}
}

// next returns the type and the data of the next event.
func (s *stream) next() (kind, data string) {
	s.t.Helper()
	for s.lines.Scan() {
		line := s.lines.Text()
		if value, ok := strings.CutPrefix(line, "event:"); ok {
			kind = strings.TrimSpace(value)
		}
		if value, ok := strings.CutPrefix(line, "data:"); ok {
			return kind, value
		}
	}
	s.t.Fatalf("the stream ended: %v", s.lines.Err())
	return "", ""
}

// until skips to the next event of a kind, and returns its data.
func (s *stream) until(kind string) string {
	s.t.Helper()
	for {
		if got, data := s.next(); got == kind {
			return data
		}
	}
}

// TestServeStreamsEventsWhileAStepRuns: events of a step arrive while it still runs, in order. The step waits at an API
// until the test has read the first ones.
func TestServeStreamsEventsWhileAStepRuns(t *testing.T) {
	api := newGateAPI(t)
	s := startServe(t, "--api-root", api.root())
	if got := s.ask("POST", "/executions", gated(newMarker()).with("execution_id", "e-1")); got.status != 202 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	events := s.events("e-1")
	for _, want := range []string{"queued", "started", "log"} { // the gate is closed, so the step still runs
		if kind, data := events.next(); kind != want {
			t.Fatalf("%s %s, want %s", kind, data, want)
		}
	}
	api.open()
	if kind, data := events.next(); kind != "http" || !strings.Contains(data, `/gate`) ||
		!strings.Contains(data, `"responseStatusCode":204`) {
		t.Errorf("%s %s, want the call", kind, data)
	}
	if kind, data := events.next(); kind != "log" || !strings.Contains(data, `"message":"passed"`) {
		t.Errorf("%s %s", kind, data)
	}
	if kind, data := events.next(); kind != "finished" || !strings.Contains(data, `"outcome":"ok"`) {
		t.Errorf("%s %s", kind, data)
	}
}

func redisClient(t *testing.T, redisURL string) *redis.Client {
	t.Helper()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestServeRefusesExecutionsBeyondItsQueue: with one slot and one place in the queue, further requests get 429, and
// both accepted executions still succeed.
func TestServeRefusesExecutionsBeyondItsQueue(t *testing.T) {
	api := newGateAPI(t)
	s := startServe(t, "--api-root", api.root(), "--slots", "1", "--queue-depth", "1")
	s.ask("POST", "/executions", gated(newMarker()).with("execution_id", "runs"))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	s.ask("POST", "/executions", script("pass").with("execution_id", "waits"))
	for _, path := range []string{"/executions", "/api/coderunner/run"} {
		if got := s.ask("POST", path, script("pass")); got.status != 429 || got.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", path, got.status, got.header, got.body)
		}
	}
	api.open()
	for _, id := range []string{"runs", "waits"} {
		if data := s.events(id).until("finished"); !strings.Contains(data, `"outcome":"ok"`) {
			t.Errorf("%s finished with %s", id, data)
		}
	}
}

// TestServeDrains: after SIGTERM, serve ends waiting executions, refuses new ones and gives running steps
// --drain-timeout. Then no key is left in Redis and no process on the machine.
func TestServeDrains(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, timeout string
		release       bool
		outcome       string
	}{
		{"a running step finishes", "60s", true, "ok"},
		{"a step that does not finish is cut off", "1ms", false, "cancelled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			redisURL := startRedisServer(t)
			api := newGateAPI(t)
			s := startServe(t, "--api-root", api.root(), "--redis-url", redisURL, "--slots", "1", "--drain-timeout", c.timeout)
			waitFor(t, func() bool { status, _ := s.Readiness(); return status == 200 })
			marker := newMarker()
			s.ask("POST", "/executions", gated(marker).with("execution_id", "runs"))
			waitFor(t, func() bool { return api.waiting.Load() == 1 })
			s.ask("POST", "/executions", script("pass").with("execution_id", "waits"))
			events, waits := s.events("runs"), s.events("waits")
			if err := s.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if data := waits.until("finished"); !strings.Contains(data, "shutting down") {
				t.Errorf("the waiting execution ended with %s", data)
			}
			if c.release {
				if got := s.ask("POST", "/api/coderunner/run", script("pass")); got.status != 503 ||
					!strings.Contains(got.body, `"draining"`) {
					t.Errorf("while draining: %d %s", got.status, got.body)
				}
				if status, body := s.Readiness(); status != 503 || !strings.Contains(body, "shutting down") {
					t.Errorf("ready while draining: %d %s", status, body)
				}
				api.open()
			}
			if data := events.until("finished"); !strings.Contains(data, `"outcome":"`+c.outcome+`"`) {
				t.Errorf("the running execution ended with %s", data)
			}
			if code := s.ExitCode(); code != exitOK {
				t.Errorf("exit code %d", code)
			}
			requireNoRecords(t, redisURL)
			requireNoProcess(t, marker)
		})
	}
}

// TestServeReadsTheConfigurationThatItPrints: serve reads its own --print-config output again, and names unknown keys
// and wrong values of a file.
func TestServeReadsTheConfigurationThatItPrints(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, dir, "serve.yaml",
		"slots: 3\nredis-url: redis://user:hunter2hunter2@127.0.0.1:1/0\nqueue-depth: 5\ndrain-timeout: 7s\n")
	requirePrintedIsRead(t, []string{"KIZEN_QUEUE_DEPTH=6"}, []string{"serve", "--config", file, "--drain-timeout", "8s"},
		`slots: "3"`, `queue-depth: "6"`, "drain-timeout: 8s")
	for text, want := range map[string]string{
		"lease: 5s\n": `unknown keys: "lease"`, // another command's
		"slots: -3\n": "--slots", "timeout: 30\n": `"30" is not a duration`,
	} {
		got := sidecar(t, "", nil, "serve", "--config", writeFile(t, dir, "wrong.yaml", text))
		if got.code != exitUsage || !strings.Contains(got.stderr, want) {
			t.Errorf("%q: %d %s", text, got.code, got.stderr)
		}
	}
	if got := sidecar(t, "", nil, "serve", "--config", dir+"/nowhere"); got.code != exitUsage ||
		!strings.Contains(got.stderr, `--config: no such file "`+dir+`/nowhere"`) {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}

// TestThePrintedConfigurationIsEffective: --print-config shows the numbers that serve computes from the machine's
// cores, and refuses wrong ones.
func TestThePrintedConfigurationIsEffective(t *testing.T) {
	got := sidecar(t, "", nil, "serve", "--print-config")
	for _, line := range []string{fmt.Sprintf("slots: %q", fmt.Sprint(4*runtime.NumCPU())),
		fmt.Sprintf("queue-depth: %q", fmt.Sprint(64*runtime.NumCPU()))} {
		if !strings.Contains(got.stdout, line+"\n") {
			t.Errorf("no %q in\n%s%s", line, got.stdout, got.stderr)
		}
	}
	if got := sidecar(t, "", nil, "serve", "--print-config", "--slots=-1"); got.code != exitUsage ||
		!strings.Contains(got.stderr, "--slots") {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}

// requirePrintedIsRead checks that the configuration that a command prints has the wanted lines and no secret, and
// that the command can read it.
func requirePrintedIsRead(t *testing.T, environment, arguments []string, want ...string) {
	t.Helper()
	first := sidecar(t, "", environment, append(arguments, "--print-config")...)
	for _, line := range append(want, "[REDACTED]") {
		if first.code != exitOK || !strings.Contains(first.stdout, line) {
			t.Errorf("no %q in %d\n%s%s", line, first.code, first.stdout, first.stderr)
		}
	}
	if strings.Contains(first.stdout, "hunter2") {
		t.Errorf("a secret is printed:\n%s", first.stdout)
	}
	printed := writeFile(t, t.TempDir(), "printed.yaml", first.stdout)
	if again := sidecar(t, "", nil, arguments[0], "--config", printed, "--print-config"); again.stdout != first.stdout {
		t.Errorf("read back:\n%s\n%s", again.stdout, again.stderr)
	}
}
