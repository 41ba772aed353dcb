package shown

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

func TestTextContainsNoTerminalControls(t *testing.T) {
	shown := Text("a\tb\n" + attacks.Harmful + "\xffü€𝄞")
	for _, r := range shown {
		if unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r) {
			t.Errorf("%q holds %q", shown, r)
		}
	}
	if !strings.HasPrefix(shown, "a\tb\n") || !strings.HasSuffix(shown, "ü€𝄞") {
		t.Errorf("shown as %q", shown)
	}
}

func TestTextContainsNothingInvisible(t *testing.T) {
	if shown := Text("a" + attacks.Hidden + "b"); strings.Trim(shown, "ab\ufffd") != "" {
		t.Errorf("shown as %q", shown)
	}
	const words = "\u0646\u200c\u0645 \U0001f468\u200d\U0001f4bb \u06001" // joiners, and a mark before a number
	if shown := Text(words); shown != words {
		t.Errorf("shown as %q", shown)
	}
}

func TestJSONKeepsItsMeaningWithoutTerminalControls(t *testing.T) {
	for _, text := range []string{attacks.Harmful, "plain", "ü€𝄞©Øâ", "\u2028",
		strings.Repeat("x", 1000) + attacks.Harmful} {
		document, err := json.Marshal(map[string]string{text: text})
		if err != nil {
			t.Fatal(err)
		}
		shown := JSON(document)
		for _, r := range string(shown) {
			if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
				t.Errorf("%q holds %q", shown, r)
			}
		}
		var again map[string]string
		if err := json.Unmarshal(shown, &again); err != nil || again[text] != text {
			t.Errorf("%q means %q, %v", shown, again, err)
		}
	}
}
