package telemetry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

func TestNoSpellingOfASecretPassesTheMaskOfTargets(t *testing.T) {
	const secret = "hunter2 is/ä?k=%+&end"
	half := len(secret) / 2
	each := func(text, format string) string {
		var all strings.Builder
		for i := range len(text) {
			fmt.Fprintf(&all, format, text[i])
		}
		return all.String()
	}
	encoded := func(shift int, encoding *base64.Encoding) string {
		return encoding.EncodeToString([]byte("abcdef"[:shift] + secret + "ghijkl"))
	}
	for _, c := range []struct{ name, path, query, wantPath, wantQuery string }{
		{"as it is", "/a/hunter2 is/ä", "k=%+&end&z=1", "/a/[REDACTED]", "[REDACTED]&z=1"},
		{"percent-encoded", "/a/" + url.PathEscape(secret) + "/b", "", "/a/[REDACTED]/b", ""},
		{"every byte", "/a/" + each(secret, "%%%02x") + "/b", "", "/a/[REDACTED]/b", ""},
		{"twice", "/a/" + url.PathEscape(url.PathEscape(secret)), "", "/a/[REDACTED]", ""},
		{"four times", "/a/" + url.PathEscape(url.PathEscape(url.PathEscape(each(secret, "%%%02X")))), "", "/a/[REDACTED]",
			""},
		{"beside a malformed escape", "/%zz/" + url.PathEscape(secret) + "/%4", "", "/%zz/[REDACTED]/%4", ""},
		{"in the name of a parameter", "/a", url.QueryEscape(secret) + "=1", "/a", "[REDACTED]=1"},
		{"in a value", "/a", "b=1&q=" + url.QueryEscape(secret), "/a", "b=1&q=[REDACTED]"},
		{"in the other case", "/a/" + url.PathEscape(strings.ToUpper(secret)), "", "/a/[REDACTED]", ""},
		{"twice in one path", "/" + url.PathEscape(secret) + "/" + url.PathEscape(secret), "", "/[REDACTED]/[REDACTED]", ""},
		{"half in the path, half in the query", "/a/" + url.PathEscape(secret[:half]), "q=" + url.QueryEscape(secret[half:]),
			"/a/[REDACTED]", "q=[REDACTED]"},
		{"its first third", "/a/" + url.PathEscape(secret[:8]) + "/b", "", "/a/[REDACTED]/b", ""},
		{"none", "/a/hunter/%2F%zz", "end=k&k=hunter", "/a/hunter/%2F%zz", "end=k&k=hunter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole := strings.TrimSuffix(c.path+"?"+c.query, "?")
			if text := NewMask(secret).Text(whole); strings.Contains(decodedOften(whole), secret) &&
				strings.Contains(decodedOften(text), secret) {
				t.Errorf("as text: %q", text)
			}
			if path, query := NewMask("other", secret).Target(c.path, c.query); path != c.wantPath || query != c.wantQuery {
				t.Errorf("%q %q\nwant %q %q", path, query, c.wantPath, c.wantQuery)
			}
		})
	}
	for shift := range 3 {
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := encoded(shift, encoding)
			for _, path := range []string{"/a/" + text, "/a/" + url.PathEscape(text), "/a/" + each(text, "%%%02x")} {
				masked, _ := NewMask(secret).Target(path, "")
				plain, err := encoding.DecodeString(strings.TrimPrefix(strings.ReplaceAll(masked, redacted.Mark, ""), "/a/"))
				if !strings.Contains(masked, redacted.Mark) || err == nil &&
					strings.Contains(string(plain), secret[3:len(secret)-3]) {
					t.Errorf("base64 of it: %q", masked)
				}
				if got := NewMask(secret).Text(text); !strings.Contains(got, redacted.Mark) {
					t.Errorf("base64 of it in a text: %q", got)
				}
			}
		}
	}
}

// decodedOften percent-decodes a text four times, where it can be.
func decodedOften(text string) string {
	for range 4 {
		if plain, err := url.PathUnescape(text); err == nil {
			text = plain
		}
	}
	return text
}

func TestASecretIsMaskedAnywhereInALongText(t *testing.T) {
	const secret = "hunter2 is/ä"
	encoded := url.PathEscape(url.PathEscape(secret))
	for at := window - len(encoded) - 2; at < window+2; at++ {
		text := strings.Repeat("x", at) + encoded + strings.Repeat("y", window)
		if got := NewMask(secret).Text(text); got != strings.Repeat("x", at)+redacted.Mark+strings.Repeat("y", window) {
			t.Fatalf("at %d: %q", at, strings.Trim(got, "xy"))
		}
	}
}

func TestAMaskOfNothingChangesNothing(t *testing.T) {
	m := NewMask("", "")
	if path, query := m.Target("/a", "b=c"); m != nil || path != "/a" || query != "b=c" || m.Text("text") != "text" {
		t.Errorf("%v: %q %q", m, path, query)
	}
}

func TestASecretThatBeginsWithAnotherIsMaskedWhole(t *testing.T) {
	m := NewMask("abc", "abcdef", "2")
	if got := m.Text("x abcdef y abc z 12"); got != "x [REDACTED] y [REDACTED] z 12" {
		t.Errorf("%q", got)
	}
	if got, _ := m.Target("/abcdef/abc", ""); got != "/[REDACTED]/abc" {
		t.Errorf("%q", got)
	}
}

func FuzzMaskOfTargets(f *testing.F) {
	f.Add("hunter2hunter2", "/a%20%2", "b=c%41")
	f.Add("a%41", "/%61%2541", "%")
	f.Fuzz(func(t *testing.T, secret, path, query string) {
		if utf8.RuneCountInString(secret) < wholeWordBelow || strings.Contains(redacted.Mark, secret) {
			return
		}
		maskedPath, maskedQuery := NewMask(secret).Target(path, query)
		for _, part := range []string{maskedPath, maskedQuery} {
			for _, piece := range strings.Split(part, redacted.Mark) {
				if strings.Contains(piece, secret) {
					t.Errorf("%q and %q keep %q: %q", path, query, secret, part)
				}
				if plain, err := url.PathUnescape(piece); err == nil && strings.Contains(plain, secret) {
					t.Errorf("%q and %q keep %q encoded: %q", path, query, secret, part)
				}
			}
		}
		if !strings.Contains(path+query, "%") && !strings.Contains(path+"?"+query, secret) && len(secret) < recodedAtLeast &&
			!strings.Contains(secret, " ") {
			if maskedPath != path || maskedQuery != query {
				t.Errorf("%q and %q have no %q, and became %q and %q", path, query, secret, maskedPath, maskedQuery)
			}
		}
	})
}
