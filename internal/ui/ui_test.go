package ui

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

func TestARecordContainsTheTimesOfEachPhase(t *testing.T) {
	origin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) time.Time { return origin.Add(time.Duration(ms) * time.Millisecond) }
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	done := execution.Ended{
		Mint: ms(2), MintBegan: at(12), Revoke: ms(3), RevokeBegan: at(90),
		Result: runner.Result{
			Outcome: outcomes.OK, Begun: at(10), Started: at(40), LogTimes: []time.Time{at(41)},
			Phases: runner.Phases{Spawn: ms(5), Import: ms(25), Step: ms(40), Teardown: ms(10)},
		},
	}
	about := About{ID: "x", Queued: origin, Dequeued: at(9),
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
	got := NewRecord(about, done, nil)
	want := []Phase{{"queue", 0, 9}, {"spawn", 10, 5}, {"mint", 12, 2}, {"import", 15, 25}, {"step", 40, 40},
		{"teardown", 80, 10}, {"revoke", 90, 3}}
	if len(got.Phases) != len(want) {
		t.Fatalf("phases = %v", got.Phases)
	}
	for i := range want {
		if got.Phases[i] != want[i] {
			t.Errorf("phase %v, want %v", got.Phases[i], want[i])
		}
	}
	if got.TraceID != "4bf92f3577b34da6a3ce929d0e0e4736" || len(got.LogTimes) != 1 || got.LogTimes[0] != 41 {
		t.Errorf("trace %q, log times %v", got.TraceID, got.LogTimes)
	}

	// A warm interpreter was started before the request.
	done.Result.Begun = at(-1000)
	done.Result.Phases.Import = ms(1035)
	for _, phase := range NewRecord(about, done, nil).Phases {
		if phase.Start < 0 || phase.Start+phase.Spent > 93 {
			t.Errorf("phase %v lies outside of the execution", phase)
		}
	}
}

func TestARecordOfAnExecutionThatNeverRanHasNoPhases(t *testing.T) {
	got := NewRecord(About{State: "queued", Queued: time.Now(), Traceparent: "nonsense"}, execution.Ended{}, nil)
	if len(got.Phases) != 0 || got.TraceID != "" {
		t.Errorf("record = %+v", got)
	}
}

func TestNothingInARecordEndsItsElement(t *testing.T) {
	const evil = "</script><!--<script>\u2028<b>&amp;"
	document, err := json.Marshal(map[string]any{"logs": []string{evil}})
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := json.Marshal(runner.Inputs{"x": {Type: "s", V: evil}})
	if err != nil {
		t.Fatal(err)
	}
	raw := json.RawMessage(strings.ReplaceAll(string(document), `\u003c`, "<")) // as the runner writes it: without escapes for HTML
	var page bytes.Buffer
	err = Report(&page, NewRecord(About{Name: evil}, execution.Ended{Result: runner.Result{
		Source: evil, Inputs: inputs, Stdout: evil, Notes: []string{evil},
	}}, raw))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(page.String(), "<script"); n != 2 || strings.Count(page.String(), "</script") != 2 {
		t.Errorf("%d script elements, want the record and the page", n)
	}
	if strings.Contains(page.String(), "<b>") || strings.Contains(page.String(), "<!--") {
		t.Error("the report contains text of a step as markup")
	}
	data := regexp.MustCompile(`(?s)id="record">(.*?)</script>`).FindStringSubmatch(page.String())
	var back Record
	if data == nil || json.Unmarshal([]byte(data[1]), &back) != nil || back.Source != evil || back.Name != evil {
		t.Errorf("the record in the report differs: %+v", back)
	}
}

// sinks match the ways to turn text into markup or code. The browser refuses them too; this test finds them without a
// browser.
var sinks = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextualFragment|setHTML|srcdoc|setAttribute\("(style|on)`)

func TestTheScriptsOfThePageParseNoMarkup(t *testing.T) {
	files, err := fs.Glob(embedded, "assets/*.js")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := embedded.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := sinks.FindString(string(text)); found != "" {
			t.Errorf("%s uses %s", name, found)
		}
		if strings.Contains(string(text), "http://") && name != "assets/dom.js" ||
			strings.Contains(string(text), "https://") {
			t.Errorf("%s names another server", name)
		}
	}
}

func TestAssetsComeWithAPolicyAndAType(t *testing.T) {
	for path, kind := range map[string]string{"/ui/": "text/html", "/ui/app.js": "text/javascript",
		"/ui/style.css": "text/css", "/ui/icon.svg": "image/svg+xml"} {
		answer := httptest.NewRecorder()
		Handler("/ui/").ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		header := answer.Header()
		if answer.Code != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), kind) {
			t.Errorf("%s: %d %s", path, answer.Code, header.Get("Content-Type"))
		}
		policy := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") ||
			!strings.Contains(policy, "require-trusted-types-for 'script'") ||
			!strings.Contains(policy, "frame-ancestors 'none'") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: policy %q", path, policy)
		}
	}
}

// TestThePageCanFilterByEveryOutcome reads the list in list.js.
func TestThePageCanFilterByEveryOutcome(t *testing.T) {
	text, err := embedded.ReadFile("assets/list.js")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?s)const outcomes = \[(.*?)\];`).FindStringSubmatch(string(text))
	if list == nil {
		t.Fatal("list.js has no list of outcomes")
	}
	var offered []outcomes.Outcome
	for _, quoted := range regexp.MustCompile(`"(.*?)"`).FindAllStringSubmatch(list[1], -1) {
		offered = append(offered, outcomes.Outcome(quoted[1]))
	}
	if !slices.Equal(offered, outcomes.All()) {
		t.Errorf("list.js has %v, the outcomes are %v", offered, outcomes.All())
	}
}
