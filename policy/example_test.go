package policy_test

import (
	"context"
	"fmt"
	"log"

	"github.com/kizen/kizen-sidecar/policy"
)

// Guardrails are part of the binary; the arguments of ForCalls are an operator's rule files.
func ExampleForCalls() {
	engine, err := policy.ForCalls()
	if err != nil {
		log.Fatal(err)
	}
	account, err := engine.For(policy.Account{ID: "code-account-1", Type: "service_automation", BusinessID: "b-1"})
	if err != nil {
		log.Fatal(err)
	}
	for _, method := range []string{"GET", "POST"} {
		decision := account.Authorize(context.Background(), method, "/api-keys")
		fmt.Println(method, decision.Allowed, decision.Policy)
	}
	// Output:
	// GET true default.calls
	// POST false guardrail.own_api_key
}
