package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/creack/pty"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

// onTerminal runs the built binary with a terminal as its standard output and error, and returns what the terminal
// shows.
func onTerminal(t *testing.T, script string, environment ...string) string {
	t.Helper()
	terminal, side, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := sidecarCommand(ctx, append(environment, "TERM=xterm-256color"), "run", "--script", "-")
	command.Stdin = strings.NewReader(script)
	command.Stdout, command.Stderr = side, side
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = side.Close() // only the command has it now, so reading ends with the command
	seen, _ := io.ReadAll(terminal)
	if err := command.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, seen)
	}
	return string(seen)
}

const colour = "\x1b[1;32m" // bold green

// TestATerminalGetsColoursUnlessNoColorIsSet: run writes colours to a pseudoterminal, and none if NO_COLOR is set. Only
// a real terminal device makes the detection answer yes.
func TestATerminalGetsColoursUnlessNoColorIsSet(t *testing.T) {
	if seen := onTerminal(t, "outputs.log('hello')"); !strings.Contains(seen, colour) {
		t.Errorf("no colour in %q", seen)
	}
	seen := onTerminal(t, "outputs.log('hello')", "NO_COLOR=1")
	if strings.Contains(seen, colour) || !strings.Contains(seen, "hello") {
		t.Errorf("NO_COLOR is not honoured in %q", seen)
	}
}

// TestTheLogIsTextOnATerminalAndJSONElsewhere: the log's default format follows standard error, and KIZEN_LOG_FORMAT
// overrides it.
func TestTheLogIsTextOnATerminalAndJSONElsewhere(t *testing.T) {
	if seen := onTerminal(t, "pass", "KIZEN_LOG=debug"); !strings.Contains(seen, `level=INFO msg="execution ended"`) {
		t.Errorf("no line of text in %q", seen)
	}
	if got := sidecar(t, "pass", nil, "run", "--script", "-"); !strings.Contains(got.stderr,
		`"level":"INFO","msg":"execution ended"`) {
		t.Errorf("no line of JSON in %q", got.stderr)
	}
	if got := sidecar(t, "pass", []string{"KIZEN_LOG_FORMAT=text"}, "run", "--script", "-"); !strings.Contains(got.stderr,
		`level=INFO msg="execution ended"`) {
		t.Errorf("no line of text in %q", got.stderr)
	}
}

// TestATerminalShowsASpinnerForALongStep: on a terminal, a step of more than a second shows a spinner, and a short one
// shows none.
func TestATerminalShowsASpinnerForALongStep(t *testing.T) {
	if seen := onTerminal(t, "import time; time.sleep(1.5)"); !strings.Contains(seen, "running standard input 1.") {
		t.Errorf("no spinner in %q", seen)
	}
	began := time.Now()
	// On a busy machine a short step may take long too.
	if seen := onTerminal(t, "pass"); time.Since(began) < time.Second && strings.Contains(seen, "running standard input") {
		t.Errorf("a spinner for a short step in %q", seen)
	}
}

// TestAPipeGetsNeitherColoursNorASpinner: a pipe gets plain text, even if TERM names a terminal with colours.
func TestAPipeGetsNeitherColoursNorASpinner(t *testing.T) {
	got := sidecar(t, "import time; time.sleep(1.5)", []string{"TERM=xterm-256color"}, "run", "--script", "-")
	if strings.Contains(got.stdout+got.stderr, "\x1b") || strings.Contains(got.stderr, "running standard input") {
		t.Errorf("escape sequences in %q %q", got.stdout, got.stderr)
	}
}

// TestNoAnswerContainsTerminalControlCharacters checks responses as curl prints them. For a client they still contain
// the step's text.
func TestNoAnswerContainsTerminalControlCharacters(t *testing.T) {
	const said = attacks.Harmful
	source := "said = " + strconv.QuoteToASCII(said) +
		"\noutputs.log(said)\noutputs.o = said\nif inputs.fail: raise ValueError(said)"
	harmless := func(where, text string) {
		t.Helper()
		for _, r := range text {
			if unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r) {
				t.Errorf("%s contains %q:\n%q", where, r, text)
				return
			}
		}
	}
	means := func(where, text string, failed bool) {
		t.Helper()
		harmless(where, text)
		var d struct {
			Values map[string]struct{ V string }
			Logs   []string
			Error  *struct{ Error string }
		}
		if err := json.Unmarshal([]byte(text), &d); err != nil || len(d.Logs) != 1 || d.Logs[0] != said ||
			!failed && d.Values["o"].V != said || failed && d.Error.Error != "ValueError: "+said {
			t.Errorf("%s: %v %+v", where, err, d)
		}
	}
	s := startServe(t)
	for _, failed := range []bool{false, true} {
		fail := fmt.Sprint(failed)
		got := sidecar(t, source, nil, "run", "--json", "--script", "-", "--declare-output", "o:string", "--input",
			"fail="+fail+":boolean")
		means("run --json", got.stdout, failed)
		harmless("the log", got.stderr)
		got = sidecar(t, source, nil, "run", "--script", "-", "--declare-output", "o:string", "--input",
			"fail="+fail+":boolean")
		harmless("run", got.stdout+got.stderr)
		body := script(source).with("output_types", step{"o": "s"}).with("inputs", step{"fail": step{"t": "b", "v": fail}})
		means("serve", s.ask("POST", "/api/coderunner/run", body).body, failed)
		id := "e-" + fail
		s.ask("POST", "/executions", body.with("execution_id", id))
		waitFor(t, func() bool { return strings.Contains(s.ask("GET", "/executions/"+id, nil).body, `"finished"`) })
		harmless("the execution", s.ask("GET", "/executions/"+id, nil).body)
		harmless("the events", s.ask("GET", "/executions/"+id+"/events", nil).body)
		harmless("the list", s.ask("GET", "/executions", nil).body)
	}
	harmless("a refusal", s.ask("POST", "/api/coderunner/run",
		script("pass").with("unknown"+said, 1).with("secrets", []string{said})).body)
	harmless("a refusal", s.ask("GET", "/executions?state="+url.QueryEscape(said), nil).body)
}
