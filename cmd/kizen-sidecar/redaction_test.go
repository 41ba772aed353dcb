package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
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

// requireExactOutputs checks that a result has exactly the outputs and logs of the step.
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

// TestOutputsAreExactlyWhatTheStepAssigned: outputs that resemble secrets arrive unchanged in run's document, serve's
// answers and records, and the callbacks of both daemons. The result passes through all of these writers.
func TestOutputsAreExactlyWhatTheStepAssigned(t *testing.T) {
	t.Parallel()
	t.Run("run", func(t *testing.T) {
		dir := t.TempDir()
		got := sidecar(t, "", nil, "run", "--json", "--script", writeFile(t, dir, "script.py", outputsStep),
			"--outputs-file", writeJSON(t, dir, "outputs.json", outputsTypes), "--secrets-file",
			writeJSON(t, dir, "secrets.json", outputsSecrets))
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
		enqueue(t, redisClient(t, redisURL), body.with("execution_id", "e-1").with("business_id", "b-1").with("user_id",
			"u-1").
			with("callback_url", box.URL))
		startWorker(t, redisURL, "http://127.0.0.1:1/api", "--secrets-file", secrets)
		waitFor(t, func() bool { return len(box.of(t, "e-1")) > 1 })
		requireExactOutputs(t, "callback of a worker", string(box.of(t, "e-1")[1].message(t).Data.Result))
	})
}

// tellingStep puts its secrets, and values that only resemble them, into a call, a log and an error.
const tellingStep = `import json
secret, pin = secrets["NAME"], secrets["PIN"]
kizen.api.post("/orders/1/lines?page=1&name=" + secret, json={"n": 1, "name": secret, "ids": [1, 12, 4711, "acce4711-1111-4111-8111-acacacacacac"]}, headers={"X-Name": "1"})
outputs.log("1 of 12 is " + secret + ", 10.1 is none; " + json.dumps({"pin": int(pin), "acme-x": [secret]}))
raise ValueError("line 1 of " + secret + ": 1")
`

// TestOnlySecretsAreRedacted: the same secrets are masked in a cold run and a warm serve, in logs, error and record of
// calls, and numbers that only contain one are not. A new and a warm interpreter get their secrets in different ways.
func TestOnlySecretsAreRedacted(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Acme", "acme")
		io.WriteString(w, `{"id":"acce4711-1111-4111-8111-acacacacacac","count":1,"pin":4711,"rows":[1,12]}`)
	}))
	t.Cleanup(api.Close)
	secrets := map[string]string{"NAME": "acme", "PIN": "4711", "ONE": "1", "TWO": "id"}
	secretsFile := writeJSON(t, t.TempDir(), "secrets.json", secrets)
	cold := sidecar(t, "", nil, "run", "--json", "--script", writeFile(t, t.TempDir(), "script.py", tellingStep),
		"--api-root", api.URL+"/api", "--secrets-file", secretsFile)
	s := startServe(t, "--warm", "1", "--api-root", api.URL+"/api", "--secrets-file",
		writeJSON(t, t.TempDir(), "secrets.json", map[string]any{"b-1": secrets}))
	warm := s.ask("POST", "/api/coderunner/run",
		script(tellingStep).with("secrets", []string{"NAME", "PIN", "ONE", "TWO"}))
	for name, result := range map[string]string{"cold": cold.stdout, "warm": warm.body} {
		var got struct {
			Logs  []string
			Error struct{ Error, Detail string }
			HTTP  struct {
				Requests []struct {
					URL, Method, Body, ResponseBody string
					RequestSubmittedAt              time.Time
					Headers, ResponseHeaders        map[string]string
				}
			} `json:"http_requests"`
		}
		if err := json.Unmarshal([]byte(result), &got); err != nil || len(got.HTTP.Requests) != 1 || len(got.Logs) != 1 {
			t.Fatalf("%s: %v: %s", name, err, result)
		}
		call := got.HTTP.Requests[0]
		for what, pair := range map[string][2]string{
			"log": {got.Logs[0],
				`[REDACTED] of 12 is [REDACTED], 10.1 is none; {"pin": "[REDACTED]", "acme-x": ["[REDACTED]"]}`},
			"error":  {got.Error.Error, `ValueError: line 1 of [REDACTED]: [REDACTED]`},
			"url":    {call.URL, api.URL + `/api/orders/1/lines?page=[REDACTED]&name=[REDACTED]`},
			"method": {call.Method, "POST"},
			"body": {call.Body,
				`{"n": "[REDACTED]", "name": "[REDACTED]", "ids": ["[REDACTED]", 12, "[REDACTED]", "acce4711-1111-4111-8111-acacacacacac"]}`},
			"header": {call.Headers["X-Name"], "[REDACTED]"},
			"answer": {call.ResponseBody,
				`{"id":"acce4711-1111-4111-8111-acacacacacac","count":"[REDACTED]","pin":"[REDACTED]","rows":["[REDACTED]",12]}`},
			"answer's head": {call.ResponseHeaders["X-Acme"], "[REDACTED]"},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: the %s is\n%s\nwant\n%s", name, what, pair[0], pair[1])
			}
		}
		if !strings.Contains(got.Error.Detail, `File "script.py", line 5, in <module>`) ||
			strings.Contains(got.Error.Detail, "acme") {
			t.Errorf("%s: the detail is %s", name, got.Error.Detail)
		}
	}
}
