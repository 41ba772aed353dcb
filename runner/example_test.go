package runner_test

import (
	"context"
	"fmt"
	"log"

	"github.com/kizen/kizen-sidecar/runner"
)

// One step, with an input, a log message and an output.
func ExampleRunner_Run() {
	steps, err := runner.New(runner.Config{})
	if err != nil {
		log.Fatal(err)
	}
	inputs, err := runner.DecodeInputs([]byte(`{"n": 21}`), nil)
	if err != nil {
		log.Fatal(err)
	}
	outputs, err := runner.DecodeOutputs([]byte(`{"doubled": "number"}`))
	if err != nil {
		log.Fatal(err)
	}
	result, err := steps.Run(context.Background(), runner.Execution{
		ID: "e-1", Script: []byte("outputs.log('hello')\noutputs.doubled = inputs.n * 2\n"), Inputs: inputs, Outputs: outputs,
	})
	if err != nil {
		log.Fatal(err) // an error of the sidecar; a step that fails has a result
	}
	fmt.Println(result.Outcome, result.Logs)
	for _, output := range result.Values {
		fmt.Println(output.Name, "=", output.Value().V)
	}
	// Output:
	// ok [hello]
	// doubled = 42
}

// A step that raises is a result, not an error.
func ExampleResult() {
	steps, err := runner.New(runner.Config{})
	if err != nil {
		log.Fatal(err)
	}
	result, err := steps.Run(context.Background(), runner.Execution{ID: "e-2", Script: []byte("1 / 0\n")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Outcome, result.Outcome.Failed(), result.Error.Message)
	// Output:
	// exception true ZeroDivisionError: division by zero
}
