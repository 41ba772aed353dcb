package telemetry

import (
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	// identifying is the length in characters from which a value is a secret even within an identifier or a name.
	// Shorter values may be part of one by chance.
	identifying = 16
	// untouchable is longer than any secret.
	untouchable = 1 << 30
	// longestEscape is the length of two JSON escapes for one character.
	longestEscape = 12
)

// A zone is a part of a text in which a value of fewer than least characters is not treated as a secret.
type zone struct {
	from, to, least int
	named           bool // only for values that look like a name
}

// zonePatterns find zones: the first group of each match.
var zonePatterns = sync.OnceValue(func() []zonePattern {
	return []zonePattern{
		{regexp.MustCompile(`(\[REDACTED\])`), untouchable, false},
		// UUIDs, and trace IDs (https://www.w3.org/TR/trace-context/).
		{regexp.MustCompile(`\b([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|` +
			`[0-9A-Fa-f]{2}-[0-9A-Fa-f]{32}-[0-9A-Fa-f]{16}-[0-9A-Fa-f]{2}|[0-9A-Fa-f]{32})\b`), identifying, false},
		// Positions of errors, in tracebacks and in messages of parsers.
		{regexp.MustCompile(`(File "script\.py")`), untouchable, false},
		{regexp.MustCompile(`File ("/[^"\n]*")`), identifying, false},
		{regexp.MustCompile(`((?:\bline |script\.py:)[0-9]{1,7}\b(?:,? column [0-9]{1,7}\b)?(?: \(char [0-9]{1,9}\))?)`),
			untouchable, false},
		// The names of URL parameters.
		{regexp.MustCompile(`[?&]([^=&?# \t\r\n"'<>]+)=`), identifying, true},
	}
})

type zonePattern struct {
	pattern *regexp.Regexp
	least   int
	named   bool
}

// jsonTokens matches the braces and the strings of a JSON text; the last string may be truncated.
var jsonTokens = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?s)[{}]|"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\z)`) })

const (
	blanks = " \t\r\n"
	// bare lists the characters of JSON numbers, true, false and null.
	bare             = "+-." + lettersAndDigits
	lettersAndDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// structure is the structure of a text, analysed once a secret has been found in it.
type structure struct {
	text    string
	kinds   [][]zone  // the zones of each kind, sorted and disjoint
	strings []stretch // JSON strings with their quotes, sorted and disjoint
	scanned bool
}

func (s *structure) scan() {
	if s.scanned {
		return
	}
	s.scanned = true
	for _, p := range zonePatterns() {
		var zones []zone
		for _, at := range p.pattern.FindAllStringSubmatchIndex(s.text, -1) {
			zones = append(zones, zone{at[2], at[3], p.least, p.named})
		}
		s.add(zones)
	}
	s.add(schemes(s.text))
	begin := s.jsonBegin()
	if begin < 0 {
		return
	}
	var keys []zone
	depth := 0
	for _, at := range jsonTokens().FindAllStringIndex(s.text[begin:], -1) {
		from, to := begin+at[0], begin+at[1]
		switch s.text[from] {
		case '{':
			depth++
		case '}':
			depth--
		default:
			s.strings = append(s.strings, stretch{from: from, to: to})
			if before, behind := s.before(from), s.after(to); depth > 0 && (before == '{' || before == ',') && behind == ':' {
				keys = append(keys, zone{from, to, identifying, true})
			}
		}
	}
	s.add(keys)
}

func (s *structure) add(zones []zone) {
	if zones != nil {
		s.kinds = append(s.kinds, zones)
	}
}

// schemes returns the schemes of the URLs in a text, of at most 32 characters (RFC 3986, section 3.1). A regular
// expression for them would be slow for a long word.
func schemes(text string) (zones []zone) {
	for at := 0; ; at += len("://") {
		next := strings.Index(text[at:], "://")
		if next < 0 {
			return zones
		}
		at += next
		from := max(0, at-32)
		from += len(strings.TrimRight(text[from:at], bare))
		if from += strings.IndexFunc(text[from:at]+":", func(r rune) bool { return r > '9' }); from < at { // the first letter
			zones = append(zones, zone{from, at + len("://"), identifying, true})
		}
	}
}

// jsonBegin returns the offset of the first brace or bracket that is not part of a mark, or -1.
func (s *structure) jsonBegin() int {
	at := 0
	for {
		next := strings.IndexAny(s.text[at:], "{[")
		if next < 0 {
			return -1
		}
		if at += next; !strings.HasPrefix(s.text[at:], redacted.Mark) {
			return at
		}
		at += len(redacted.Mark)
	}
}

// before returns the last non-blank byte before an offset, or 0.
func (s *structure) before(at int) byte {
	if text := strings.TrimRight(s.text[:at], blanks); text != "" {
		return text[len(text)-1]
	}
	return 0
}

// after returns the first non-blank byte from an offset on, or 0.
func (s *structure) after(at int) byte {
	if text := strings.TrimLeft(s.text[at:], blanks); text != "" {
		return text[0]
	}
	return 0
}

// isSecret reports whether an occurrence in the text is a secret and not part of something else.
func (s *structure) isSecret(at stretch, f form) bool {
	if f.size < wholeWordBelow && !s.isWholeWord(at) {
		return false
	}
	s.scan()
	for _, zones := range s.kinds {
		i, found := slices.BinarySearchFunc(zones, at.from, func(z zone, from int) int { return z.from - from })
		if !found {
			i--
		}
		if i >= 0 && at.to <= zones[i].to && f.size < zones[i].least && (f.named || !zones[i].named) {
			return false
		}
	}
	return true
}

// isWholeWord reports whether a value is not part of a longer word, number, name, address or path.
func (s *structure) isWholeWord(at stretch) bool {
	left, right := s.text[:at.from], s.text[at.to:]
	before, size := utf8.DecodeLastRuneInString(left)
	behind, width := utf8.DecodeRuneInString(right)
	switch {
	case !strings.ContainsFunc(s.text[at.from:at.to], isWord), strings.ContainsRune(`/\%-`, before), behind == '/':
		return false
	case endsInWord(left), startsWithWord(right), isJoint(before) && endsInWord(left[:len(left)-size]):
		return false
	case before == ',' && thousands(s.text[at.from:]), behind == ',' && thousands(right[1:]):
		return false
	}
	return !isJoint(behind) || !startsWithWord(right[width:])
}

// thousands reports whether a text begins with a group of digits that can follow a comma within a number. Any other
// comma separates values.
func thousands(text string) bool {
	return len(text)-len(strings.TrimLeft(text, "0123456789")) == 3
}

// endsInWord and startsWithWord count a mark as a word, because it may have replaced one.
func endsInWord(text string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	return isWord(last) || strings.HasSuffix(text, redacted.Mark)
}

func startsWithWord(text string) bool {
	first, _ := utf8.DecodeRuneInString(text)
	return isWord(first) || strings.HasPrefix(text, redacted.Mark)
}

// isWord reports whether a character belongs to a word or number. Outside ASCII, all characters except punctuation do.
func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return r == '_' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
	}
	return r >= 0xc0 && (r < 0x2000 || r > 0x206f) && (r < 0x3000 || r > 0x303f) && r != utf8.RuneError
}

func isJoint(r rune) bool { return r < utf8.RuneSelf && strings.ContainsRune(".-:@+%", r) }

// widened extends a stretch so that it does not split an escape.
func (s *structure) widened(at stretch) stretch {
	at.from, _ = s.escapeAround(at.from)
	_, at.to = s.escapeAround(at.to)
	return at
}

// escapeAround returns the bounds of the escape around an offset, or the offset itself if it is not inside an escape.
func (s *structure) escapeAround(place int) (from, to int) {
	for from := max(0, place-longestEscape+1); from < place; from++ {
		if s.text[from] != '%' && s.text[from] != '\\' {
			continue
		}
		if run := from - len(strings.TrimRight(s.text[:from], `\`)); s.text[from] == '\\' && run%2 != 0 {
			continue // this backslash is itself escaped
		}
		if _, size := escape(s.text[from:]); from+size > place {
			return from, from + size
		}
	}
	return place, place
}

// inJSON keeps the JSON valid: a bare value that contains a secret is replaced as a whole, by a string.
func (s *structure) inJSON(secrets []stretch) []stretch {
	isJSON := s.jsonBegin() == len(s.text)-len(strings.TrimLeft(s.text, blanks))
	for i, secret := range secrets {
		j, found := slices.BinarySearchFunc(s.strings, secret.from,
			func(text stretch, from int) int { return text.from - from })
		if !found && j > 0 && secret.to <= s.strings[j-1].to {
			continue
		}
		secret.from = len(strings.TrimRight(s.text[:secret.from], bare))
		secret.to = len(s.text) - len(strings.TrimLeft(s.text[secret.to:], bare))
		before, behind := s.before(secret.from), s.after(secret.to)
		inList := isJSON && strings.IndexByte(":,[", before) >= 0
		inObject := before == ':' && s.before(strings.LastIndexByte(s.text[:secret.from], ':')) == '"'
		if secret.quoted = (inList || inObject) && (strings.IndexByte(",]}", behind) >= 0 || isJSON && behind == 0); secret.quoted {
			secrets[i] = secret
		}
	}
	return merged(secrets)
}
