package terminal

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

// TestAFailureIsOneDocumentOfTheShapeOfAResult: a script that reads the result of run finds every field, also if the
// step did not run.
func TestAFailureIsOneDocumentOfTheShapeOfAResult(t *testing.T) {
	var out strings.Builder
	if err := PrintFailure(&out, "r-1", outcomes.NotStarted, errors.New("the \"sandbox\" is missing\nhere")); err != nil {
		t.Fatal(err)
	}
	var document map[string]any
	if err := json.Unmarshal([]byte(out.String()), &document); err != nil {
		t.Fatal(err)
	}
	failure, _ := document["error"].(map[string]any)
	logs, isList := document["logs"].([]any)
	if document["request_id"] != "r-1" || failure["error"] != "the \"sandbox\" is missing\nhere" ||
		failure["kind"] != "not_started" || !isList || len(logs) > 0 {
		t.Errorf("got %s", out.String())
	}
	for _, name := range []string{"duration_ms", "values", "http_requests"} {
		if _, ok := document[name]; !ok {
			t.Errorf("%s is missing in %s", name, out.String())
		}
	}
}
