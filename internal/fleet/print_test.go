package fleet

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

func TestAnOverviewIsALineAndATable(t *testing.T) {
	at := time.Date(2026, 11, 30, 1, 2, 3, 9, time.FixedZone("", 3600))
	found := Overview{Counts: Counts{Queue: "kizen", Waiting: 1, PutOff: 2, Active: 3, Dead: 4, Trimmed: 5}}
	var out strings.Builder
	if err := found.Print(&out); err != nil ||
		out.String() != "kizen: 1 waiting, 2 put off, 3 active, 4 dead, 5 trimmed\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	several := found
	several.Queues = []Counts{{Queue: "kizen", Waiting: 1}, {Queue: "kizen:1", PutOff: 2, Paused: true}}
	out.Reset()
	if err := several.Print(&out); err != nil || out.String() != `all queues: 1 waiting, 2 put off, 3 active, 4 dead, 5 trimmed
kizen: 1 waiting, 0 put off, 0 active, 0 dead, 0 trimmed
kizen:1: 0 waiting, 2 put off, 0 active, 0 dead, 0 trimmed; drained, so workers take nothing
` {
		t.Errorf("%q, %v", out.String(), err)
	}
	found.Paused = true
	long := strings.Repeat("x", longestReason-1) + "é and the rest\nsecond line"
	found.Tasks = []Task{{ID: "b/e-1", State: TaskWaiting}, {ID: "b/e-2", State: TaskDead, Since: &at, Reason: long},
		{ID: "b/e-3", State: TaskPutOff, Next: &at}}
	out.Reset()
	if err := found.Print(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if !strings.HasSuffix(lines[0], "; drained, so workers take nothing") ||
		strings.Join(strings.Fields(lines[1]), " ") != "ID STATE WHEN REASON" {
		t.Errorf("%q", lines[:2])
	}
	for i, want := range []string{
		"b/e-1 waiting -", "b/e-2 dead 2026-11-30T00:02:03Z " + strings.Repeat("x", longestReason-1) + " ...",
		"b/e-3 put_off 2026-11-30T00:02:03Z",
	} {
		if got := strings.Join(strings.Fields(lines[i+2]), " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestPrintOmitsTheUnknownFieldsOfAnExecution(t *testing.T) {
	at := time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC)
	var out strings.Builder
	if err := (Execution{Task: Task{ID: "b/e-1", State: TaskGone}, Outcome: outcomes.OK, Finished: &at, Attempts: 2}).Print(&out); err != nil {
		t.Fatal(err)
	}
	if want := "id        b/e-1\ntask      gone\noutcome   ok\nfinished  2026-11-30T01:02:03Z\nattempts  2\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// brokenPipe is a pipe without a reader.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestAnOverviewThatCannotBeWrittenIsAnError(t *testing.T) {
	if err := (Overview{Counts: Counts{Queue: "kizen"}}).Print(brokenPipe{}); err == nil {
		t.Error("no error")
	}
}
