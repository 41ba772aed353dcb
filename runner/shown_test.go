package runner

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

func TestSourceAndInputsAreShownWithoutSecrets(t *testing.T) {
	execution := Execution{
		Script:  []byte("x = 's3cret-4711'\n"),
		Secrets: map[string]Secret{"KEY": NewSecret("s3cret-4711"), "PIN": NewSecret("90210")},
		Inputs: Inputs{
			"text":   {Type: typeString, V: "holds s3cret-4711"},
			"number": {Type: typeNumber, V: "90210"},
			"list":   {Type: typeList, V: []Value{{Type: typeNumber, V: "90210"}, {Type: typeString, V: "plain"}}},
			"file":   {Type: typeFile, V: map[string]any{"url": "https://x/?k=s3cret-4711"}},
		},
	}
	c := newCollector(execution)
	c.addLog("one", 0)
	c.addLog(strings.Repeat("x", maxLogMessage), 0)
	var result Result
	c.fill(&result)
	shown := result.Source + string(result.Inputs)
	if strings.Contains(shown, "s3cret-4711") || strings.Contains(shown, "90210") || !strings.Contains(shown, "plain") {
		t.Errorf("shown: %s", shown)
	}
	if execution.Inputs["text"].V != "holds s3cret-4711" {
		t.Error("the step's own inputs were changed")
	}
	if len(result.LogTimes) != len(result.Logs) || result.LogTimes[1].Before(result.LogTimes[0]) {
		t.Errorf("log times %v of %d logs", result.LogTimes, len(result.Logs))
	}
	document, err := Result{Source: "s", Inputs: result.Inputs, Begun: time.Now(), Outcome: outcomes.OK}.MarshalJSON()
	if err != nil || strings.Contains(string(document), "ource") || strings.Contains(string(document), "nputs") {
		t.Errorf("the document of the contract has more keys: %s %v", document, err)
	}
}

func TestNoFormOfTheKeyLeavesInAResult(t *testing.T) {
	key := "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ0ZXN0In0." + strings.Repeat("c2lnbmF0dXJl", 7)
	used := []string{}
	c := newCollector(Execution{
		Keys: func() []string { return used }, Outputs: Outputs{{Name: "n", Type: typeNumber}, {Name: "x", Type: typeString}},
	})
	c.addLog("before "+key, 0)
	used = append(used, "an older key that is not searched for", key)
	forms := []string{key, base64.StdEncoding.EncodeToString([]byte("X-API-KEY: " + key)), hex.EncodeToString([]byte(key)),
		key[len(key)-50:]}
	for _, form := range forms {
		body := form
		c.addLog("read "+form, 0)
		c.addEntry(entryKey{}, HTTPEntry{URL: "https://h/?k=" + form, Body: &body,
			ResponseHeaders: map[string]string{"X-Echo": form}, ResponseBody: &body})
		entry := c.entries[0]
		for _, text := range append(c.logs[1:], entry.URL, *entry.Body, entry.ResponseHeaders["X-Echo"],
			*entry.ResponseBody) {
			if c.redact.holdsKey([]byte(text)) || !strings.Contains(text, "********") {
				t.Errorf("a result contains %q", text)
			}
		}
		raw, err := json.Marshal(map[string]string{"t": "s", "v": "read " + form})
		if err != nil {
			t.Fatal(err)
		}
		c.result = &message{Values: map[string]json.RawMessage{"n": json.RawMessage(`{"t":"n","v":"1"}`), "x": raw}}
		if _, err := c.values(); err == nil || !strings.Contains(err.Error(), `output "x" contains the key`) ||
			strings.Contains(err.Error(), form) {
			t.Errorf("an output with %q: %v", form, err)
		}
	}
}
