package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// outputsStep assigns its secrets in every type that can hold their text, and logs one of them.
const outputsStep = `
import uuid
outputs.text = f"the {secrets['NAME']} order"
outputs.number = 1
outputs.id = uuid.UUID("acce0000-1111-4111-8111-acacacacacac")
outputs.texts = ["acme", secrets["ONE"]]
outputs.whole = secrets["NAME"]
outputs.log(outputs.text)
`

var (
	outputsSecrets = map[string]string{"NAME": "acme", "ONE": "1", "HEX": "4111"}
	outputsTypes   = map[string]string{"text": "s", "number": "n", "id": "u", "texts": "a[s]", "whole": "s"}
	outputsWanted  = `{"text": {"t": "s", "v": "the acme order"}, "number": {"t": "n", "v": "1"},
		"id": {"t": "u", "v": "acce0000-1111-4111-8111-acacacacacac"}, "texts": {"t": "a[s]", "v": ["acme", "1"]}, "whole": {"t": "s", "v": "acme"}}`
)

// requireExactOutputs holds a result to what the step assigned and logged.
func requireExactOutputs(t *testing.T, where, result string) {
	t.Helper()
	var got struct {
		Values json.RawMessage
		Logs   []string
	}
	if err := json.Unmarshal([]byte(result), &got); err != nil {
		t.Fatalf("%s: %v: %s", where, err, result)
	}
	if !sameJSON(got.Values, []byte(outputsWanted)) {
		t.Errorf("%s: the outputs are %s", where, got.Values)
	}
	if strings.Join(got.Logs, "|") != "the [REDACTED] order" {
		t.Errorf("%s: the logs are %q", where, got.Logs)
	}
}

func TestOutputsAreExactlyWhatTheStepAssigned(t *testing.T) {
	t.Parallel()
	t.Run("run", func(t *testing.T) {
		dir := t.TempDir()
		got := sidecar(t, "", nil, "run", "--json", "--script", writeFile(t, dir, "script.py", outputsStep),
			"--outputs-file", writeJSON(t, dir, "outputs.json", outputsTypes), "--secrets-file", writeJSON(t, dir, "secrets.json", outputsSecrets))
		requireExactOutputs(t, "--json", got.stdout)
	})
	secrets := writeJSON(t, t.TempDir(), "secrets.json", map[string]any{"b-1": outputsSecrets})
	body := script(outputsStep).with("output_types", outputsTypes).with("secrets", []string{"NAME", "ONE", "HEX"})
	t.Run("serve", func(t *testing.T) {
		box := newMailbox(t)
		s := startServe(t, "--ui", "--warm", "1", "--secrets-file", secrets, "--webhook-allow", "127.0.0.0/8",
			"--webhook-secret-file", writeFile(t, t.TempDir(), "webhook.secret", webhookSecret))
		requireExactOutputs(t, "/api/coderunner/run", s.ask("POST", "/api/coderunner/run", body).body)
		s.ask("POST", "/executions", body.with("execution_id", "e-1").with("callback_url", box.URL))
		waitFor(t, func() bool { return len(box.of(t, "e-1")) > 1 })
		requireExactOutputs(t, "callback", string(box.of(t, "e-1")[1].message(t).Data.Result))
		for _, path := range []string{"/executions/e-1", "/executions/e-1/record"} {
			var kept struct{ Result json.RawMessage }
			if answer := s.ask("GET", path, nil); json.Unmarshal([]byte(answer.body), &kept) != nil {
				t.Fatalf("%s: %s", path, answer.body)
			}
			requireExactOutputs(t, path, string(kept.Result))
		}
	})
	t.Run("worker", func(t *testing.T) {
		redisURL, box := startRedisServer(t), newMailbox(t)
		enqueue(t, redisClient(t, redisURL), body.with("execution_id", "e-1").with("business_id", "b-1").with("user_id", "u-1").
			with("callback_url", box.URL))
		startWorker(t, redisURL, "http://127.0.0.1:1/api", "--secrets-file", secrets)
		waitFor(t, func() bool { return len(box.of(t, "e-1")) > 1 })
		requireExactOutputs(t, "callback of a worker", string(box.of(t, "e-1")[1].message(t).Data.Result))
	})
}
