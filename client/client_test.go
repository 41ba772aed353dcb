package client_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/client"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestMain builds the sidecar, so that the tests run the client against the real server.
func TestMain(m *testing.M) { os.Exit(sidecartest.Main(m, "kizen-sidecar")) }

const noAPI = "http://127.0.0.1:1/api"

// serve starts kizen-sidecar serve.
func serve(t *testing.T, arguments ...string) *client.Client {
	t.Helper()
	s := sidecartest.StartService(t, nil, append([]string{"serve", "--listen", "127.0.0.1:0", "--api-root", noAPI},
		arguments...)...)
	return &client.Client{URL: s.URL, Token: s.Token}
}

func script(text string) client.Request {
	return client.Request{Runtime: "python-3-13", UserScript: text}
}

func TestRunReturnsWhatAStepAssigned(t *testing.T) {
	t.Parallel()
	c := serve(t)
	request := script("outputs.doubled = inputs.n * 2\noutputs.log('hello')")
	request.Inputs = map[string]client.Value{"n": {Type: "n", V: "21"}}
	request.OutputTypes = map[string]string{"doubled": "number"}
	result, err := c.Run(t.Context(), request)
	if err != nil || result.Outcome() != client.OK || result.Values["doubled"].V != "42" ||
		!slices.Equal(result.Logs, []string{"hello"}) {
		t.Fatalf("%+v, %v", result, err)
	}
	result, err = c.Run(t.Context(), script("raise ValueError('no luck')"))
	if err != nil || result.Outcome() != client.Exception || result.Error.Message != "ValueError: no luck" {
		t.Errorf("a step that fails: %+v, %v", result, err)
	}
}

func TestARefusalSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	c := serve(t)
	var refused *client.Error
	_, err := c.Run(t.Context(), client.Request{Runtime: "python-2-7", UserScript: "pass"})
	if !errors.As(err, &refused) || refused.Status != 400 || !strings.Contains(string(refused.Fields), `"runtime"`) {
		t.Errorf("a wrong field: %v", err)
	}
	stranger := *c
	stranger.Token = "no such token, of a length that one may have"
	if _, err := stranger.Run(t.Context(), script("pass")); !errors.As(err, &refused) || refused.Status != 401 ||
		refused.Code == "" {
		t.Errorf("a wrong token: %v", err)
	}
	if _, err := c.Get(t.Context(), "unknown"); !errors.As(err, &refused) || refused.Status != 404 ||
		refused.Code != "not_found" {
		t.Errorf("an unknown id: %v", err)
	}
	if _, err := c.Wait(t.Context(), "unknown"); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("waiting for an unknown id: %v", err)
	}
}

func TestResponsesOfOtherServersAreErrors(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "<html>", "{}", `{"detail": "x"}`, "[1]"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_,
				_ = io.WriteString(w, body)
		}))
		t.Cleanup(server.Close)
		if result, err := (&client.Client{URL: server.URL}).Run(t.Context(), script("pass")); err == nil {
			t.Errorf("%q was decoded as the result %+v", body, result)
		}
	}
}

func TestTheSameIDIsStartedOnce(t *testing.T) {
	t.Parallel()
	c := serve(t)
	request := script("outputs.log('once')")
	request.ExecutionID = "e-1"
	for range 2 {
		if started, err := c.Start(t.Context(), request); err != nil || started.ID != "e-1" {
			t.Fatalf("%+v, %v", started, err)
		}
	}
	ended, err := c.Wait(t.Context(), "e-1")
	if err != nil || ended.State != "finished" || ended.Outcome != client.OK ||
		!slices.Equal(ended.Result.Logs, []string{"once"}) {
		t.Errorf("%+v, %v", ended, err)
	}
	request.UserScript = "pass"
	var refused *client.Error
	if _, err := c.Start(t.Context(), request); !errors.As(err, &refused) || refused.Status != 409 {
		t.Errorf("the same id with another request: %v", err)
	}
}

// cutting starts a proxy that cuts each event stream after its first event.
func cutting(t *testing.T, to string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, _ := http.NewRequestWithContext(r.Context(), r.Method, to+r.URL.Path, r.Body)
		request.Header = r.Header.Clone()
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		w.Header().Set("Content-Type", response.Header.Get("Content-Type"))
		w.WriteHeader(response.StatusCode)
		if !strings.HasSuffix(r.URL.Path, "/events") {
			_, _ = io.Copy(w, response.Body)
			return
		}
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			_, _ = fmt.Fprintln(w, lines.Text())
			if lines.Text() == "" {
				break
			}
		}
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // cuts the connection
	}))
	t.Cleanup(server.Close)
	return server
}

func TestEachEventArrivesOnceOverBreakingConnections(t *testing.T) {
	t.Parallel()
	c := serve(t)
	started, err := c.Start(t.Context(), script("for i in range(5): outputs.log(str(i))"))
	if err != nil {
		t.Fatal(err)
	}
	c.URL = cutting(t, c.URL).URL
	var numbers []int
	var logs []string
	for event, err := range c.Events(t.Context(), started.ID, 0) {
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, event.Number)
		var said struct{ Message string }
		if event.Type == "log" && json.Unmarshal(event.Data, &said) == nil {
			logs = append(logs, said.Message)
		}
	}
	if !slices.Equal(logs, []string{"0", "1", "2", "3", "4"}) || !slices.Equal(numbers, []int{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("events %v with the logs %v", numbers, logs)
	}
}

func TestAWaitEndsWithItsContextAndCancelEndsTheStep(t *testing.T) {
	t.Parallel()
	c := serve(t)
	started, err := c.Start(t.Context(), script("import time\ntime.sleep(50)"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for event, err := range c.Events(ctx, started.ID, 0) {
		if event.Type == "started" {
			cancel()
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the end of the context: %v", err)
		}
	}
	if ctx.Err() == nil {
		t.Fatal("the events ended before the step had started")
	}
	if err := c.Cancel(t.Context(), started.ID); err != nil {
		t.Fatal(err)
	}
	if ended, err := c.Wait(t.Context(), started.ID); err != nil || ended.Outcome != client.Cancelled {
		t.Errorf("%+v, %v", ended, err)
	}
}

func TestAQueueRunsAnExecutionOnce(t *testing.T) {
	t.Parallel()
	url := redistest.Start(t).URL()
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	store := redis.NewClient(options)
	t.Cleanup(func() { _ = store.Close() })
	queue := client.Queue{Redis: store}
	request := script("outputs.log('from a queue')")
	if _, err := queue.Enqueue(t.Context(), request); err == nil {
		t.Error("an execution without a business was enqueued")
	}
	request.BusinessID, request.UserID = "b}1", "u-1"
	if _, err := queue.Enqueue(t.Context(), request); err == nil ||
		!strings.Contains(err.Error(), `BusinessID "b}1" must be an id`) {
		t.Errorf("an invalid business id: %v", err)
	}
	request.BusinessID = "b-1"
	id, err := queue.Enqueue(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	request.ExecutionID = id
	if _, err := queue.Enqueue(t.Context(), request); !errors.Is(err, client.ErrEnqueued) {
		t.Errorf("the same id again: %v", err)
	}
	if _, err := queue.Get(t.Context(), "b-1", "unknown"); !errors.Is(err, client.ErrUnknown) {
		t.Errorf("an unknown id: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := queue.Wait(short, "b-1", id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a worker: %v", err)
	}
	sidecartest.StartService(t, nil, "worker", "--redis-url", url, "--api-root", noAPI)
	finished, err := queue.Wait(t.Context(), "b-1", id)
	if err != nil || finished.Outcome != client.OK || !slices.Equal(finished.Result.Logs, []string{"from a queue"}) {
		t.Errorf("%+v, %v", finished, err)
	}
	// A request that is stored outside its task, and a result that is stored compressed.
	large := script("for _ in range(10): outputs.log('x' * 5000)\n" + strings.Repeat("# a comment\n", 10000))
	large.BusinessID, large.UserID = "b-1", "u-1"
	if id, err = queue.Enqueue(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	finished, err = queue.Wait(t.Context(), "b-1", id)
	if err != nil || finished.Outcome != client.OK || len(finished.Result.Logs) != 10 ||
		len(finished.Result.Logs[9]) != 5000 {
		t.Errorf("a large one: %s, %d messages, %v", finished.Outcome, len(finished.Result.Logs), err)
	}
	wrong := script("pass")
	wrong.BusinessID, wrong.UserID, wrong.Runtime = "b-1", "u-1", "python-2-7"
	if id, err = queue.Enqueue(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	finished, err = queue.Wait(t.Context(), "b-1", id)
	if err != nil || finished.Outcome != client.Refused || finished.Outcome.Retryable() || finished.Result.Error == nil {
		t.Errorf("%+v, %v", finished, err)
	}
}

func TestCallbacksAreVerified(t *testing.T) {
	t.Parallel()
	const secret, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
	type sent struct {
		header http.Header
		body   []byte
	}
	received := make(chan sent, 1)
	var once sync.Once
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		once.Do(func() { received <- sent{r.Header, body} })
	}))
	t.Cleanup(receiver.Close)
	c := serve(t, "--webhook-allow", "127.0.0.0/8", "--webhook-secret-file",
		sidecartest.WriteFile(t, t.TempDir(), "secret", secret))
	request := script("outputs.log('told')")
	request.CallbackURL = receiver.URL
	started, err := c.Start(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	got := <-received
	callback, err := client.VerifyCallback(got.header, got.body, other, secret)
	if err != nil || callback.ExecutionID != started.ID || callback.Outcome != client.OK || callback.Late ||
		callback.ID == "" ||
		!slices.Equal(callback.Result.Logs, []string{"told"}) {
		t.Errorf("%+v, %v", callback, err)
	}
	forged := []byte(strings.Replace(string(got.body), "told", "lied", 1))
	without := got.header.Clone()
	without.Del("webhook-signature")
	old := got.header.Clone()
	old.Set("webhook-timestamp", fmt.Sprint(time.Now().Add(-time.Hour).Unix()))
	for name, attempt := range map[string]func() error{
		"another secret": func() error { _, err := client.VerifyCallback(got.header, got.body, other); return err },
		"no secret":      func() error { _, err := client.VerifyCallback(got.header, got.body); return err },
		"another body":   func() error { _, err := client.VerifyCallback(got.header, forged, secret); return err },
		"no signature":   func() error { _, err := client.VerifyCallback(without, got.body, secret); return err },
		"another time":   func() error { _, err := client.VerifyCallback(old, got.body, secret); return err },
	} {
		if err := attempt(); err == nil || strings.Contains(err.Error(), secret[6:]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunWithoutAServerReturnsTheConnectionError(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	var refused *client.Error
	if _, err := (&client.Client{URL: "http://" + address}).Run(t.Context(), script("pass")); err == nil ||
		errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
}
