package client_test

import (
	"context"
	"fmt"

	"github.com/kizen/kizen-sidecar/client"
)

func ExampleClient_Run() {
	c := client.Client{URL: "https://sidecar.internal:8080", Token: "the token of serve's ready file"}
	result, err := c.Run(context.Background(), client.Request{
		Runtime: "python-3-13", UserScript: "outputs.doubled = inputs.n * 2",
		Inputs: map[string]client.Value{"n": {Type: "n", V: "21"}}, OutputTypes: map[string]string{"doubled": "n"},
	})
	if err != nil {
		fmt.Println("the result is unknown:", err)
		return
	}
	fmt.Println(result.Outcome(), result.Values["doubled"].V)
}

func ExampleOutcome() {
	for _, outcome := range []client.Outcome{client.OK, client.Timeout, client.NotStarted} {
		fmt.Println(outcome, outcome.Failed(), outcome.Retryable(), outcome.Sentence())
	}
	// Output:
	// ok false false The step succeeded.
	// timeout true false The step ran longer than allowed.
	// not_started true true The step's code never started: it got no slot, no key or no Python.
}
