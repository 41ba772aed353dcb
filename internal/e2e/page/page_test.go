package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// markup must never become an element, in any place that a step or a server can write to.
var markup = attacks.Markup("1")

const evilScript = `import requests
evil = inputs.evil
outputs.log(evil)
outputs.log("turned \u202e around \x1b[31m")
kizen.api.get("/evil?q=" + evil, headers={"X-Evil": evil})
kizen.api.post("/missing", data=evil)
print(evil)
def deeper(n):
    raise ValueError(evil + ' as File "script.py", line 1 says')
deeper(1)
`

const goodScript = `# Counts what there is, page by page.
total = 0
for page in range(1, 4):
    found = kizen.api.get(f"/custom-objects?page={page}").json()
    total += found["count"]
    outputs.log(f"page {page}: {found['count']} objects")
outputs.total = total
outputs.names = ["Deals", "Contacts", "Companies"]
outputs.summary = f"{inputs.who} has {total} objects"
`

// uiAPI imitates the platform: /slow waits until it is released, and /evil returns markup.
func uiAPI(t *testing.T) (api *httptest.Server, release chan struct{}) {
	release = make(chan struct{})
	api = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/custom-objects":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w,
				`{"count": 14, "next": null, "cursor": 12345678901234567890, "none": {}, "results": [{"name": "Deals", "object_type": "pipeline"}, {"name": "Contacts", "object_type": "standard"}]}`)
		case "/api/evil":
			w.Header().Set("X-Evil", markup)
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, markup)
		case "/api/slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		default:
			http.Error(w, `{"detail": "there is nothing here"}`, http.StatusNotFound)
		}
	}))
	t.Cleanup(api.Close)
	return api, release
}

// startUI starts the built binary's serve and returns its address; serve must drain when the test ends. It has no list
// of callers, so it needs no token.
func startUI(t *testing.T, arguments ...string) string {
	t.Helper()
	if !slices.Contains(arguments, "--callers") {
		arguments = append(arguments, "--allow-anonymous")
	}
	s := sidecartest.StartService(t, nil, append([]string{"serve", "--listen", "127.0.0.1:0", "--slots", "2"},
		arguments...)...)
	t.Cleanup(func() {
		if code := s.Stop(); code != 0 {
			t.Errorf("serve ended with %d", code)
		}
	})
	return s.URL
}

// submitUI runs a step and returns its id, when it has ended or, without wait, at once.
func submitUI(t *testing.T, base string, wait bool, body map[string]any) string {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(base+"/executions", "application/json", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var started struct {
		ID string `json:"execution_id"`
	}
	text, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err := json.Unmarshal(text, &started); err != nil || response.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", response.StatusCode, text)
	}
	if wait {
		events, err := http.Get(base + "/executions/" + started.ID + "/events") // the stream ends with the execution
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, events.Body)
		_ = events.Body.Close()
	}
	return started.ID
}

func wireInput(t, v string) map[string]string { return map[string]string{"t": t, "v": v} }

// strict is the end of every policy of the page.
const strict = "; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// TestThePageInABrowser: the page shows a step that succeeded, one that failed and one that runs, in the terms of the
// API. Serve, its events, the page's script and Chromium meet.
func TestThePageInABrowser(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	api, release := uiAPI(t)
	base := startUI(t, "--ui", "--api-root", api.URL+"/api")
	good := map[string]any{
		"name": "Count custom objects", "runtime": "python-3-13", "user_script": goodScript,
		"inputs": map[string]any{"who": wireInput("s", "Acme"), "limit": wireInput("n", "250"),
			"since": wireInput("d", "2026-01-31")},
		"output_types": map[string]string{"total": "n", "names": "a[s]", "summary": "s"},
		"traceparent":  "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	evil := map[string]any{
		"name": markup, "runtime": "python-3-13", "user_script": evilScript,
		"inputs": map[string]any{"evil": wireInput("s", markup)},
	}

	t.Run("a step that succeeded", func(t *testing.T) {
		b := newTab(t, browser)
		b.do(chromedp.Navigate(base + "/ui/#/executions/" + submitUI(t, base, true, good)))
		b.until(`!!document.querySelector(".page.good")`)
		text := b.text("main")
		for _, want := range []string{"Count custom objects", "succeeded", "python-3-13", "service_automation",
			"4bf92f3577b34da6a3ce929d0e0e4736",
			"queue", "spawn", "mint", "import", "step", "revoke", "page 3: 14 objects", "Acme has 42 objects", "250",
			"2026-01-31", "/custom-objects?page=2"} {
			if !strings.Contains(text, want) {
				t.Errorf("the page does not show %q:\n%s", want, text)
			}
		}
		b.do(chromedp.Click("#call-1"))
		if detail := b.text("#call-1-detail"); !strings.Contains(detail, "User-Agent") ||
			!strings.Contains(detail, "\n      \"object_type\": \"pipeline\"") ||
			!strings.Contains(detail, `"cursor": 12345678901234567890`) || !strings.Contains(detail, `"none": {}`) {
			t.Errorf("the opened call lacks headers or body: %q", detail)
		}
		// A call lies inside the step on the time axis, and so do the marks of log messages.
		if !eval[bool](b, `(() => { const r = (s) => document.querySelector(s).getBoundingClientRect(), step = r(".phase-step"), call = r("#call-1 .bar"), log = r(".logmark");
			return call.left >= step.left - 1 && call.right <= step.right + 1 && log.left >= step.left - 1 && log.left <= step.right + 1 })()`) {
			t.Error("a call or a log message lies outside of its step")
		}
		b.do(chromedp.Click("#scale-step"))
		if !eval[bool](b,
			`document.querySelector("#scale-step").ariaPressed === "true" && document.querySelector(".phase-step").offsetWidth > 500`) {
			t.Error("the scale of the step does not show it in full width")
		}
		b.do(chromedp.Click("#scale-all"))
		b.shot("good")
		if got := b.copied("#copy-trace"); got != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("the clipboard holds %q", got)
		}
		b.clean(base)
	})

	t.Run("a step that failed, and everything it wrote", func(t *testing.T) {
		b := newTab(t, browser)
		b.do(chromedp.Navigate(base + "/ui/#/executions/" + submitUI(t, base, true, evil)))
		b.until(`!!document.querySelector(".page.bad")`)
		if got := eval[string](b, `document.querySelector(".line.failing").dataset.line + document.querySelector(".line.failing code").innerText`); !strings.HasPrefix(got, "9    raise ValueError(evil") {
			t.Errorf("the failing line is %q", got)
		}
		if !strings.Contains(b.text(".traceback"), `File "script.py", line 10`) {
			t.Errorf("no traceback: %s", b.text(".traceback"))
		}
		b.do(chromedp.Click("#call-0"), chromedp.Click("#call-1"), chromedp.Click("details summary"))
		if n := strings.Count(eval[string](b, `document.querySelector("main").textContent`), `<img src=x onerror=`); n < 8 {
			t.Errorf("the markup is shown %d times: as text in name, log, inputs, error, traceback, header, body and output", n)
		}
		if strings.Contains(b.text(".logs"), "\u202e") || strings.Contains(b.text(".logs"), "\x1b") {
			t.Error("a log message can turn the direction of text, or escape")
		}
		if n := eval[int](b, `document.querySelectorAll("main img, main script, main svg, main iframe").length`); n > 0 {
			t.Errorf("%d elements of the step appeared", n)
		}
		b.clean(base)
		b.do(chromedp.Navigate(base + "/ui/"))
		b.until(`document.querySelectorAll(".list tbody tr").length > 1`)
		if n := eval[int](b, `document.querySelectorAll("main img, main script, main svg").length`); n > 0 {
			t.Error("a name became markup in the list")
		}
		b.clean(base)
	})

	t.Run("watch one run", func(t *testing.T) {
		b := newTab(t, browser)
		id := submitUI(t, base, false, map[string]any{
			"name": "Sync invoices", "runtime": "python-3-13", "inputs": map[string]any{"since": wireInput("d", "2026-01-31")},
			"user_script": "outputs.log('before')\nkizen.api.get('/custom-objects')\nkizen.api.get('/slow')\nkizen.api.get('/custom-objects?page=2')\noutputs.log('after')\n",
		})
		b.do(chromedp.Navigate(base + "/ui/#/executions/" + id))
		b.until(`!!document.querySelector(".page.live") && document.querySelector(".logs").innerText.includes("before") && !!document.querySelector("#call-0")`)
		if strings.Contains(b.text(".logs"), "after") {
			t.Error("the step has continued")
		}
		if source := b.text("details[open] .source"); !strings.Contains(source, "kizen.api.get('/slow')") {
			t.Errorf("the source cannot be followed: %q", source)
		}
		if inputs := b.text("[aria-labelledby=inputs-title]"); !strings.Contains(inputs, "since") ||
			!strings.Contains(inputs, "2026-01-31") {
			t.Errorf("the inputs are %q", inputs)
		}
		if !strings.Contains(b.text(".waterfall"), "running") {
			t.Error("no bar of the time that it has been running")
		}
		b.shot("live")
		b.scheme("light")
		if got := eval[string](b, `getComputedStyle(document.querySelector(".head .dot")).animationName`); got != "none" {
			t.Errorf("the dot moves (%s) although the reader prefers reduced motion", got)
		}
		// The clock must not disturb a reader who selects a message or scrolls the source with the keyboard.
		eval[any](b,
			`(() => { getSelection().selectAllChildren(document.querySelector(".lines .text")); document.querySelector("details .source").focus(); window.was = document.querySelector(".time").innerText; return null })()`)
		b.until(`document.querySelector(".time").innerText !== was`)
		if !eval[bool](b, `document.activeElement.classList.contains("source") && getSelection().toString() === "before"`) {
			t.Error("the page took the focus or the selection away")
		}
		close(release)
		b.until(`!!document.querySelector(".page.good") && document.querySelector(".logs").innerText.includes("after")`)
		b.clean(base)
	})

	t.Run("the scratch pad, without a mouse", func(t *testing.T) {
		b := newTab(t, browser)
		b.do(chromedp.Navigate(base + "/ui/"))
		b.until(`!!document.querySelector(".list")`)
		b.tabTo("nav-pad")
		b.keys(kb.Enter)
		b.until(`!!document.querySelector("#pad-script")`)
		b.shot("pad")
		b.tabTo("pad-script")
		b.keys("a", chromedp.KeyModifiers(2)) // Ctrl+A
		b.keys("outputs.greeting = inputs.who.upper()\noutputs.log('typed')")
		b.keys("\t") // indents
		if !eval[bool](b, `document.activeElement.id === "pad-script" && document.activeElement.value.endsWith("    ")`) {
			t.Error("Tab does not indent")
		}
		b.keys(kb.Escape)
		b.tabTo("input-0-type")
		b.keys("n") // the text becomes a number, for which the value "world" is invalid
		b.tabTo("run")
		b.keys(kb.Enter)
		b.until(`document.querySelector(".problems").innerText.includes("inputs.who")`)
		b.do(chromedp.Focus("#input-0-type"))
		b.keys("t")
		b.keys(kb.Enter, chromedp.KeyModifiers(2))
		b.until(`!!document.querySelector(".page.good")`)
		if text := b.text("main"); !strings.Contains(text, "WORLD") || !strings.Contains(text, "typed") {
			t.Errorf("the page of the run is %s", text)
		}
		b.tabTo("copy-execution")
		b.tabTo("again")
		b.keys(kb.Enter)
		b.until(`document.querySelector("#pad-script")?.value.includes("typed")`)
		b.clean(base)
	})

	t.Run("the list and its filters", func(t *testing.T) {
		failing := submitUI(t, base, true, map[string]any{"name": "Notify owners", "runtime": "python-3-12",
			"user_script": "\nowner = {}\n\n\ndef notify(who):\n    return who['email']\n\n\nnotify(owner)\n"})
		b := newTab(t, browser)
		b.do(chromedp.Navigate(base + "/ui/"))
		b.until(fmt.Sprintf(`!!document.getElementById("go-%s")`, failing))
		b.shot("list")
		b.do(chromedp.SendKeys("#filter-text", "notify"))
		b.until(`document.querySelectorAll(".list tbody tr").length === 1`)
		b.do(chromedp.SetValue("#filter-outcome", "ok"),
			chromedp.Evaluate(`document.querySelector("#filter-outcome").dispatchEvent(new Event("change"))`, nil))
		b.until(`document.querySelectorAll(".list tbody tr").length === 0 && document.querySelector("[role=status]").innerText !== ""`)
		b.do(chromedp.SetValue("#filter-outcome", "exception"),
			chromedp.Evaluate(`document.querySelector("#filter-outcome").dispatchEvent(new Event("change"))`, nil))
		b.tabTo("go-" + failing)
		b.keys(kb.Enter)
		b.until(`document.querySelector(".line.failing")?.dataset.line === "6"`)
		b.shot("failed")
		b.clean(base)
	})
}

// TestAReportIsOneFileThatRequestsNothing: a report opens from the disk, sends no request, contains no secret, and its
// policy stops injected scripts. The binary writes the policy, and the browser enforces it.
func TestAReportIsOneFileThatRequestsNothing(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	api, _ := uiAPI(t)
	dir := t.TempDir()
	const secret = "hunter2-and-more"
	report := filepath.Join(dir, "out.html")
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	got := sidecar(t, evilScript+"# "+secret+"\n",
		[]string{"ACME_KEY=" + secret, "TRACEPARENT=00-" + trace + "-00f067aa0ba902b7-01"}, "run", "--script", "-",
		"--api-root", api.URL+"/api", "--report", report,
		"--input", "evil="+markup+":string", "--input", "held=my "+secret+":string", "--secret", "ACME_KEY")
	if got.code != 1 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), secret) || !strings.Contains(string(text), "my [REDACTED]") {
		t.Error("the report contains a secret")
	}
	if info, err := os.Stat(report); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the report: %v %v", info.Mode(), err)
	}
	b := newTab(t, browser)
	b.do(chromedp.Navigate(fileURL(report)))
	b.until(`!!document.querySelector(".page.bad")`)
	if outcome := b.text(".outcome"); !strings.HasPrefix(outcome, "exception") {
		t.Errorf("the outcome is %q", outcome)
	}
	if got := b.copied("#copy-trace"); got != trace {
		t.Errorf("the trace on the clipboard is %q", got)
	}
	b.do(chromedp.Click("#call-0"))
	for _, want := range []string{"evil", "step", "revoke", "my [REDACTED]", "<img src=x", trace} {
		if !strings.Contains(b.text("main"), want) {
			t.Errorf("the report does not show %q:\n%s", want, b.text("main"))
		}
	}
	digest := `'sha256-[A-Za-z0-9+/]{43}='`
	policy := regexp.MustCompile("^default-src 'none'; script-src " + digest + "; style-src " + digest +
		regexp.QuoteMeta(strict) + "$")
	if got := eval[string](b, `document.querySelector("meta[http-equiv=Content-Security-Policy]").content`); !policy.MatchString(got) {
		t.Errorf("the policy is %q", got)
	}
	if n := eval[int](b, `document.querySelectorAll("img, svg, iframe").length + document.scripts.length`); n != 2 {
		t.Errorf("%d elements, want only the two scripts of the report", n)
	}
	if !eval[bool](b, `document.querySelector(".line.failing")?.dataset.line === "9"`) {
		t.Error("the failing line is not marked")
	}
	b.shot("report")
	b.clean(fileURL(report))

	// The policy is in force: it refuses markup that is written through a sink.
	if eval[bool](b, `(() => { try { document.body.innerHTML = "<b>x</b>"; return true } catch { return false } })()`) {
		t.Error("the browser accepts HTML from a script of the page")
	}
	eval[any](b,
		`(() => { const s = document.createElement("script"); try { s.textContent = "window.pwned=1"; document.body.append(s) } catch {} return null })()`)
	if eval[bool](b, `"pwned" in window`) {
		t.Error("an injected script ran")
	}
}
