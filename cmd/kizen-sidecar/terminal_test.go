package main

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/creack/pty"
)

// onTerminal runs the built binary with a terminal for its standard output and
// error, and returns what a person would have seen.
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
	_ = side.Close() // the command has it: reading ends with the command
	seen, _ := io.ReadAll(terminal)
	if err := command.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, seen)
	}
	return string(seen)
}

const colour = "\x1b[1;32m" // bold green

func TestATerminalGetsColoursUnlessNoColorIsSet(t *testing.T) {
	if seen := onTerminal(t, "outputs.log('hello')"); !strings.Contains(seen, colour) {
		t.Errorf("no colour in %q", seen)
	}
	seen := onTerminal(t, "outputs.log('hello')", "NO_COLOR=1")
	if strings.Contains(seen, colour) || !strings.Contains(seen, "hello") {
		t.Errorf("NO_COLOR is not honoured in %q", seen)
	}
}

func TestTheLogIsTextOnATerminalAndJSONElsewhere(t *testing.T) {
	if seen := onTerminal(t, "pass", "KIZEN_LOG=debug"); !strings.Contains(seen, `level=INFO msg="execution ended"`) {
		t.Errorf("no line of text in %q", seen)
	}
	if got := sidecar(t, "pass", nil, "run", "--script", "-"); !strings.Contains(got.stderr, `"level":"INFO","msg":"execution ended"`) {
		t.Errorf("no line of JSON in %q", got.stderr)
	}
	if got := sidecar(t, "pass", []string{"KIZEN_LOG_FORMAT=text"}, "run", "--script", "-"); !strings.Contains(got.stderr, `level=INFO msg="execution ended"`) {
		t.Errorf("no line of text, which was asked for, in %q", got.stderr)
	}
}

func TestATerminalSeesThatALongStepRunsAndForHowLong(t *testing.T) {
	if seen := onTerminal(t, "import time; time.sleep(1.5)"); !strings.Contains(seen, "running standard input 1.") {
		t.Errorf("no spinner in %q", seen)
	}
	if seen := onTerminal(t, "pass"); strings.Contains(seen, "running standard input") {
		t.Errorf("a spinner for a short step in %q", seen)
	}
}

func TestWhatIsNoTerminalGetsNeitherColoursNorASpinner(t *testing.T) {
	got := sidecar(t, "import time; time.sleep(1.5)", []string{"TERM=xterm-256color"}, "run", "--script", "-")
	if strings.Contains(got.stdout+got.stderr, "\x1b") || strings.Contains(got.stderr, "running standard input") {
		t.Errorf("escape sequences in %q %q", got.stdout, got.stderr)
	}
}

// steering is text that retitles a terminal, moves its cursor and reverses what is written: with the escape of C0, with
// that of C1, and with Unicode's override. It also changes colours.
const steering = "\x1b]0;owned\x07\x1b[2J\x1b[35m\u009b31m\u202e"

// ownSequences takes what the page and the spinner send out of what a person sees: bold, faint, and a line begun anew.
var ownSequences = strings.NewReplacer("\x1b[1m", "", "\x1b[2m", "", "\x1b[m", "", "\r\x1b[K", "")

// TestNothingOfAStepSteersATerminal puts such text wherever a step and its config.json can.
func TestNothingOfAStepSteersATerminal(t *testing.T) {
	dir := t.TempDir()
	writeJSON(t, dir, "config.json", map[string]any{
		"name": "name" + steering, "api_name": "steers", "runtime": "python-3-13",
		"outputs": []any{map[string]any{"name": "output", "data_type": "string"}},
	})
	good := `
import requests
for call in (lambda: requests.request("METHOD" + STEERING, "http://127.0.0.1:1/path" + STEERING), lambda: kizen.api.get("/x" + STEERING)):
    try: call()
    except Exception: pass
outputs.log("log" + STEERING)
outputs.output = "value" + STEERING`
	bad := `
class Error(Exception): pass
Error.__name__ = Error.__qualname__ = "Class" + STEERING
raise Error("message" + STEERING)`
	for name, script := range map[string]string{"a step that succeeds": good, "a step that fails": bad} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, dir, "script.py", "STEERING = "+strconv.QuoteToASCII(steering)+script)
			for _, arguments := range [][]string{{"-v"}, {"--json"}} {
				seen := screen(t, append([]string{"run", dir, "--log-level", "debug", "--log-format", "json"}, arguments...)...)
				for _, r := range seen {
					if r != '\r' && r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
						t.Fatalf("%v: %q reaches the terminal in %q", arguments, r, seen)
					}
				}
				if !strings.Contains(seen, "owned") {
					t.Errorf("%v: the text does not appear in %q", arguments, seen)
				}
			}
			got := sidecar(t, "", nil, "run", dir, "--json")
			var result document
			if err := json.Unmarshal([]byte(got.stdout), &result); err != nil {
				t.Fatal(err)
			}
			if result.Error == nil && !slices.Equal(result.Logs, []string{"log" + steering}) ||
				result.Error != nil && !strings.Contains(result.Error.Error, "message"+steering) {
				t.Errorf("the values have changed: %+v", result)
			}
		})
	}
	t.Run("a name of config.json in an error", func(t *testing.T) {
		writeJSON(t, dir, "config.json", map[string]any{"name": "x", "runtime": "python" + steering})
		if seen := screen(t, "run", dir); strings.ContainsAny(seen, "\x1b\x07\u009b\u202e") || !strings.Contains(seen, "owned") {
			t.Errorf("on the terminal is %q", seen)
		}
	})
}

// screen runs the built binary on a terminal without colours, and returns what it shows but for ownSequences.
func screen(t *testing.T, arguments ...string) string {
	t.Helper()
	terminal, side, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	command := sidecarCommand(t.Context(), []string{"TERM=xterm-256color", "NO_COLOR=1"}, arguments...)
	command.Stdout, command.Stderr = side, side
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = side.Close() // the command has it: reading ends with the command
	seen, _ := io.ReadAll(terminal)
	_ = command.Wait() // it may fail: what it shows is the test's
	return ownSequences.Replace(string(seen))
}
