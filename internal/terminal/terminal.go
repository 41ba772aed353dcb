// Package terminal keeps text of others from steering the terminal of the person who reads it: a step's logs, its calls, its
// name and its errors, an API's answers, the names in a config.json.
//
// Text shows control characters in place of obeying them, Writer does so for everything written to it, and JSONWriter
// escapes them in JSON, whose values stay the same.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Text returns text with pictures in place of control characters: none of it moves the cursor, changes colours, retitles
// the terminal or reorders what stands beside it. Line breaks and tabs stay. Bytes that are no UTF-8 become U+FFFD.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == 0x7f:
			return '␡'
		case r < 0x20:
			return '␀' + r
		case steers(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
}

// steers reports whether r is a control character (C0, DEL, C1) or one that reorders text (Unicode's Bidi_Control).
func steers(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }

// Writer passes what is written to it through Text. A character may be cut in two by writes: its beginning waits for the
// rest of it. A Writer may be used by several goroutines at once.
type Writer struct {
	to      io.Writer
	mu      sync.Mutex
	pending []byte // the beginning of a character, at most utf8.UTFMax-1 bytes
}

// NewWriter returns a Writer to a terminal, or to whatever stands in for one.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Write writes p, and reports all of it as written or none.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := append(w.pending, p...)
	whole := wholeCharacters(text)
	w.pending = append([]byte(nil), text[whole:]...)
	if whole == 0 {
		return len(p), nil
	}
	if _, err := io.WriteString(w.to, Text(string(text[:whole]))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Unwrap is what w writes to, for our own control sequences.
func (w *Writer) Unwrap() io.Writer { return w.to }

// Unwrap returns what is below the Writer w, or w itself if it is another kind of writer.
func Unwrap(w io.Writer) io.Writer {
	if wrapped, ok := w.(interface{ Unwrap() io.Writer }); ok {
		return wrapped.Unwrap()
	}
	return w
}

// wholeCharacters is how many bytes of text stand before a character that is cut off at its end.
func wholeCharacters(text []byte) int {
	for back := 1; back < utf8.UTFMax && back <= len(text); back++ {
		begin := len(text) - back
		if utf8.RuneStart(text[begin]) {
			if !utf8.FullRune(text[begin:]) {
				return begin
			}
			break
		}
	}
	return len(text)
}

// JSONWriter writes JSON with the characters escaped (RFC 8259, section 7) that Text would replace. Each write holds whole
// characters, as those of encoding/json and log/slog do.
type JSONWriter struct{ to io.Writer }

// NewJSONWriter returns a JSONWriter.
func NewJSONWriter(to io.Writer) JSONWriter { return JSONWriter{to} }

// Write writes p, and reports all of it as written or none.
func (w JSONWriter) Write(p []byte) (int, error) {
	if _, err := w.to.Write(escapeJSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// escapeJSON escapes what stands in strings only: JSON has no such character outside of them, but for white space.
func escapeJSON(document []byte) []byte {
	var escaped []byte
	copied := 0
	for i := 0; i < len(document); {
		if c := document[i]; c < utf8.RuneSelf && c != 0x7f {
			i++
			continue
		}
		r, size := utf8.DecodeRune(document[i:])
		if r != utf8.RuneError && steers(r) {
			escaped = fmt.Appendf(append(escaped, document[copied:i]...), `\u%04x`, r)
			copied = i + size
		}
		i += size
	}
	if copied == 0 {
		return document
	}
	return append(escaped, document[copied:]...)
}
