package serve

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server whose executions do what their scripts name.
type world struct {
	t      *testing.T
	server *Server
	http   *httptest.Server
	mu     sync.Mutex
	ran    []execution.Request
	// release ends executions whose script is "wait" or "talk".
	release chan struct{}
	// cut receives the address of each client whose connection the server has closed.
	cut chan string
}

// talk is how many bytes the script "talk" logs.
const talk = 12 << 20

// run replaces a host: the script names its result.
func (w *world) run(ctx context.Context, r execution.Request) (execution.Ended, error) {
	w.mu.Lock()
	w.ran = append(w.ran, r)
	w.mu.Unlock()
	result := runner.Result{RequestID: r.Identity.ExecutionID, Outcome: outcomes.OK}
	r.Job.Observer.Log("began")
	what, _, _ := strings.Cut(string(r.Job.Script), " ")
	switch what {
	case "raise":
		result.Outcome, result.Error = outcomes.Exception, &runner.StepError{Message: "ValueError: no <luck>"}
	case "redis":
		return execution.Ended{}, &redisconn.Error{}
	case "python":
		return execution.Ended{}, fmt.Errorf("x: %w", runner.ErrNoPython)
	case "suspended":
		return execution.Ended{}, &minter.DeniedError{Code: minter.CodeSuspended, Reason: "the account is suspended",
			Err: minter.ErrSuspended}
	case "broken":
		return execution.Ended{}, errors.New("a secret inside")
	case "talk":
		message := strings.Repeat("x", talk)
		r.Job.Observer.Log(message)
		result.Logs = []string{message}
		<-w.release
	case "wait":
		select {
		case <-w.release:
		case <-ctx.Done():
			result.Outcome, result.Error = outcomes.Cancelled, &runner.StepError{Message: "cancelled"}
		}
	}
	return execution.Ended{Result: result}, nil
}

func (w *world) requests() []execution.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ran
}

// start serves the given callers, or everyone on loopback.
func start(t *testing.T, callers *Callers, slots, depth int, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, release: make(chan struct{}), cut: make(chan string, 64)}
	q, err := queue.New(slots, depth)
	if err != nil {
		t.Fatal(err)
	}
	service := NewRegistry(RegistryConfig{Queue: q, Run: w.run})
	if callers == nil {
		callers = AnonymousCallers(minter.Identity{BusinessID: "dev-b", AccountID: "dev-u",
			AccountType: "service_automation"})
	}
	secrets, err := execution.ParseSecrets([]byte(`{"b1": {"MY_KEY": "hunter2hunter2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Executions: service, Queue: q, Callers: callers, Secrets: secrets, MaxBody: 80 << 10, ArrivingBytes: 160 << 10,
		UI: true,
		CheckIdentity: func(id minter.Identity) error {
			if id.AccountType != "service_automation" {
				return errors.New("unknown account type")
			}
			return nil
		},
	}
	for _, f := range change {
		f(&config)
	}
	w.server = NewServer(config)
	w.http = httptest.NewUnstartedServer(w.server.Handler())
	w.http.Config.ConnState = func(connection net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			select {
			case w.cut <- connection.RemoteAddr().String():
			default:
			}
		}
	}
	w.http.Start()
	t.Cleanup(func() {
		w.http.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = service.Shutdown(ctx) // cuts off the running executions
	})
	return w
}

// reply is a response with its body read.
type reply struct {
	status int
	header http.Header
	body   string
}

// call sends one request, and checks it and its response against the description.
func (w *world) call(method, path, body string, header http.Header) reply {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.http.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header = header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if _, set := r.Header["Content-Type"]; body != "" && !set {
		r.Header.Set("Content-Type", "application/json")
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
	response, err := w.http.Client().Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	checkDescribed(w.t, r, body, response, answer)
	return reply{response.StatusCode, response.Header, string(answer)}
}

func script(text string) string { return `{"runtime": "python-3-13", "user_script": "` + text + `"}` }

var asB1 = http.Header{"X-Business-Id": {"b1"}, "X-User-Id": {"u1"}}

func TestRunAnswersAsExistingClientsExpect(t *testing.T) {
	w := start(t, nil, 4, 4)
	for name, c := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"success":         {script("fine"), 200, `"error":null`},
		"a failed step":   {script("raise"), 400, `"error":"ValueError: no <luck>"`},
		"unknown runtime": {`{"runtime": "python-2-7", "user_script": "x"}`, 400, `{"runtime":[`},
		"unknown type": {`{"runtime": "python-3-13", "user_script": "x", "inputs": {"x": {"t": "mail", "v": 1}}}`, 400,
			`{"inputs":{"x":{"t":["Invalid Kizen type 'mail'"]}}}`},
		"unknown secret": {`{"runtime": "python-3-13", "user_script": "x", "secrets": ["NOPE"]}`, 400, `{"secrets":[`},
		"not JSON":       {`{`, 400, `{"non_field_errors":[`},
		"an id":          {`{"runtime": "python-3-13", "user_script": "x", "execution_id": "e1"}`, 400, `{"execution_id":[`},
		"too large":      {script(strings.Repeat("x", 90<<10)), 413, `"code":"too_large"`},
		"redis is down":  {script("redis"), 503, `"code":"store_unavailable"`},
		"no python":      {script("python"), 503, `"code":"runner_unavailable"`},
		"suspended":      {script("suspended"), 403, `"code":"suspended"`},
		"a callback": {`{"user_script": "x", "callback_url": "https://example.com/"}`, 400,
			`{"callback_url":["is for POST /executions; leave it out here"]}`},
		"an internal error": {script("broken"), 500, `"code":"internal"`},
		"a bad business":    {`{"user_script": "x", "business_id": "a b"}`, 400, `{"business_id":[`},
		"a bad type": {`{"user_script": "x", "account_type": "robot"}`, 400,
			`{"account_type":["unknown account type"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			got := w.call("POST", "/api/coderunner/run", c.body, nil)
			if got.status != c.status || !strings.Contains(got.body, c.want) || strings.Contains(got.body, "a secret inside") {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, c.status, c.want)
			}
			if has := strings.Contains(got.body, `"request_id"`); has != (c.status == 200 || name == "a failed step") {
				t.Errorf("request_id in the body: %v\n%s", has, got.body)
			}
		})
	}
}

func TestTheHeadersOfExistingClientsNameTheBusinessAndUser(t *testing.T) {
	w := start(t, nil, 1, 1)
	w.call("POST", "/api/coderunner/run", `{"runtime": "python-3-13", "user_script": "fine", "secrets": ["MY_KEY"]}`, asB1)
	w.call("POST", "/api/coderunner/run", script("fine"), nil)
	ran := w.requests()
	if id := ran[0].Identity; id.BusinessID != "b1" || id.AccountID != "u1" || id.ExecutionID == "" {
		t.Errorf("acted as %+v", id)
	}
	if ran[0].Job.Secrets["MY_KEY"].Reveal() != "hunter2hunter2" {
		t.Error("the secret was not granted")
	}
	if id := ran[1].Identity; id.BusinessID != "dev-b" || id.AccountID != "dev-u" {
		t.Errorf("without headers acted as %+v", id)
	}
	if got := w.call("POST", "/api/coderunner/run", `{"user_script": "x", "business_id": "b2"}`, asB1); got.status != 403 {
		t.Errorf("header and body differ: %d %s", got.status, got.body)
	}
}

func TestAnExecutionIsSubmittedWatchedAndRead(t *testing.T) {
	w := start(t, nil, 1, 1)
	body := `{"user_script": "wait", "execution_id": "e1", "timeout_ms": 1000}`
	first := w.call("POST", "/executions", body, asB1)
	if first.status != 202 || first.header.Get("Location") != "/executions/e1" {
		t.Fatalf("submitted: %d %v %s", first.status, first.header, first.body)
	}
	w.release <- struct{}{}
	events := w.call("GET", "/executions/e1/events", "", asB1) // ends when the execution has
	for _, kind := range []string{"queued", "started", "log", "finished"} {
		if !strings.Contains(events.body, "event:"+kind) {
			t.Errorf("no %s in %s", kind, events.body)
		}
	}
	for after, want := range map[string]string{"3": "id:4", "0": "id:1", "-1": "id:1", "x": "id:1"} {
		rest := w.call("GET", "/executions/e1/events", "", http.Header{"X-Business-Id": {"b1"}, "Last-Event-Id": {after}})
		if !strings.HasPrefix(rest.body, want+"\n") || !strings.Contains(rest.body, "event:finished") {
			t.Errorf("after event %q: %s", after, rest.body)
		}
	}
	for _, after := range []string{"4", "999"} {
		if rest := w.call("GET", "/executions/e1/events", "", http.Header{"X-Business-Id": {"b1"}, "Last-Event-Id": {after}}); rest.status != 204 {
			t.Errorf("after event %s of four: %d %s", after, rest.status, rest.body)
		}
	}
	shown := w.call("GET", "/executions/e1", "", asB1)
	var snapshot Snapshot
	if err := json.Unmarshal([]byte(shown.body), &snapshot); err != nil || snapshot.State != Finished ||
		!strings.Contains(string(snapshot.Result), `"request_id":"e1"`) {
		t.Errorf("shown %s, %v", shown.body, err)
	}
	if again := w.call("POST", "/executions", body, asB1); again.status != 202 || again.body != shown.body ||
		len(w.requests()) != 1 {
		t.Errorf("submitted again: %d %s, ran %d times", again.status, again.body, len(w.requests()))
	}
	if other := w.call("POST", "/executions", `{"user_script": "fine", "execution_id": "e1"}`, asB1); other.status != 409 {
		t.Errorf("the id with another request: %d %s", other.status, other.body)
	}
	if other := w.call("POST", "/executions", body, http.Header{"X-Business-Id": {"b1"}, "X-User-Id": {"u2"}}); other.status != 409 {
		t.Errorf("the id for another user: %d %s", other.status, other.body)
	}
	if wrong := w.call("POST", "/executions", `{"user_script": "fine", "runtime": "ruby", "frobnicate": 1}`, asB1); wrong.status != 400 || !strings.Contains(wrong.body, `{"frobnicate":[`) {
		t.Errorf("a wrong one: %d %s", wrong.status, wrong.body)
	}
	if foreign := w.call("GET", "/executions/e1", "", http.Header{"X-Business-Id": {"b2"}}); foreign.status != 404 {
		t.Errorf("another business: %d %s", foreign.status, foreign.body)
	}
	if list := w.call("GET", "/executions?state=finished", "", asB1); !strings.Contains(list.body, `"count":1`) ||
		strings.Contains(list.body, `"result":`) {
		t.Errorf("list %s", list.body)
	}
	if list := w.call("GET", "/executions?state=done", "", asB1); list.status != 400 ||
		!strings.Contains(list.body, `{"state":[`) {
		t.Errorf("an unknown state: %d %s", list.status, list.body)
	}
	if list := w.call("GET", "/executions?outcome=timeout", "", asB1); !strings.Contains(list.body, `"count":0`) {
		t.Errorf("list %s", list.body)
	}
}

func TestARecordShowsTheInputsDuringAndAfterTheStep(t *testing.T) {
	w := start(t, nil, 1, 1)
	body := `{"user_script": "wait # hunter2hunter2", "execution_id": "e1", "name": "sync", "secrets": ["MY_KEY"],
		"inputs": {"n": {"t": "n", "v": "21"}, "s": {"t": "s", "v": "hunter2hunter2"}}, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`
	if got := w.call("POST", "/executions", body, asB1); got.status != 202 {
		t.Fatalf("submitted: %d %s", got.status, got.body)
	}
	running := w.call("GET", "/executions/e1/record", "", asB1)
	for _, want := range []string{
		`"source":"wait # [REDACTED]"`, `"n":{"t":"n","v":"21"}`, `"s":{"t":"s","v":"[REDACTED]"}`, `"name":"sync"`,
		`"result":null`,
		`"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"`,
	} {
		if !strings.Contains(running.body, want) {
			t.Errorf("running: no %s in %s", want, running.body)
		}
	}
	close(w.release)
	w.call("GET", "/executions/e1/events", "", asB1)
	ended := w.call("GET", "/executions/e1/record", "", asB1)
	if !strings.Contains(ended.body, `"state":"finished"`) || !strings.Contains(ended.body, `"request_id":"e1"`) ||
		strings.Contains(ended.body, "hunter2") {
		t.Errorf("ended: %s", ended.body)
	}
	if foreign := w.call("GET", "/executions/e1/record", "", http.Header{"X-Business-Id": {"b2"}}); foreign.status != 404 {
		t.Errorf("another business: %d %s", foreign.status, foreign.body)
	}
}

func TestEventsArriveWhileAnExecutionRuns(t *testing.T) {
	w := start(t, nil, 1, 1)
	w.call("POST", "/executions", `{"user_script": "wait", "execution_id": "e1"}`, asB1)
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.http.URL+"/executions/e1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = asB1.Clone()
	response, err := w.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() && lines.Text() != "event:log" { // blocks until an event arrives, because the stream stays open
	}
	if lines.Text() != "event:log" {
		t.Errorf("the stream ended with %q", lines.Text())
	}
	close(w.release)
	if rest, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(rest), "finished") {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestACallerThatReadsNothingIsCutOff: the server writes more than all sockets buffer.
func TestACallerThatReadsNothingIsCutOff(t *testing.T) {
	for name, ask := range map[string]string{"an answer": "GET /executions/big",
		"a stream": "GET /executions/big/events"} {
		t.Run(name, func(t *testing.T) {
			w := start(t, nil, 1, 1, func(c *Config) { c.WriteTimeout = time.Second })
			w.call("POST", "/executions", `{"user_script": "talk", "execution_id": "big"}`, asB1)
			w.release <- struct{}{}
			for strings.Contains(w.call("GET", "/executions?state=finished", "", asB1).body, `"count":0`) {
				time.Sleep(time.Millisecond)
			}
			connection, err := net.Dial("tcp", w.http.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer connection.Close()
			fmt.Fprintf(connection, "%s HTTP/1.1\r\nHost: 127.0.0.1\r\nX-BUSINESS-ID: b1\r\n\r\n", ask)
			for <-w.cut != connection.LocalAddr().String() { // until the server has closed the connection
			}
			if read, err := io.Copy(io.Discard, connection); read >= talk {
				t.Errorf("%d bytes arrived, %v", read, err)
			}
		})
	}
}

// TestLargeBodiesThatArriveAreBounded: each business has its share, and small bodies are always read.
func TestLargeBodiesThatArriveAreBounded(t *testing.T) {
	w := start(t, nil, 4, 4)
	// Larger than smallBody, but within the limit.
	large := script("fine " + strings.Repeat("x", 50<<10) + strings.Repeat(" ", 14<<10))
	type arriving struct {
		body   *io.PipeWriter
		status chan int
	}
	begin := func(business string) arriving {
		read, write := io.Pipe()
		r, err := http.NewRequestWithContext(t.Context(), "POST", w.http.URL+"/api/coderunner/run", read)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength, r.Header = int64(len(large)),
			http.Header{"X-Business-Id": {business}, "Content-Type": {"application/json"}}
		a := arriving{write, make(chan int, 1)}
		go func() {
			response, err := w.http.Client().Do(r)
			if err != nil {
				a.status <- 0
				return
			}
			_ = response.Body.Close()
			a.status <- response.StatusCode
		}()
		_, _ = io.WriteString(write, large[:len(large)-1]) // a refused body is not read
		return a
	}
	one, two := begin("greedy"), begin("greedy")
	for w.server.bodies.Held("greedy") < int64(2*len(large)) {
		time.Sleep(time.Millisecond)
	}
	three := begin("greedy")
	if status := <-three.status; status != 429 {
		t.Errorf("the third body of a business: %d", status)
	}
	_ = three.body.Close()
	if got := w.call("POST", "/api/coderunner/run", script("fine"), http.Header{"X-Business-Id": {"greedy"}}); got.status != 200 {
		t.Errorf("a small one: %d %s", got.status, got.body)
	}
	modest := begin("modest")
	for _, a := range []arriving{one, two, modest} {
		_, _ = io.WriteString(a.body, large[len(large)-1:])
		_ = a.body.Close()
		if status := <-a.status; status != 200 {
			t.Errorf("a body that fits: %d", status)
		}
	}
	for _, business := range []string{"greedy", "modest"} {
		if held := w.server.bodies.Held(business); held != 0 {
			t.Errorf("no body arrives, but %d bytes of %s are counted", held, business)
		}
	}
}

// TestABodyThatDoesNotArriveIsNotAwaited: the server must close the connection, whether it knows the caller or not.
func TestABodyThatDoesNotArriveIsNotAwaited(t *testing.T) {
	for status, callers := range map[int]*Callers{408: nil, 401: tokens(t)} {
		w := start(t, callers, 1, 1, func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
		connection, err := net.Dial("tcp", w.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		// The server must not read the body.
		_, _ = io.WriteString(connection,
			"POST /api/coderunner/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		answer, err := io.ReadAll(connection)
		if err != nil || !strings.HasPrefix(string(answer), fmt.Sprintf("HTTP/1.1 %d ", status)) {
			t.Errorf("%s, %v; want %d", answer, err, status)
		}
	}
}

func TestABodyThatIsCompressedIsRefused(t *testing.T) {
	w := start(t, nil, 1, 1)
	got := w.call("POST", "/api/coderunner/run", script("fine"), http.Header{"Content-Encoding": {"gzip"}})
	if got.status != 415 || got.header.Get("Accept-Encoding") != "identity" {
		t.Errorf("%d %v %s", got.status, got.header, got.body)
	}
}

func TestCancellingEndsAnExecution(t *testing.T) {
	w := start(t, nil, 1, 1)
	w.call("POST", "/executions", `{"user_script": "wait", "execution_id": "e1"}`, asB1)
	if got := w.call("DELETE", "/executions/e1", "", asB1); got.status != 202 {
		t.Errorf("cancelled: %d %s", got.status, got.body)
	}
	if events := w.call("GET", "/executions/e1/events", "", asB1); !strings.Contains(events.body, "finished") {
		t.Errorf("events %s", events.body)
	}
	if got := w.call("DELETE", "/executions/e2", "", asB1); got.status != 404 {
		t.Errorf("cancelling an unknown execution: %d", got.status)
	}
}

func TestACancelledWaitingExecutionNeverStarts(t *testing.T) {
	w := start(t, nil, 1, 1)
	for _, id := range []string{"runs", "waits"} {
		w.call("POST", "/executions", `{"user_script": "wait", "execution_id": "`+id+`"}`, asB1)
	}
	for range 2 { // a second cancellation is not an error
		if got := w.call("DELETE", "/executions/waits", "", asB1); got.status != 202 {
			t.Errorf("cancelled: %d %s", got.status, got.body)
		}
	}
	if events := w.call("GET", "/executions/waits/events", "", asB1); strings.Contains(events.body, "event:started") ||
		!strings.Contains(events.body, `"outcome":"cancelled"`) {
		t.Errorf("events %s", events.body)
	}
	if shown := w.call("GET", "/executions/waits", "", asB1); strings.Contains(shown.body, "started_at") ||
		!strings.Contains(shown.body, `"outcome":"cancelled"`) {
		t.Errorf("shown %s", shown.body)
	}
	if record := w.call("GET", "/executions/waits/record", "", asB1); !strings.Contains(record.body,
		`"phases":[{"name":"queue"`) {
		t.Errorf("record %s", record.body)
	}
}

func TestADisconnectedCallerCancelsItsRun(t *testing.T) {
	w := start(t, nil, 1, 1)
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "POST", w.http.URL+"/api/coderunner/run", strings.NewReader(script("wait")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	ended := make(chan error)
	go func() {
		response, err := w.http.Client().Do(r)
		if err == nil {
			_ = response.Body.Close()
		}
		ended <- err
	}()
	for len(w.requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	hangUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	// The slot is free only after the run has been cancelled.
	if got := w.call("POST", "/api/coderunner/run", script("fine"), nil); got.status != 200 {
		t.Errorf("the next: %d %s", got.status, got.body)
	}
}

func TestAFullQueueSendsRetryAfter(t *testing.T) {
	w := start(t, nil, 1, 1)
	for i := range 2 {
		w.call("POST", "/executions", fmt.Sprintf(`{"user_script": "wait", "execution_id": "e%d"}`, i), asB1)
	}
	for _, path := range []string{"/executions", "/api/coderunner/run"} {
		if got := w.call("POST", path, script("fine"), asB1); got.status != 429 || got.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", path, got.status, got.header, got.body)
		}
	}
}

// TestPagesOfABrowserAreRefused: requests of web pages are refused, whatever the browser or a proxy adds to them.
func TestPagesOfABrowserAreRefused(t *testing.T) {
	for name, w := range map[string]*world{"anonymous": start(t, nil, 1, 1), "with a token": start(t, tokens(t), 1, 1)} {
		authorized := http.Header{"Authorization": {"Bearer platform-token-0123456789"}, "X-Business-Id": {"b1"},
			"X-User-Id": {"u1"}}
		for _, page := range attacks.Pages() {
			maps.Copy(page.Header, authorized)
			for _, path := range []string{"/api/coderunner/run", "/executions"} {
				if got := w.call("POST", path, script("fine"), page.Header); got.status != page.Status {
					t.Errorf("%s, %s, %s: %d %s", name, page.Name, path, got.status, got.body)
				}
			}
		}
		for _, attack := range []http.Header{{"Host": {"attacker.example"}}, {"Sec-Fetch-Site": {"cross-site"}}} {
			maps.Copy(attack, authorized)
			if got := w.call("DELETE", "/executions/e1", "", attack); got.status != 403 && got.status != 421 {
				t.Errorf("%s, DELETE: %d %s", name, got.status, got.body)
			}
		}
		if got := w.call("GET", "/executions", "", http.Header{"Host": {"attacker.example"}}); got.status != 421 {
			t.Errorf("%s, a rebound name reads: %d %s", name, got.status, got.body)
		}
		if len(w.requests()) != 0 {
			t.Error("something ran")
		}
		for _, fine := range []http.Header{{"Host": {"localhost:8378"}},
			{"Content-Type": {"application/json; charset=utf-8"}}, {"Sec-Fetch-Site": {"same-origin"}}} {
			maps.Copy(fine, authorized)
			if got := w.call("POST", "/api/coderunner/run", script("fine"), fine); got.status != 200 {
				t.Errorf("%s, %v: %d %s", name, fine, got.status, got.body)
			}
		}
	}
}

func TestNamesOfTheSidecarAreAllowed(t *testing.T) {
	w := start(t, nil, 1, 1, func(c *Config) { c.Hosts = hosts.New("sidecar.kizen.svc") })
	if got := w.call("POST", "/api/coderunner/run", script("fine"), http.Header{"Host": {"sidecar.kizen.svc:8378"}}); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestTheLocalTokenIdentifiesATrustedCaller(t *testing.T) {
	w := start(t, LocalCallers(runner.NewSecret("a-local-token-0123"),
		minter.Identity{BusinessID: "dev-b", AccountID: "dev-u", AccountType: "service_automation"}), 1, 1)
	for token, status := range map[string]int{"": 401, "Bearer wrong": 401, "Basic a-local-token-0123": 401,
		"Bearer a-local-token-0123": 200} {
		if got := w.call("POST", "/api/coderunner/run", script("fine"), http.Header{"Authorization": {token}, "X-Business-Id": {"b7"}}); got.status != status {
			t.Errorf("%q: %d %s", token, got.status, got.body)
		}
	}
	if ran := w.requests(); len(ran) != 1 || ran[0].Identity.BusinessID != "b7" || ran[0].Identity.AccountID != "dev-u" {
		t.Errorf("ran %+v", ran)
	}
}

// TestABusinessIsChargedForItsOwnBodiesOnly: until a caller is authorised, the business that it claims must not be
// charged.
func TestABusinessIsChargedForItsOwnBodiesOnly(t *testing.T) {
	w := start(t, tokens(t), 1, 1)
	large := strings.Repeat("x", 70<<10)
	got := w.call("POST", "/executions", large,
		http.Header{"Authorization": {"Bearer acme-token-0123456789"}, "X-Business-Id": {"victim"}})
	if got.status != 403 {
		t.Errorf("a business's token for another: %d %s", got.status, got.body)
	}
	read, write := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", w.http.URL+"/executions", read)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"Bearer acme-token-0123456789"}, "Content-Type": {"application/json"}}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if response, err := w.http.Client().Do(r); err == nil {
			_ = response.Body.Close()
		}
	}()
	_, _ = io.WriteString(write, large)
	for w.server.bodies.Held("b-acme") == 0 { // wait until the caller's own business is charged
		time.Sleep(time.Millisecond)
	}
	_ = write.Close()
	<-answered
}

// tokens writes a list of callers and the files with their tokens.
func tokens(t *testing.T) *Callers {
	t.Helper()
	dir := t.TempDir()
	for name, token := range map[string]string{"platform": "platform-token-0123456789",
		"acme": "acme-token-0123456789\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	callers, err := LoadCallers([]byte(`
- {name: platform, token_file: ` + dir + `/platform, trusted: true}
- {name: acme, token_file: ` + dir + `/acme, business_id: b-acme, user_id: u-acme}
- {name: mesh, certificate: "spiffe://kizen/orchestrator", business_id: b-mesh, user_id: u-mesh}
`))
	if err != nil {
		t.Fatal(err)
	}
	return callers
}

func bearer(token string, more ...string) http.Header {
	header := http.Header{"Authorization": {"Bearer " + token}}
	for i := 0; i+1 < len(more); i += 2 {
		header.Set(more[i], more[i+1])
	}
	return header
}

func TestOnlyKnownCallersAreAccepted(t *testing.T) {
	w := start(t, tokens(t), 4, 4)
	for name, header := range map[string]http.Header{
		"nothing":        nil,
		"a wrong token":  bearer("platform-token-0123456780"),
		"half a token":   bearer("platform-token"),
		"an empty token": bearer(""),
		"no scheme":      {"Authorization": {"platform-token-0123456789"}},
		"basic":          {"Authorization": {"Basic platform-token-0123456789"}},
		"only a scheme":  {"Authorization": {"Bearer"}},
		"only headers":   asB1,
	} {
		got := w.call("POST", "/api/coderunner/run", script("fine"), header)
		if got.status != 401 || got.header.Get("WWW-Authenticate") != "Bearer" || strings.Contains(got.body, "token-0") {
			t.Errorf("%s: %d %v %s", name, got.status, got.header, got.body)
		}
	}
	if got := w.call("GET", "/executions", "", nil); got.status != 401 {
		t.Errorf("list: %d", got.status)
	}
	if len(w.requests()) != 0 {
		t.Error("something ran")
	}
}

func TestACallerActsOnlyForItsOwnBusiness(t *testing.T) {
	w := start(t, tokens(t), 4, 4)
	acme := "acme-token-0123456789"
	for name, c := range map[string]struct {
		header http.Header
		body   string
		status int
		as     string
	}{
		"its own business":     {bearer(acme), script("fine"), 200, "b-acme/u-acme"},
		"its own, repeated":    {bearer(acme, "X-Business-Id", "b-acme"), script("fine"), 200, "b-acme/u-acme"},
		"another by header":    {bearer(acme, "X-Business-Id", "b1"), script("fine"), 403, ""},
		"another by body":      {bearer(acme), `{"user_script": "fine", "business_id": "b1"}`, 403, ""},
		"another user by body": {bearer(acme), `{"user_script": "fine", "user_id": "u1"}`, 403, ""},
		"another type by body": {bearer(acme), `{"user_script": "fine", "account_type": "service_integration"}`, 403,
			""},
		"trusted, by header": {bearer("platform-token-0123456789", "X-Business-Id", "b7", "X-User-Id", "u7"),
			script("fine"), 200, "b7/u7"},
		"trusted, by body": {bearer("platform-token-0123456789"),
			`{"user_script": "fine", "business_id": "b8", "user_id": "u8"}`, 200, "b8/u8"},
		"a scheme in lower case": {http.Header{"Authorization": {"bearer " + acme}}, script("fine"), 200,
			"b-acme/u-acme"},
		"trusted, named twice": {http.Header{"Authorization": {"Bearer platform-token-0123456789"},
			"X-User-Id": {"u7"}, "X-Business-Id": {"b7", "b8"}}, script("fine"), 403, ""},
		"trusted, naming no business": {bearer("platform-token-0123456789"), script("fine"), 400, ""},
		"trusted, header against body": {bearer("platform-token-0123456789", "X-Business-Id", "b7"),
			`{"user_script": "fine", "business_id": "b8", "user_id": "u8"}`, 403, ""},
	} {
		before := len(w.requests())
		got := w.call("POST", "/api/coderunner/run", c.body, c.header)
		ran := w.requests()[before:]
		as := ""
		if len(ran) == 1 {
			as = ran[0].Identity.BusinessID + "/" + ran[0].Identity.AccountID
		}
		if got.status != c.status || as != c.as {
			t.Errorf("%s: %d as %q, want %d as %q\n%s", name, got.status, as, c.status, c.as, got.body)
		}
	}
}

// authority is a certificate authority of the test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotAfter: time.Now().Add(time.Hour),
		IsCA:     true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) issue(t *testing.T, uri string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestAClientCertificateIsACaller(t *testing.T) {
	w := start(t, tokens(t), 4, 4)
	ours, foreign := newAuthority(t), newAuthority(t)
	handler := w.http.Config.Handler
	w.http.Close()
	w.http = httptest.NewUnstartedServer(handler)
	w.http.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()}
	w.http.TLS.ClientCAs.AddCert(ours.cert)
	w.http.StartTLS()
	defer w.http.Close()
	trust := w.http.Client().Transport.(*http.Transport).TLSClientConfig
	for _, c := range []struct {
		name   string
		cert   tls.Certificate
		status int
	}{
		{"the orchestrator's", ours.issue(t, "spiffe://kizen/orchestrator"), 200},
		{"somebody else's", ours.issue(t, "spiffe://kizen/other"), 401},
		{"none", tls.Certificate{}, 401},
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), DisableKeepAlives: true}}
		client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{c.cert}
		response, err := client.Post(w.http.URL+"/api/coderunner/run", "application/json", strings.NewReader(script("fine")))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_ = response.Body.Close()
		if response.StatusCode != c.status {
			t.Errorf("%s: %d", c.name, response.StatusCode)
		}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), DisableKeepAlives: true}}
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := foreign.issue(t, "spiffe://kizen/orchestrator")
		return &cert, nil
	}
	if response, err := client.Post(w.http.URL+"/api/coderunner/run", "application/json", strings.NewReader(script("fine"))); err == nil {
		_ = response.Body.Close()
		t.Errorf("a certificate of a foreign authority: %d", response.StatusCode)
	}
}

func TestAllErrorsInTheListOfCallersAreReported(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("tiny"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(filepath.Dir(short), "long")
	if err := os.WriteFile(long, []byte("a-token-0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadCallers([]byte(`
- {name: a, token_file: ` + short + `, trusted: true}
- {name: b, trusted: true}
- {name: c, certificate: x}
- {name: d, certificate: x, trusted: true, business_id: b1}
- {certificate: x, trusted: true}
- {name: first, certificate: y, trusted: true}
- {name: second, certificate: y, business_id: b1, user_id: u1}
- {name: third, token_file: ` + long + `, trusted: true}
- {name: fourth, token_file: ` + long + `, business_id: b1, user_id: u1}
`))
	for _, want := range []string{"shorter than 16 bytes", "either token_file or certificate",
		"give business_id and user_id", "leave business_id and user_id out", "has no name",
		`"second": has the same certificate as caller "first"`, `"fourth": has the same token as caller "third"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	for _, text := range []string{"", "[]", "- {name: a, tokn: b}", "nonsense"} {
		if _, err := LoadCallers([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestOpenAPIIsServedToAnyone(t *testing.T) {
	w := start(t, tokens(t), 1, 1)
	response, err := w.http.Client().Get(w.http.URL + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var document map[string]any
	if err := json.NewDecoder(response.Body).Decode(&document); err != nil || document["openapi"] != "3.1.0" {
		t.Errorf("%v, %v", document["openapi"], err)
	}
}

// TestHEADAnswersWhatGETDoes requests all readable paths while an execution runs, so that its stream of events does
// not end.
func TestHEADAnswersWhatGETDoes(t *testing.T) {
	w := start(t, nil, 4, 4)
	w.call("POST", "/executions", `{"execution_id": "e1", "user_script": "wait"}`, asB1)
	defer close(w.release)
	for _, path := range []string{"/openapi.json", "/executions", "/executions/e1", "/executions/e1/events",
		"/executions/e1/record", "/executions/none", "/ui/"} {
		var answers [2]*http.Response
		for i, method := range []string{"GET", "HEAD"} {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, method, w.http.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = asB1.Clone()
			if answers[i], err = w.http.Client().Do(request); err != nil {
				t.Fatal(err)
			}
			if method == "HEAD" {
				if body, err := io.ReadAll(answers[i].Body); len(body) > 0 || err != nil {
					t.Errorf("%s: HEAD has the body %q, %v", path, body, err)
				}
			}
			cancel()
			_ = answers[i].Body.Close() // closes the stream
		}
		if get, head := answers[0], answers[1]; get.StatusCode != head.StatusCode ||
			get.Header.Get("Content-Type") != head.Header.Get("Content-Type") {
			t.Errorf("%s: GET answers %d %v, HEAD %d %v", path, get.StatusCode, get.Header, head.StatusCode, head.Header)
		}
	}
}
