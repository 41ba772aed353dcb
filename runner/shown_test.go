package runner

import (
	"strings"
	"testing"
	"time"
)

func TestWhatAStepWasGivenIsShownWithoutItsSecrets(t *testing.T) {
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
	shown, err := marshal(struct {
		Source string
		Inputs Inputs
	}{result.Source, result.Inputs})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(shown), "s3cret-4711") || strings.Contains(string(shown), "90210") || !strings.Contains(string(shown), "plain") {
		t.Errorf("shown: %s", shown)
	}
	if execution.Inputs["text"].V != "holds s3cret-4711" {
		t.Error("the step's own inputs were changed")
	}
	if len(result.LogTimes) != len(result.Logs) || result.LogTimes[1].Before(result.LogTimes[0]) {
		t.Errorf("log times %v of %d logs", result.LogTimes, len(result.Logs))
	}
	document, err := Result{Source: "s", Inputs: execution.Inputs, Begun: time.Now(), Outcome: OK}.MarshalJSON()
	if err != nil || strings.Contains(string(document), "ource") || strings.Contains(string(document), "nputs") {
		t.Errorf("the document of the contract has more keys: %s %v", document, err)
	}
}
