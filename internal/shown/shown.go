// Package shown makes text harmless for the person who sees it: control characters, which a terminal obeys, and those that turn the
// direction of text, which make it read as something else.
package shown

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text shows control characters instead of obeying them. Line breaks and tabs stay.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == 0x7f:
			return '␡'
		case r < 0x20:
			return '␀' + r
		case isHarmful(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
}

// JSON escapes in a JSON document what [Text] replaces and encoding/json leaves as it is. The document means the same: outside
// of strings it has no such character.
func JSON(document []byte) []byte {
	clean := true
	for i := 0; i < len(document) && clean; i++ {
		c := document[i]
		clean = c < 0x7f || c > 0x7f && c != 0xc2 && c != 0xd8 && c != 0xe2 // what the harmful ones begin with in UTF-8
	}
	if clean {
		return document
	}
	escaped := make([]byte, 0, len(document)+64)
	for rest := document; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		if isHarmful(r) {
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		} else {
			escaped = append(escaped, rest[:size]...)
		}
		rest = rest[size:]
	}
	return escaped
}

// isHarmful reports whether r is DEL, a control character of C1, or one of Unicode's Bidi_Control.
func isHarmful(r rune) bool {
	return r >= 0x7f && r < 0xa0 || r > 0xff && unicode.Is(unicode.Bidi_Control, r)
}
