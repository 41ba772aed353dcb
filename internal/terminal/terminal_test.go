package terminal

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// steering are characters that terminals obey: escape and other C0 characters, DEL, C1 characters, Unicode's controls of
// direction.
var steering = []rune{0, 7, 8, '\r', 0x0e, 0x1b, 0x7f, 0x80, 0x85, 0x90, 0x9b, 0x9d, 0x9f,
	0x61c, 0x200e, 0x200f, 0x202a, 0x202e, 0x2066, 0x2069}

func TestTextKeepsWhatIsOnlyRead(t *testing.T) {
	for _, text := range []string{"", "plain", "two\nlines\tand a tab", "żółć 文字 🙂 e\u0301", "a\u200db"} {
		if got := Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzNothingSteers(f *testing.F) {
	for _, r := range steering {
		f.Add("a"+string(r)+"[31mb", 2)
	}
	f.Add("\x9b31m", 1)
	f.Add("\xe2\x80", 1)
	f.Add("\xf0\x9f\x99\x82\xc2", 3)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		shown := Text(text)
		if !utf8.ValidString(shown) {
			t.Errorf("%q is no UTF-8", shown)
		}
		for _, r := range shown {
			if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
				t.Errorf("%q is left in %q", r, shown)
			}
		}
		if !utf8.ValidString(text) {
			return
		}
		// However it is cut, it is written as the whole is.
		cut = min(max(cut, 0), len(text))
		var written strings.Builder
		w := NewWriter(&written)
		for _, part := range []string{text[:cut], text[cut:]} {
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
		}
		if written.String() != shown {
			t.Errorf("cut at %d, %q is written as %q, not %q", cut, text, &written, shown)
		}
		var document bytes.Buffer
		if err := json.NewEncoder(NewJSONWriter(&document)).Encode(map[string]string{text: text}); err != nil {
			t.Fatal(err)
		}
		if got := Text(document.String()); got != document.String() {
			t.Errorf("the JSON %q steers", document.String())
		}
		var values map[string]string
		if err := json.Unmarshal(document.Bytes(), &values); err != nil || values[text] != text {
			t.Errorf("%q is %q in JSON: %v", text, values, err)
		}
	})
}

func TestAFailedWriteIsReported(t *testing.T) {
	for _, w := range []interface{ Write([]byte) (int, error) }{NewWriter(broken{}), NewJSONWriter(broken{})} {
		if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, errBroken) {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errBroken }
