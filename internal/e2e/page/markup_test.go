package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/internal/ui"
)

// markupAt returns markup that must appear on the page as text. It names the place it came from, so that a failure
// shows which place was omitted or interpreted. It begins with a word wider than a telephone's screen.
func markupAt(place string) string { return strings.Repeat("W", 80) + attacks.Markup(place) }

// writingStep writes markup to every place that a step can write to, waits, and then succeeds or fails.
const writingStep = `
import sys, requests
for name in inputs.names:
    setattr(outputs, "out_" + name, getattr(inputs, name))
outputs.log(inputs.log)
print(inputs.stdout)
print(inputs.stderr, file=sys.stderr)
kizen.api.post("/evil?q=" + inputs.query, data=inputs.body, headers={"X-Evil": inputs.header, "X-" + inputs.field: "1"})
try:
    requests.get("http://[" + inputs.host)
except Exception as e:
    outputs.log(inputs.tried + type(e).__name__)
kizen.api.get("/slow")
if inputs.fail:
    raise type(inputs.kind, (Exception,), {})(inputs.message)
`

// everyType returns inputs of every data type, with markup in every one that contains text.
func everyType() map[string]any {
	option := "o<c9bf9e57-1685-4c89-bafb-ff5af830be8a,11111111-1111-4111-8111-111111111111>"
	const id = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
	values := map[string]any{
		"s": markupAt("text"), "em": markupAt("email") + "@x.example", "n": "21", "b": true, "d": "2026-01-31",
		"dt": "2026-01-31T01:02:03+00:00", "p": "+13125550142",
		"u": id, "e": id, "e<c9bf9e57-1685-4c89-bafb-ff5af830be8a>": id,
		"f": step{"id": id, "url": "https://files.example.com/" + markupAt("url of a file"),
			"name": markupAt("name of a file"), "size": 1, "content_type": markupAt("type of a file")},
		"l": []any{step{"t": "s", "v": markupAt("element of a list")},
			step{"t": "l", "v": []any{step{"t": "s", "v": markupAt("element within")}}}},
		"a[s]": []any{markupAt("element of an array")},
		option: step{"id": id, "name": markupAt("option"), "order": 1, "code": markupAt("code of an option")},
	}
	inputs := map[string]any{}
	for i, code := range slices.Sorted(maps.Keys(values)) {
		inputs[fmt.Sprintf("input_%d", i)] = step{"t": code, "v": values[code]}
	}
	return inputs
}

// writing returns the request that runs writingStep.
func writing(fail bool) step {
	inputs := everyType()
	types, names := step{}, []any{}
	for name, input := range inputs {
		names = append(names, name)
		types["out_"+name] = input.(step)["t"]
	}
	inputs["names"] = step{"t": "a[s]", "v": names}
	for _, place := range []string{"log", "stdout", "stderr", "query", "body", "header", "host", "tried", "kind",
		"message"} {
		inputs[place] = step{"t": "s", "v": markupAt(place)}
	}
	inputs["field"] = step{"t": "s", "v": "Evil"}
	inputs["fail"] = step{"t": "b", "v": fail}
	return script(writingStep+"# "+markupAt("source")).with("name", markupAt("name of the step")).with("inputs",
		inputs).with("output_types", types)
}

// markupAPI responds with markup in every part of a response, and delays /slow until it is released.
func markupAPI(t *testing.T) (root string, release chan struct{}) {
	t.Helper()
	release = make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/slow" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("X-Evil", markupAt("header of an answer"))
		_, _ = fmt.Fprint(w, markupAt("body of an answer")) // best effort: the step may have ended
	}))
	t.Cleanup(api.Close)
	return api.URL + "/api", release
}

// requireText checks that markup from each place is on the page, as text.
func (b *tab) requireText(places ...string) {
	b.t.Helper()
	text := eval[string](b,
		`document.querySelector("main").textContent + [...document.querySelectorAll("main textarea, main input")].map((e) => e.value).join("\n")`)
	for _, place := range places {
		if encoded, _ := json.Marshal(markupAt(place)); !strings.Contains(text, markupAt(place)) &&
			!strings.Contains(text, strings.Trim(string(encoded), `"`)) && !strings.Contains(text, jsonText(markupAt(place))) {
			b.t.Errorf("markup from the %s is not shown as text", place)
		}
	}
}

// jsonText returns a text as JavaScript writes it inside JSON.
func jsonText(text string) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string always has a JSON form
	return strings.Trim(strings.TrimSpace(out.String()), `"`)
}

// intruders lists elements that the page itself never has: those that load or run something, and handlers in
// attributes.
const intruders = `(() => {
  const found = [...document.querySelectorAll("main :is(img, svg, script, style, iframe, object, embed, base, link, meta, video, audio, math, template)")].map((e) => e.outerHTML.slice(0, 160));
  for (const e of document.querySelectorAll("*")) {
    for (const a of e.attributes) if (/^on/i.test(a.name) || /^\s*(javascript|data):/i.test(a.value)) found.push(e.localName + " " + a.name + "=" + a.value.slice(0, 100));
    for (const kind of ["mouseover", "focus", "error", "load", "toggle", "animationend"]) e.dispatchEvent(new Event(kind));
  }
  return found;
})()`

// unharmed checks that no markup became an element, an attribute or code, that the page is not too wide, and that it
// made no other requests.
func (b *tab) unharmed(origin string) {
	b.t.Helper()
	b.fits(360)
	b.fits(1280)
	for _, element := range eval[[]string](b, intruders) {
		b.t.Errorf("text of a step became %s", element)
	}
	b.clean(origin)
}

// openAll opens all folded parts.
func (b *tab) openAll() {
	b.t.Helper()
	b.do(chromedp.Evaluate(`for (const d of document.querySelectorAll("main details")) d.open = true;
		for (let i = 0, e; (e = document.getElementById("call-" + i)); i++) if (e.ariaExpanded !== "true") e.click();
		for (const d of document.querySelectorAll("main details")) d.open = true;`, nil))
}

var (
	given = []string{
		"name of the step", "source", "text", "email", "url of a file", "name of a file", "type of a file",
		"element of a list", "element within",
		"element of an array", "option", "code of an option",
	}
	wrote = []string{"log", "tried"}
	said  = []string{"header", "body", "header of an answer", "body of an answer", "stdout", "stderr"}
)

// TestNothingThatAStepWritesBecomesMarkup: markup in everything that a step and its caller write is shown as text,
// live, finished and in a report. The binary, the page's script and a real browser meet.
func TestNothingThatAStepWritesBecomesMarkup(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	for name, fail := range map[string]bool{"succeeds": false, "fails": true} {
		t.Run("live, a step that "+name, func(t *testing.T) {
			root, release := markupAPI(t)
			base := startUI(t, "--ui", "--api-root", root)
			id := submitUI(t, base, false, writing(fail))
			b := newTab(t, browser)
			b.do(chromedp.Navigate(base + "/ui/#/executions/" + id))
			b.until(`!!document.querySelector(".page.live") && document.querySelectorAll(".logs li").length === 2`)
			b.openAll()
			// A call is reported when the head of its response has arrived.
			b.requireText(slices.Concat(given, wrote, said[:3])...)
			b.unharmed(base)
			b.do(chromedp.Navigate(base + "/ui/#/"))
			b.until(`document.querySelectorAll(".list tbody tr").length === 1`)
			b.requireText("name of the step")
			b.unharmed(base)
			b.do(chromedp.Navigate(base + "/ui/#/executions/" + id))
			close(release)
			b.until(`!!document.querySelector(".page.good, .page.bad")`)
			b.openAll()
			b.requireText(slices.Concat(given, wrote, said)...)
			b.unharmed(base)
			if fail {
				b.requireText("message", "kind")
				return
			}
			if n := eval[int](b, `document.querySelectorAll("#values-title ~ dl dt").length`); n != len(everyType()) {
				t.Errorf("%d values are shown, want one of each type", n)
			}
			b.do(chromedp.Click("#again"))
			b.until(`!!document.querySelector("#pad-script")`)
			b.requireText("name of the step", "source", "text", "option")
			b.do(chromedp.Click("#run")) // refused input is shown too
			b.until(`!location.hash.includes("new") || document.querySelector(".problems").innerText !== ""`)
			b.unharmed(base)
		})
		t.Run("a report of a step that "+name, func(t *testing.T) {
			root, release := markupAPI(t)
			close(release)
			dir := t.TempDir()
			body := writing(fail)
			report := filepath.Join(dir, "out.html")
			arguments := []string{
				"run", "--script", filepath.Join(dir, "script.py"), "--api-root", root, "--report", report,
				"--inputs-file", writeJSON(t, dir, "inputs.json", body["inputs"]), "--outputs-file",
				writeJSON(t, dir, "outputs.json", body["output_types"]),
			}
			sidecartest.WriteFile(t, dir, "script.py", body["user_script"].(string))
			got := sidecar(t, "", []string{"TRACEPARENT=" + markupAt("trace")}, arguments...)
			if want := map[bool]int{false: 0, true: 1}[fail]; got.code != want {
				t.Fatalf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			b := newTab(t, browser)
			b.do(chromedp.Navigate(fileURL(report)))
			b.until(`!!document.querySelector(".page.good, .page.bad")`)
			b.openAll()
			b.requireText(slices.Concat(given[1:], wrote, said)...)
			if fail {
				b.requireText("message", "kind")
			}
			b.unharmed(fileURL(report))
		})
	}
}

// forged is a record in which every text is markup, including ids and names, which serve and run would refuse.
func forged(state string) map[string]any {
	call := step{
		"method": markupAt("method"), "url": markupAt("url"),
		"headers": step{markupAt("name of a header"): markupAt("value of a header")}, "body": markupAt("body"),
		"requestSubmittedAt": markupAt("time"), "session": true, "responseStatusCode": markupAt("status"),
		"responseHeaders": nil, "responseBody": nil,
		"requestErrorType": markupAt("kind of error"), "duration": 1,
	}
	return step{
		"execution_id": markupAt("id"), "name": markupAt("name"), "runtime": markupAt("runtime"),
		"business_id": markupAt("business"), "account_id": markupAt("account"),
		"account_type": markupAt("type of account"), "api_root": "", "trace_id": markupAt("trace"), "state": state,
		"outcome": markupAt("outcome"), "failure": "",
		"origin": "2026-01-31T01:02:03Z", "queued_at": "2026-01-31T01:02:03Z",
		"phases": []any{step{"name": markupAt("phase"), "start_ms": 0, "spent_ms": 1}}, "log_times": []any{1},
		"dropped_messages": 1, "dropped_bytes": markupAt("dropped"), "source": markupAt("source"), "stdout": "", "stderr": "",
		"notes": []any{markupAt("note")},
		"inputs": step{markupAt("name of an input"): step{"t": markupAt("type"), "v": nil},
			"__proto__": step{"t": "s", "v": markupAt("prototype")}},
		"result": step{
			"request_id": "x", "duration_ms": 1,
			"values": step{markupAt("name of a value"): step{"t": markupAt("type of a value"),
				"v": step{markupAt("key"): []any{markupAt("deep")}}}},
			"logs":          []any{markupAt("log")},
			"http_requests": step{"count": 1, "not_logged": 1, "requests": []any{call}},
			"error": step{"error": markupAt("error"),
				"detail": "  File \"script.py\", line 1, in " + markupAt("function"), "kind": "x",
				"evidence": step{"peak_memory_bytes": 1 << 22}},
		},
	}
}

var forgery = []string{
	"id", "name", "runtime", "business", "type of account", "trace", "outcome", "phase", "dropped", "source", "note",
	"name of an input", "type", "prototype", "name of a value",
	"type of a value", "key", "deep", "log", "method", "url", "name of a header", "value of a header", "body",
	"kind of error", "error", "function",
}

// TestNoNameAndNoIDBecomesMarkup: forged records, which our own server would refuse to produce, do not become markup
// either. Only a browser decides what is markup.
func TestNoNameAndNoIDBecomesMarkup(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	t.Run("in a report", func(t *testing.T) {
		text, err := json.Marshal(forged("finished"))
		if err != nil {
			t.Fatal(err)
		}
		var empty bytes.Buffer
		if err := ui.Report(&empty, ui.Record{Name: markupAt("title")}); err != nil {
			t.Fatal(err)
		}
		// The record replaces the one that Report writes, escaped in the same way, because Report's types would refuse
		// some of this.
		place := regexp.MustCompile(`(?s)(id="record">).*?(</script>)`)
		report := sidecartest.WriteFile(t, t.TempDir(), "out.html",
			place.ReplaceAllString(empty.String(), "${1}"+strings.ReplaceAll(string(text), "$", "$$")+"${2}"))
		b := newTab(t, browser)
		b.do(chromedp.Navigate(fileURL(report)))
		b.until(`!!document.querySelector(".page")`)
		b.openAll()
		b.requireText(forgery...)
		b.unharmed(fileURL(report))
	})
	t.Run("on the page of a server", func(t *testing.T) {
		// A malicious server, whose responses the page must not trust.
		mux := http.NewServeMux()
		mux.Handle("/ui/", ui.Handler("/ui/"))
		answer := func(pattern string, document any) {
			mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(document) // the browser may have disconnected
			})
		}
		answer("GET /executions", step{"count": 1, "results": []any{forged("running")}})
		answer("GET /executions/finished/record", forged("finished"))
		answer("GET /executions/running/record", forged("running"))
		answer("GET /executions/failed/record", step(forged("finished")).with("result", nil).with("failure",
			markupAt("failure")))
		mux.HandleFunc("GET /executions/running/events", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			calls, _ := json.Marshal(step{"time": "2026-01-31T01:02:03Z",
				"data": forged("")["result"].(step)["http_requests"].(step)["requests"].([]any)[0]})
			message, _ := json.Marshal(step{"time": "2026-01-31T01:02:03Z",
				"data": step{"message": markupAt("message of an event")}})
			_, _ = fmt.Fprintf(w, "event:log\ndata:%s\n\nevent:http\ndata:%s\n\n", message, calls)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		mux.HandleFunc("POST /executions", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(step{markupAt("field"): []any{markupAt("refusal")}})
		})
		server := httptest.NewServer(mux)
		defer server.Close()
		b := newTab(t, browser)
		for path, places := range map[string][]string{
			"#/": {"name", "id", "runtime"}, "#/executions/finished": forgery,
			"#/executions/failed":  {"failure", "name", "business"},
			"#/executions/running": {"message of an event", "name of a header", "name of an input", "source"},
		} {
			b.do(chromedp.Navigate(server.URL + "/ui/" + path))
			b.until(`!!document.querySelector(".page, .list tbody tr")`)
			if strings.Contains(path, "running") {
				b.until(`!!document.querySelector("#call-0") && document.querySelector(".logs").textContent.includes("message of an event")`)
			}
			b.openAll()
			b.requireText(places...)
			b.unharmed(server.URL)
		}
		b.do(chromedp.Navigate(server.URL+"/ui/#/new"), chromedp.WaitVisible("#run"), chromedp.Click("#run"))
		b.until(`document.querySelector(".problems").innerText !== ""`)
		b.requireText("field", "refusal")
		b.unharmed(server.URL)
	})
}

// TestAnErrorOfTheServerBecomesNoMarkup: an error text that repeats the user's markup is shown as text. Serve writes
// the text, and the page inserts it.
func TestAnErrorOfTheServerBecomesNoMarkup(t *testing.T) {
	t.Parallel()
	browser := openBrowser(t)
	base := startUI(t, "--ui")
	b := newTab(t, browser)
	b.do(chromedp.Navigate(base + "/ui/#/executions/" + markupAt("id")))
	b.until(`document.querySelector("main").innerText.includes("no such path")`)
	b.unharmed(base)
	b.do(chromedp.Navigate(base + "/ui/#/new"))
	b.until(`!!document.querySelector("#pad-script")`)
	b.do(chromedp.SetValue("#input-0-name", markupAt("name")), chromedp.SetValue("#input-0-value", markupAt("value")),
		chromedp.Evaluate(`for (const id of ["input-0-name", "input-0-value"]) document.getElementById(id).dispatchEvent(new Event("input"));
			const type = document.getElementById("input-0-type"); type.value = "n"; type.dispatchEvent(new Event("change"))`, nil),
		chromedp.Click("#run"))
	b.until(`document.querySelector(".problems").innerText.includes("onerror")`)
	b.unharmed(base)
}
