package runner_test

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
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
	if result.Outcome != outcomes.OK || result.Values[0].Value().V != "hush hush" || result.Values[1].Value().V != "42" ||
		result.Logs[0] != "21" {
		t.Errorf("got %s", body)
	}
}

func TestEveryResultSaysWhichLayersHeld(t *testing.T) {
	for _, config := range []runner.Config{
		{}, {Sandbox: sandbox.ModeOff}, {Network: sandbox.NetworkKizenOnly}, {Network: sandbox.NetworkPolicy},
	} {
		r := newRunner(t, config)
		var held, missing []string
		for _, layer := range r.Sandbox() {
			switch {
			case !layer.Held:
				missing = append(missing, layer.Name)
			case layer.Name == "network namespace" && config.Network != sandbox.NetworkKizenOnly:
			case layer.Name == "connection policy" && config.Network != sandbox.NetworkPolicy:
			default:
				held = append(held, layer.Name)
			}
		}
		for _, script := range []string{"outputs.x = 'done'", "raise ValueError", "import os; os._exit(3)"} {
			result := run(t, r, script)
			if !slices.Equal(result.Layers.Held, held) || !slices.Equal(result.Layers.Missing, missing) {
				t.Errorf("%+v, %s: got %+v, want %q and not %q", config, script, result.Layers, held, missing)
			}
		}
	}
}

func TestAResultAlwaysListsItsLayers(t *testing.T) {
	for _, result := range []runner.Result{
		{Outcome: outcomes.OK},
		{Outcome: outcomes.Exception, Error: &runner.StepError{},
			Layers: runner.Layers{Held: []string{"seccomp"}, Missing: []string{"landlock"}}},
	} {
		var body struct {
			Layers struct{ Held, Missing []string }
			Error  *struct {
				Evidence struct {
					Missing []string `json:"missing_layers"`
				}
			}
		}
		if err := json.Unmarshal([]byte(marshal(t, result)), &body); err != nil {
			t.Fatal(err)
		}
		if body.Layers.Held == nil || len(body.Layers.Held) != len(result.Layers.Held) || body.Layers.Missing == nil ||
			len(body.Layers.Missing) != len(result.Layers.Missing) {
			t.Errorf("got %+v of %+v", body, result.Layers)
		}
		if body.Error != nil && !slices.Equal(body.Error.Evidence.Missing, result.Layers.Missing) {
			t.Errorf("the evidence is %+v", body.Error.Evidence)
		}
	}
}
