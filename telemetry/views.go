package telemetry

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	// decodings is the maximal number of nested encodings of a text.
	decodings = 4
	// encodedSize is the maximal size of a byte after that many percent-encodings: each turns % into %25.
	encodedSize = 1 + 2*decodings
)

// view is a text after some decodings.
type view struct {
	text   string
	at     []int // the offset of each byte, and of the end, in the original text; if nil, offsets are unchanged
	layers int
}

func (v view) origin(i int) int {
	if v.at == nil {
		return i
	}
	return v.at[i]
}

// viewsOf returns a text and its decodings, by percent-decoding and by unquoting strings, in any order.
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

// decoded decodes the escapes that begin with mark once more. Everything else stays unchanged.
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

// escape returns the meaning of the escape at the beginning of a text, in a URL, in JSON or in Python, and its length,
// or 0 if the text begins with no escape.
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
