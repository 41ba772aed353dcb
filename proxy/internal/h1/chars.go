package h1

// Classes of bytes, RFC 9110 section 5.6.2 (token) and 5.5 (field value).
const (
	tokenChar = 1 << iota
	valueChar
	targetChar
)

var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			t[c] |= tokenChar
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= valueChar
		}
		if c > ' ' && c != 0x7f && c != '#' {
			t[c] |= targetChar
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= tokenChar
	}
	return t
}()

func all(b []byte, in uint8) bool {
	for _, c := range b {
		if class[c]&in == 0 {
			return false
		}
	}
	return true
}

// ValidName reports whether b is a token, as methods and field names must be.
func ValidName(b []byte) bool { return len(b) > 0 && all(b, tokenChar) }

// ValidValue reports whether b can be a field's value: no control characters except tab.
func ValidValue(b []byte) bool { return all(b, valueChar) }

func validTarget(b []byte) bool { return len(b) > 0 && all(b, targetChar) }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// FoldName maps a byte of a field name to its form in the most tolerant server: letters become lower case, and every
// character that is neither letter nor digit becomes a hyphen, because CGI variables have only one kind of punctuation.
func FoldName(c byte) byte {
	c = lower(c)
	if c >= 'a' && c <= 'z' || isDigit(c) {
		return c
	}
	return '-'
}

// EqualFold compares b with s, which is in lower case, ignoring ASCII case.
func EqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if lower(c) != s[i] {
			return false
		}
	}
	return true
}

// HasToken reports whether the comma-separated list has the token, which is in lower case.
func HasToken(list []byte, token string) bool {
	for item := range Tokens(list) {
		if EqualFold(item, token) {
			return true
		}
	}
	return false
}

// Tokens yields the items of a comma-separated list without surrounding whitespace.
func Tokens(list []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		start := 0
		for i := 0; i <= len(list); i++ {
			if i < len(list) && list[i] != ',' {
				continue
			}
			if item := trim(list[start:i]); len(item) > 0 && !yield(item) {
				return
			}
			start = i + 1
		}
	}
}

// trim removes optional whitespace (space, tab) from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}
