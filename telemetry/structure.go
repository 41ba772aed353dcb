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
	// identifying is the length in characters from which a value is a secret within an identifier or a name, too. What is
	// shorter may well be a part of one by chance.
	identifying = 16
	// untouchable is longer than any secret.
	untouchable = 1 << 30
	// longestEscape is that of two escapes of JSON for one character.
	longestEscape = 12
)

// A zone is a part of a text in which a value of fewer than least characters is taken for a part of something else.
type zone struct {
	from, to, least int
	named           bool // only values that read like a name are
}

// zonePatterns find zones: the first group of a match is one.
var zonePatterns = sync.OnceValue(func() []zonePattern {
	return []zonePattern{
		{regexp.MustCompile(`(\[REDACTED\])`), untouchable, false},
		// UUIDs, and the ids of traces (https://www.w3.org/TR/trace-context/).
		{regexp.MustCompile(`\b([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|` +
			`[0-9A-Fa-f]{2}-[0-9A-Fa-f]{32}-[0-9A-Fa-f]{16}-[0-9A-Fa-f]{2}|[0-9A-Fa-f]{32})\b`), identifying, false},
		// Where an error is, in tracebacks and in messages of parsers.
		{regexp.MustCompile(`(File "script\.py")`), untouchable, false},
		{regexp.MustCompile(`File ("/[^"\n]*")`), identifying, false},
		{regexp.MustCompile(`((?:\bline |script\.py:)[0-9]{1,7}\b(?:,? column [0-9]{1,7}\b)?(?: \(char [0-9]{1,9}\))?)`), untouchable, false},
		// The names of parameters of a URL.
		{regexp.MustCompile(`[?&]([^=&?# \t\r\n"'<>]+)=`), identifying, true},
	}
})

type zonePattern struct {
	pattern *regexp.Regexp
	least   int
	named   bool
}

// jsonTokens are the braces of a JSON text, and its strings; the last of these may be cut.
var jsonTokens = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?s)[{}]|"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\z)`) })

const (
	blanks = " \t\r\n"
	// bare are the characters of JSON's numbers, true, false and null.
	bare             = "+-." + lettersAndDigits
	lettersAndDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// structure is what a text consists of, found out when a secret has been found in it.
type structure struct {
	text    string
	kinds   [][]zone  // of each kind those in the text, in order and apart
	strings []stretch // of JSON, in order and apart, with their quotes
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
			if before, behind := s.before(from), s.behind(to); depth > 0 && (before == '{' || before == ',') && behind == ':' {
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

// schemes are those of the URLs in a text, of at most 32 characters (RFC 3986, section 3.1). An expression for them takes
// long for a long word.
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

// jsonBegin is where the first brace or bracket stands, but for that of a mark; -1 if there is none.
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

// before is the last byte before a place that is no blank, 0 if there is none.
func (s *structure) before(at int) byte {
	if text := strings.TrimRight(s.text[:at], blanks); text != "" {
		return text[len(text)-1]
	}
	return 0
}

// behind is the first byte from a place on that is no blank, 0 if there is none.
func (s *structure) behind(at int) byte {
	if text := strings.TrimLeft(s.text[at:], blanks); text != "" {
		return text[0]
	}
	return 0
}

// isSecret reports whether what stands at a place of the text is a secret and no part of something else.
func (s *structure) isSecret(at stretch, f form) bool {
	if f.size < aloneBelow && !s.alone(at) {
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

// alone reports whether a value is no part of a longer word, number, name, address or path.
func (s *structure) alone(at stretch) bool {
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

// thousands reports whether a text begins with what follows a comma within a number; other commas are between values.
func thousands(text string) bool {
	return len(text)-len(strings.TrimLeft(text, "0123456789")) == 3
}

// endsInWord and startsWithWord take a mark for a word, which it may have been.
func endsInWord(text string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	return isWord(last) || strings.HasSuffix(text, redacted.Mark)
}

func startsWithWord(text string) bool {
	first, _ := utf8.DecodeRuneInString(text)
	return isWord(first) || strings.HasPrefix(text, redacted.Mark)
}

// isWord reports whether a character is of a word or number. Of those outside of ASCII all are but punctuation.
func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return r == '_' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
	}
	return r >= 0xc0 && (r < 0x2000 || r > 0x206f) && (r < 0x3000 || r > 0x303f) && r != utf8.RuneError
}

func isJoint(r rune) bool { return r < utf8.RuneSelf && strings.ContainsRune(".-:@+%", r) }

// widened is a stretch that ends no escape in its middle.
func (s *structure) widened(at stretch) stretch {
	at.from, _ = s.escapeAround(at.from)
	_, at.to = s.escapeAround(at.to)
	return at
}

// escapeAround is where the escape that a place is within begins and ends; the place itself if it is within none.
func (s *structure) escapeAround(place int) (from, to int) {
	for from := max(0, place-longestEscape+1); from < place; from++ {
		if s.text[from] != '%' && s.text[from] != '\\' {
			continue
		}
		if run := from - len(strings.TrimRight(s.text[:from], `\`)); s.text[from] == '\\' && run%2 != 0 {
			continue // it is escaped itself
		}
		if _, size := escape(s.text[from:]); from+size > place {
			return from, from + size
		}
	}
	return place, place
}

// inJSON leaves the syntax of JSON as it is: a bare value that holds a secret is replaced whole, by a string.
func (s *structure) inJSON(secrets []stretch) []stretch {
	isJSON := s.jsonBegin() == len(s.text)-len(strings.TrimLeft(s.text, blanks))
	for i, secret := range secrets {
		j, found := slices.BinarySearchFunc(s.strings, secret.from, func(text stretch, from int) int { return text.from - from })
		if !found && j > 0 && secret.to <= s.strings[j-1].to {
			continue
		}
		secret.from = len(strings.TrimRight(s.text[:secret.from], bare))
		secret.to = len(s.text) - len(strings.TrimLeft(s.text[secret.to:], bare))
		before, behind := s.before(secret.from), s.behind(secret.to)
		inList := isJSON && strings.IndexByte(":,[", before) >= 0
		inObject := before == ':' && s.before(strings.LastIndexByte(s.text[:secret.from], ':')) == '"'
		if secret.quoted = (inList || inObject) && (strings.IndexByte(",]}", behind) >= 0 || isJSON && behind == 0); secret.quoted {
			secrets[i] = secret
		}
	}
	return merged(secrets)
}
