// Package shown makes text safe to display. It replaces control characters, which a terminal would interpret, and
// bidirectional marks, which would change the order in which text is read.
package shown

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text replaces control characters, and characters that are invisible in text, by visible ones. Line breaks and tabs
// stay.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == 0x7f:
			return '␡'
		case r < 0x20:
			return '␀' + r
		case isHarmful(r), isInvisible(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
}

// JSON escapes the characters in a JSON document that [Text] replaces and encoding/json keeps. The meaning of the
// document does not change, because such characters occur only inside strings.
func JSON(document []byte) []byte {
	clean := true
	for i := 0; i < len(document) && clean; i++ {
		c := document[i]
		// the first bytes of the harmful characters in UTF-8
		clean = c < 0x7f || c > 0x7f && c != 0xc2 && c != 0xd8 && c != 0xe2
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

// isInvisible reports whether r is a format character, which is invisible in text, or a line break that only some
// programs know. It excludes joiners, which are parts of words and of emoji, and the marks before numbers, which are
// visible.
func isInvisible(r rune) bool {
	if r < 0xad || r == '\u200c' || r == '\u200d' {
		return false
	}
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) && !unicode.Is(unicode.Prepended_Concatenation_Mark, r)
}
