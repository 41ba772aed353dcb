package runner

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// TestAStepKilledForTheMachinesMemoryRunsAgainOnlyIfItHadNotBegun: ErrNotBegun says that it can run again.
func TestAStepKilledForTheMachinesMemoryRunsAgainOnlyIfItHadNotBegun(t *testing.T) {
	exit := sandbox.Exit{Code: -1, Signal: syscall.SIGKILL, Starved: true}
	a := &attempt{Prepared: &Prepared{places: &places{}}, collector: newCollector(Execution{}),
		limits: Limits{}.WithDefaults()}
	_, err := a.verdict(t.Context(), io.EOF, exit, "")
	if !errors.Is(err, ErrNotBegun) || !errors.Is(err, ErrHarness) || !strings.Contains(err.Error(), "ran out") {
		t.Errorf("before the code began: %v", err)
	}
	a.started = time.Now()
	got, err := a.verdict(t.Context(), io.EOF, exit, "")
	if err != nil || got.outcome != outcomes.KilledBySignal ||
		!strings.Contains(got.message, "had not reached its own limit") {
		t.Errorf("after the code began: %+v %v", got, err)
	}
}

func TestAKeyThatIsGivenTwiceIsRefused(t *testing.T) {
	for document, key := range map[string]string{
		`{"x":{"t":"s","v":"1"},"x":{"t":"s","v":"2"}}`:                 `"x"`,
		`{"x":{"t":"s","v":"1","v":"2"}}`:                               `"v"`,
		`{"x":{"t":"s", "\u0074" : "n", "v":"1"}}`:                      `"t"`,
		`{"x":{"t":"f","v":{"url":"u","a":1,"b":1,"c":1,"d":1,"d":2}}}`: `"d"`,
		`{"x":{"t":"s","v":"x"},"y":{"t":"s","v":"t\":"}}`:              "",
		`{"x":{"t":"l","v":[{"t":"s","v":"t"},{"t":"s","v":"t"}]}}`:     "",
	} {
		_, err := DecodeWireInputs([]byte(document))
		if key == "" && err != nil || key != "" &&
			(err == nil || !strings.Contains(err.Error(), "the key "+key+" is given twice")) {
			t.Errorf("%s: %v", document, err)
		}
	}
}

// TestAnEmptyMessageIsNotTheEndOfTheEvents: later messages must be read, whatever a step writes to its channel.
func TestAnEmptyMessageIsNotTheEndOfTheEvents(t *testing.T) {
	ours, theirs, err := newSockets()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.close()
	a := &attempt{Prepared: &Prepared{sockets: ours}, collector: newCollector(Execution{}),
		meter: &meter{charge: func(time.Duration) {}}}
	for _, text := range []string{"", `{"k":"log","n":"nonce","m":"after"}`} {
		if err := syscall.Sendto(int(theirs.events.Fd()), []byte(text), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	heard := make(chan int)
	go func() { heard <- a.listen("nonce") }()
	theirs.close() // the socket already contains the messages
	<-heard
	if len(a.collector.logs) != 1 {
		t.Errorf("read %q", a.collector.logs)
	}
}
