package telemetry

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	// decodings is how often a text may be encoded upon itself.
	decodings = 4
	// encodedSize is what a byte becomes at most when it is percent-encoded that often: % turns into %25 each time.
	encodedSize = 1 + 2*decodings
)

// view is a text as it reads after some decodings.
type view struct {
	text   string
	at     []int // where each byte, and the end, stand in the text that was given; nil: where they stand in text
	layers int
}

func (v view) origin(i int) int {
	if v.at == nil {
		return i
	}
	return v.at[i]
}

// viewsOf are a text and what it reads as, percent-decoded and without escapes of quoted strings, in any order.
func viewsOf(text string) []view {
	views := []view{{text: text}}
	for i := 0; i < len(views); i++ {
		if views[i].layers == decodings {
			continue
		}
		for _, mark := range []byte{'%', '\\'} {
			if strings.IndexByte(views[i].text, mark) < 0 {
				continue
			}
			next := views[i].decoded(mark)
			if !slices.ContainsFunc(views, func(known view) bool { return known.text == next.text }) {
				views = append(views, next)
			}
		}
	}
	return views
}

// decoded decodes the escapes that begin with mark once more. Everything else stays as it is.
func (v view) decoded(mark byte) view {
	var text strings.Builder
	at := make([]int, 0, len(v.text)+1)
	for i := 0; i < len(v.text); {
		plain, size := v.text[i:i+1], 1
		if v.text[i] == mark {
			if decoded, length := escape(v.text[i:]); length > 0 {
				plain, size = decoded, length
			}
		}
		for range len(plain) {
			at = append(at, v.origin(i))
		}
		text.WriteString(plain)
		i += size
	}
	return view{text: text.String(), at: append(at, v.origin(len(v.text))), layers: v.layers + 1}
}

// escape is what the escape at the beginning of a text stands for, in a URL, in JSON or in Python, and its length; 0 if it
// is none.
func escape(text string) (plain string, size int) {
	if len(text) < 2 {
		return "", 0
	}
	if text[0] == '%' {
		if code, ok := hexDigits(text, 1, 2); ok {
			return string([]byte{byte(code)}), 3
		}
		return "", 0
	}
	if i := strings.IndexByte(`ntrbf"'\/`, text[1]); i >= 0 {
		return "\n\t\r\b\f\"'\\/"[i : i+1], 2
	}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[text[1]]
	code, ok := hexDigits(text, 2, digits)
	if !ok || code > 0x10ffff {
		return "", 0
	}
	size = 2 + digits
	if digits == 2 {
		return string([]byte{byte(code)}), size
	}
	if 0xd800 <= code && code < 0xdc00 && strings.HasPrefix(text[size:], `\u`) {
		if low, ok := hexDigits(text, size+2, 4); ok && 0xdc00 <= low && low < 0xe000 {
			return string(utf16.DecodeRune(rune(code), rune(low))), size + 6
		}
	}
	return string(rune(code)), size
}

func hexDigits(text string, from, count int) (code uint64, ok bool) {
	if count == 0 || len(text) < from+count {
		return 0, false
	}
	code, err := strconv.ParseUint(text[from:from+count], 16, 32)
	return code, err == nil
}
