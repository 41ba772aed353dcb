package ids

import (
	"os"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	for text, valid := range map[string]bool{
		"b": true, "0": true, "00000000-0000-4000-8000-00000000b001": true, "tenant:7_a.b-c": true,
		strings.Repeat("a", 128): true,
		"":                       false, strings.Repeat("a", 129): false, "_a": false, "-a": false, ":a": false, ".a": false,
		"a b": false, "a{b": false, "a}b": false, "a*": false, "a?": false, "a[": false, `a\`: false, "a/b": false,
		"é": false, "a\n": false, "a\x00": false,
	} {
		if Valid(text) != valid {
			t.Errorf("%q: valid is %t", text, !valid)
		}
		switch err := Check("business id", text); {
		case valid && err != nil:
			t.Error(err)
		case !valid && (err == nil || !strings.HasPrefix(err.Error(), "business id ") ||
			!strings.HasSuffix(err.Error(), Rule)):
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestTheAPIDescribesTheSameRule compares the pattern in openapi.yaml.
func TestTheAPIDescribesTheSameRule(t *testing.T) {
	document, err := os.ReadFile("../serve/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(document), `ID: {type: string, pattern: "`+Pattern+`"}`) {
		t.Errorf("the ID of openapi.yaml has another pattern than %s", Pattern)
	}
}
