package runner_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newRunner returns a Runner on the Python of this machine.
func newRunner(t testing.TB, config runner.Config) *runner.Runner {
	t.Helper()
	if _, _, err := runner.FindInterpreter(runner.DefaultRuntime, config.Python, false); err != nil {
		if os.Getenv("KIZEN_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	r, err := runner.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run executes script with the outputs "x" (string) and "n" (number) declared.
func run(t testing.TB, r *runner.Runner, script string, change ...func(*runner.Execution)) runner.Result {
	t.Helper()
	execution := runner.Execution{
		ID:      "test",
		Script:  []byte(script),
		Outputs: runner.Outputs{{Name: "x", Type: "s"}, {Name: "n", Type: "n"}},
		Timeout: 20 * time.Second,
	}
	for _, c := range change {
		c(&execution)
	}
	result, err := r.Run(context.Background(), execution)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestAStepReadsInputsAndWritesOutputs(t *testing.T) {
	r := newRunner(t, runner.Config{})
	result := run(t, r, "outputs.n = inputs.n * 2\noutputs.x = secrets['k']\noutputs.log(inputs.n)\nprint('aside')",
		func(e *runner.Execution) {
			e.Inputs = runner.Inputs{"n": {Type: "n", V: "21"}}
			e.Secrets = map[string]runner.Secret{"k": runner.NewSecret("hush hush")}
		})
	body, err := result.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s\n%+v\n%+v %q %q %v", body, result.Phases, result.Evidence, result.Stdout, result.Stderr, result.Notes)
	if result.Outcome != runner.OK || result.Values[0].Value.V != "[REDACTED]" || result.Values[1].Value.V != "42" || result.Logs[0] != "21" {
		t.Errorf("got %s", body)
	}
}

func TestEveryResultSaysWhichLayersWereMissing(t *testing.T) {
	for mode, want := range map[sandbox.Mode]int{sandbox.ModeAuto: 0, sandbox.ModeOff: 10} {
		r := newRunner(t, runner.Config{Sandbox: mode})
		result := run(t, r, "raise ValueError")
		if mode == sandbox.ModeAuto {
			want = len(r.Sandbox().Missing())
		}
		if got := result.Evidence.MissingLayers; len(got) != want {
			t.Errorf("%s: got %q, want %d layers", mode, got, want)
		}
		if body := marshal(t, result); !strings.Contains(string(body), `"missing_layers":[`) {
			t.Errorf("%s: %s", mode, body)
		}
	}
}
