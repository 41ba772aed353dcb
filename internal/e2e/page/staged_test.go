package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/internal/ui"
)

// stagedServer serves the page with the responses of a test.
func stagedServer(t *testing.T, handlers map[string]http.HandlerFunc) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/ui/", ui.Handler("/ui/"))
	for pattern, handler := range handlers {
		mux.HandleFunc(pattern, handler)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// answering returns a handler that responds with a document.
func answering(status int, document any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(document) // the browser may have disconnected
	}
}

func runningRecord() step {
	return step{
		"execution_id": "x", "name": "Sync", "runtime": "python-3-13", "business_id": "b", "account_id": "u",
		"account_type": "service_automation", "state": "running",
		"origin": "2026-01-31T01:02:03Z", "phases": []any{}, "log_times": []any{}, "source": "pass", "inputs": step{},
		"result": nil,
	}
}

// TestThePageOfARunningExecutionSurvivesARestartOfItsServer: after a broken stream and a 502, the page continues where
// it was, and says so if the server no longer knows the execution. EventSource reconnects only in a browser.
func TestThePageOfARunningExecutionSurvivesARestartOfItsServer(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	var connections, records atomic.Int32
	away := make(chan struct{}) // closed when the server may return
	waitAway := func(r *http.Request) {
		select {
		case <-away:
		case <-r.Context().Done():
		}
	}
	message := func(w http.ResponseWriter, id int, kind, data string) {
		_, _ = fmt.Fprintf(w, "id:%d\nevent:%s\ndata:{\"time\":\"2026-01-31T01:02:04Z\",\"data\":%s}\n\n", id, kind, data)
		w.(http.Flusher).Flush()
	}
	base := stagedServer(t, map[string]http.HandlerFunc{
		"GET /executions/x/record": func(w http.ResponseWriter, r *http.Request) {
			if records.Add(1) == 1 {
				answering(http.StatusOK, runningRecord())(w, r)
				return
			}
			answering(http.StatusNotFound, step{"detail": "no such execution"})(w, r)
		},
		"DELETE /executions/x": answering(http.StatusForbidden, step{"detail": "not yours to cancel"}),
		"GET /executions/x/events": func(w http.ResponseWriter, r *http.Request) {
			last := r.Header.Get("Last-Event-ID")
			switch connections.Add(1) {
			case 1:
				message(w, 1, "started", "{}")
				message(w, 2, "log", `{"message": "one"}`) // then the connection breaks
			case 2: // a proxy in front of a starting server
				waitAway(r)
				answering(http.StatusBadGateway, step{})(w, r)
			default:
				message(w, 3, "log", `{"message": "after `+last+`"}`)
				waitAway(r)
				message(w, 4, "finished", "{}")
			}
		},
	})
	b := newTab(t, browser)
	b.do(chromedp.Navigate(base + "/ui/#/executions/x"))
	b.until(`document.querySelector(".logs")?.innerText.includes("one")`)
	b.do(chromedp.Click("#cancel"))
	b.until(`document.querySelector("[role=alert]")?.innerText === "Not cancelled: not yours to cancel"`)
	close(away)
	b.until(`document.querySelector("[role=alert]")?.innerText === "the server answered 502 Trying again."`)
	b.until(`document.querySelector(".page.warn")?.innerText.includes("no longer known")`) // a restarted server does not know it
	if logs := b.text(".logs"); !strings.Contains(logs, "one") || !strings.Contains(logs, "after 2") {
		t.Errorf("the received part is gone, or was not continued: %q", logs)
	}
	if alert := b.text("[role=alert]"); alert != "no such execution" {
		t.Errorf("the page says %q", alert)
	}
	if eval[bool](b, `!!document.querySelector("#cancel")`) {
		t.Error("an execution that does not exist can be cancelled")
	}
	b.clean(base)
}

// TestThePageSaysWhyNothingRan: each refusal of the server, and a connection that is cut, becomes a sentence on the
// page.
func TestThePageSaysWhyNothingRan(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	refusals := []struct {
		status int
		body   any
		want   string
	}{
		{http.StatusTooManyRequests, step{"detail": "the queue is full", "code": "busy"}, "the queue is full"},
		{http.StatusBadRequest, step{"inputs": step{"who": step{"t": []string{"Invalid Kizen type 'x'"}}}},
			"inputs.who.t: Invalid Kizen type 'x'"},
		{http.StatusBadGateway, nil, "the server answered 502"},
	}
	var asked atomic.Int32
	base := stagedServer(t, map[string]http.HandlerFunc{
		"POST /executions": func(w http.ResponseWriter, r *http.Request) {
			i := int(asked.Add(1)) - 1
			if i < len(refusals) {
				answering(refusals[i].status, refusals[i].body)(w, r)
				return
			}
			panic(http.ErrAbortHandler) // the connection is cut
		},
		"GET /executions": answering(http.StatusForbidden, step{"detail": "not for that business"}),
	})
	b := newTab(t, browser)
	b.do(chromedp.Navigate(base+"/ui/#/new"), chromedp.WaitVisible("#run"))
	for _, refusal := range refusals {
		b.do(chromedp.Click("#run"))
		b.until(fmt.Sprintf(`document.querySelector(".problems").innerText === %q && !document.querySelector("#run").disabled`, refusal.want))
	}
	b.do(chromedp.Click("#run"))
	b.until(`document.querySelector(".problems").innerText === "The server does not answer."`)

	b.do(chromedp.Navigate(base + "/ui/#/"))
	b.until(`document.querySelector("main [role=status], main [role=alert]")?.innerText === "not for that business"`)
	b.do(chromedp.Click("details.acting summary"), chromedp.SetValue("#acting-business", "other"),
		chromedp.Click("details.acting button"))
	b.until(`document.querySelector(".acting summary").innerText === "Acting for other" && document.querySelector("main [role=status]").innerText === "not for that business"`)
	b.clean(base)
}

// TestRunningAgainSendsTheSameRequest: "run again" sends what the execution was submitted with, without its secrets'
// values. Serve's record, the form and the browser's fetch meet.
func TestRunningAgainSendsTheSameRequest(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	dir := t.TempDir()
	secrets := sidecartest.WriteFile(t, dir, "secrets.json",
		`{"00000000-0000-4000-8000-00000000b001": {"ACME_KEY": "hunter2-and-more"}}`)
	base := startUI(t, "--ui", "--secrets-file", secrets)
	body := map[string]any{
		"name": "Failing", "runtime": "python-3-12",
		"user_script": "outputs.total = 1\nraise ValueError(secrets['ACME_KEY'])\n", "secrets": []string{"ACME_KEY"},
		"timeout_ms": 2500,
		"inputs": map[string]any{
			"nothing": map[string]any{"t": "n", "v": nil}, "text": wireInput("s", "two\nlines"),
			"list": map[string]any{"t": "a[s]", "v": []any{"x"}},
		},
		"output_types": map[string]string{"total": "n", "names": "a[s]"},
	}
	id := submitUI(t, base, true, body)
	b := newTab(t, browser)
	b.do(chromedp.Navigate(base + "/ui/#/executions/" + id))
	b.until(`!!document.querySelector("#again")`)
	eval[any](b,
		`(() => { const real = fetch; window.fetch = (path, init) => { if (init?.method === "POST") window.sent = init.body; return real(path, init) }; return null })()`)
	b.do(chromedp.Click("#again"))
	b.until(`!!document.querySelector("#run")`)
	b.shot("again")
	b.do(chromedp.Click("#run"))
	b.until(`!!document.querySelector(".page.bad")`)
	var sent map[string]any
	if err := json.Unmarshal([]byte(eval[string](b, "window.sent")), &sent); err != nil {
		t.Fatal(err)
	}
	if got, want := canonical(t, sent), canonical(t, body); got != want {
		t.Errorf("sent\n%s\nand first\n%s", got, want)
	}
	b.clean(base)
}

// canonical returns a document as text; equal documents have equal texts.
func canonical(t *testing.T, document any) string {
	t.Helper()
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	text, _ = json.Marshal(plain) // it came from JSON
	return string(text)
}

// shortReport shows an execution of one millisecond with one call and the maximum number of messages.
func shortReport(t *testing.T) string {
	t.Helper()
	logs, times := make([]string, 100_000), make([]float64, 100_000)
	for i := range times {
		times[i] = 0.3 + 0.6*float64(i)/float64(len(times))
	}
	call := step{
		"method": "GET", "url": "http://api.example/never", "headers": nil, "body": nil,
		"requestSubmittedAt": "2026-01-31T01:02:03.000650+00:00", "session": true,
		"responseStatusCode": nil, "responseHeaders": nil, "responseBody": nil, "requestErrorType": nil, "duration": 0.2,
	}
	record := runningRecord().with("state", "finished").with("outcome", "ok").with("origin",
		"2026-01-31T01:02:03.00000025Z").with("log_times", times).
		with("phases", []any{step{"name": "import", "start_ms": 0, "spent_ms": 0.3},
			step{"name": "step", "start_ms": 0.3, "spent_ms": 0.6}}).
		with("inputs", step{"empty": step{"t": "s", "v": ""}}).
		with("result", step{"duration_ms": 0.6, "values": step{}, "logs": logs, "error": nil,
			"http_requests": step{"count": 1, "not_logged": 0, "requests": []any{call}}})
	return reportOf(t, record)
}

// reportOf writes a report of an invented record to a file.
func reportOf(t *testing.T, record any) string {
	t.Helper()
	var empty strings.Builder
	if err := ui.Report(&empty, ui.Record{}); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(empty.String(), `id="record">`)
	_, tail, _ := strings.Cut(rest, "</script>")
	return sidecartest.WriteFile(t, t.TempDir(), "out.html", head+`id="record">`+string(text)+"</script>"+tail)
}

// TestThePageDrawsAShortExecutionWithManyMessagesToScale: a report with a hundred thousand messages opens, shows them
// all, and draws a call at its place in the step. Only a browser computes the layout.
func TestThePageDrawsAShortExecutionWithManyMessagesToScale(t *testing.T) {
	t.Parallel()
	b := newTab(t, openBrowser(t))
	b.do(chromedp.Navigate(fileURL(shortReport(t))))
	b.until(`!!document.querySelector(".page.good")`)
	if !eval[bool](b, `(() => { const r = (s) => document.querySelector(s).getBoundingClientRect(), step = r(".phase-step"), call = r("#call-0 .bar");
		return call.left > step.left + step.width / 3 && call.right <= step.right + 1 })()`) {
		t.Error("the call is not where it was within the step")
	}
	if marks := eval[int](b, `document.querySelectorAll(".logmark").length`); marks < 100 || marks > 1001 {
		t.Errorf("%d marks for 100000 messages", marks)
	}
	if rows := eval[int](b, `document.querySelectorAll(".lines li").length`); rows != 100_000 {
		t.Errorf("%d messages are shown", rows)
	}
	// innerText would lay out every message.
	text := eval[string](b, `document.querySelector(".page").textContent`)
	for _, want := range []string{"no answer", "empty", "2026-01-31"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	b.do(chromedp.Click("#scale-step"))
	if first := eval[string](b, `document.querySelector(".tick").innerText + [...document.querySelectorAll(".tick")].at(-1).innerText`); !strings.HasPrefix(first, "0") || !strings.HasSuffix(first, "0.4 ms") {
		t.Errorf("the axis of the step goes from and to %q", first)
	}
}

// TestALongErrorMessageLeavesRoomForTheRestOfThePage: below a message of many lines, the failing line stays inside a
// small and a large window.
func TestALongErrorMessageLeavesRoomForTheRestOfThePage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	report := filepath.Join(dir, "out.html")
	got := sidecar(t, `raise ValueError("much " * 1000)`, nil, "run", "--script", "-", "--report", report)
	if got.code != 1 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	b := newTab(t, openBrowser(t))
	b.do(chromedp.Navigate(fileURL(report)))
	b.until(`!!document.querySelector(".line.failing")`)
	for _, width := range []int64{360, 1280} {
		b.fits(width)
		if bottom := eval[int](b, `Math.round(document.querySelector(".line.failing").getBoundingClientRect().bottom)`); bottom > 900 {
			t.Errorf("at %d px the failing line ends at %d, below the window", width, bottom)
		}
	}
	b.shot("long")
}

// TestThePageShowsTheMaximumOfLogMessages: the page of a running execution shows the five thousand messages of one
// stream.
func TestThePageShowsTheMaximumOfLogMessages(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	const messages = 5000
	base := stagedServer(t, map[string]http.HandlerFunc{
		"GET /executions/x/record": answering(http.StatusOK, runningRecord()),
		"GET /executions/x/events": func(w http.ResponseWriter, r *http.Request) {
			for i := range messages {
				_, _ = fmt.Fprintf(w,
					"id:%d\nevent:log\ndata:{\"time\":\"2026-01-31T01:02:04Z\",\"data\":{\"message\":\"message %d\"}}\n\n", i+1, i+1)
			}
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	})
	b := newTab(t, browser)
	b.do(chromedp.Navigate(base + "/ui/#/executions/x"))
	b.until(fmt.Sprintf(`document.querySelectorAll(".lines li").length === %d`, messages))
	b.clean(base)
}

// TestThePageAsksForTheToken: it keeps the token only for the tab, and asks again if the token is wrong.
func TestThePageAsksForTheToken(t *testing.T) {
	browser := openBrowser(t)
	s := sidecartest.StartService(t, nil, "serve", "--listen", "127.0.0.1:0", "--ui", "--warm", "0")
	b := newTab(t, browser)
	b.do(chromedp.Navigate(s.URL + "/ui/"))
	b.until(`!!document.querySelector("#token")`)
	b.shot("token")
	give := func(token string) {
		b.do(chromedp.SetValue("#token", token), chromedp.Click("#use-token"))
	}
	give("not-the-token-of-serve")
	b.until(`document.querySelector("#token-help")?.textContent.includes("does not know this token")`)
	give(s.Token)
	b.until(`!!document.querySelector("table.list")`)
	if where := eval[string](b, "location.href"); strings.Contains(where, s.Token) {
		t.Errorf("the address shows the token: %s", where)
	}
	b.do(chromedp.Navigate(fmt.Sprint(s.URL, "/ui/#/new")))
	b.until(`!!document.querySelector("#run")`)
	if cookies := eval[string](b, "document.cookie"); cookies != "" {
		t.Errorf("cookies %q", cookies)
	}
}
