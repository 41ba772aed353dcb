package runner_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/runner"
)

// reports counts the calls of an observer.
type reports struct{ logs, calls int }

func (o *reports) Log(string)            { o.logs++ }
func (o *reports) HTTP(runner.HTTPEntry) { o.calls++ }

// forgeryChecks are additional checks after some of the forgeries, by name.
var forgeryChecks = map[string]func(t *testing.T, result runner.Result, observed reports){
	"one entry, unanswered and answered in turns": func(t *testing.T, result runner.Result, observed reports) {
		if observed.calls != 1 || result.HTTP.Count != 1 {
			t.Errorf("observed %d calls, recorded %d", observed.calls, result.HTTP.Count)
		}
	},
	"calls of very many processes with long names": func(t *testing.T, result runner.Result, observed reports) {
		if h := result.HTTP; h.Count != 300 || len(h.Requests) != 100 {
			t.Errorf("%d calls, %d of them recorded", h.Count, len(h.Requests))
		}
	},
	"counts beyond any number": func(t *testing.T, result runner.Result, observed reports) {
		h := result.HTTP
		last := h.Requests[len(h.Requests)-1]
		if h.Count < 4 || h.Count > 1<<41 || last.ResponseStatusCode != nil || *last.Duration > 1e6 {
			t.Errorf("the record is %+v", h)
		}
		if d := result.Dropped; d.Messages < 0 || d.Messages > 1<<41 || d.Bytes < 0 || d.Bytes > 1<<41 {
			t.Errorf("dropped %+v", d)
		}
	},
	"a record of control characters": func(t *testing.T, result runner.Result, observed reports) {
		if h := result.HTTP; h.Count != 100 || h.NotLogged == 0 || len(h.Requests) == 0 ||
			int(h.NotLogged)+len(h.Requests) != 100 {
			t.Errorf("%d calls, %d of them not logged", h.Count, h.NotLogged)
		}
	},
	"logs without end": func(t *testing.T, result runner.Result, observed reports) {
		if observed.logs > 100 {
			t.Errorf("observed %d messages", observed.logs)
		}
	},
}

// TestForgedFramesAreBounded sends frames that, without bounds, would make the sidecar use gigabytes, or reach the
// caller's result.
func TestForgedFramesAreBounded(t *testing.T) { forge(t, false) }

func TestTortureFloodsOfForgedFramesAreBounded(t *testing.T) { forge(t, true) }

// forge runs the attacks that are floods, or all others.
func forge(t *testing.T, floods bool) {
	r := newRunner(t, runner.Config{})
	for _, c := range attacks.Forgeries() {
		if floods != c.Flood {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			observed := &reports{}
			var result runner.Result
			var err error
			used := allocated(func() {
				result, err = r.Run(context.Background(), runner.Execution{
					ID: "forged", Timeout: runner.MaxWall, Script: []byte(c.Source()), Observer: observed,
					Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "l", Type: "l"}},
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			if string(result.Outcome) != c.Outcome {
				t.Fatalf("got %s, want %s: %+.300v", result.Outcome, c.Outcome, result.Error)
			}
			document, err := result.MarshalJSON()
			if err != nil || len(document) > c.Most {
				t.Errorf("the document has %d bytes, %v", len(document), err)
			}
			if check := forgeryChecks[c.Name]; check != nil {
				check(t, result, *observed)
			}
			memory := uint64(512 << 20) // the total; little of it is in use at a time
			if strings.HasPrefix(c.Name, "a result") {
				memory = 32 << 20
			}
			if used > memory {
				t.Errorf("it took %d bytes of memory", used)
			}
			if result.Error != nil && strings.Contains(result.Error.Message, strings.Repeat("E", 9000)) {
				t.Error("the error is not truncated")
			}
		})
	}
}

// TestSidecarTimeSpentOnAStepIsChargedToTheStep sends records that cost the sidecar far more time than they cost the
// step.
func TestSidecarTimeSpentOnAStepIsChargedToTheStep(t *testing.T) {
	r := newRunner(t, runner.Config{Limits: runner.Limits{CPU: time.Second}})
	script := attacks.ForgeryPrelude + `
body = frame('http', i=0, e={**entry, 'headers': {str(i): '' for i in range(10000, 28000)}})
for i in range(600): os.write(96, body)
wait()`
	result, err := r.Run(context.Background(),
		runner.Execution{ID: "costly", Script: []byte(script), Timeout: runner.MaxWall})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != outcomes.CPULimit || result.Evidence.CPU < time.Second {
		t.Errorf("got %s after %s of processor time: %+v", result.Outcome, result.Evidence.CPU, result.Error)
	}
}
