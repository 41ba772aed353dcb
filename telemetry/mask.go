package telemetry

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	// recodedAtLeast is the shortest secret that can be told from other text when it is written in another way.
	recodedAtLeast = 6
	// A part of a secret is one in a call's target when it is a third of it, within these limits.
	partAtLeast, partAtMost = 8, 32
	// decodings is how often a target may be percent-encoded upon itself.
	decodings = 4
	// encodedSize is what a byte becomes at most when it is encoded that often: % turns into %25 each time.
	encodedSize = 1 + 2*decodings
	// window is how much of a text is decoded at once: a decoded byte takes nine times its size.
	window = 64 << 10
)

// spellings are the texts in which a secret travels: plain, in JSON, in Python's repr, percent-encoded, in base64, and as it
// is written where letters have no case.
func spellings(secret string) []string {
	ascii := strconv.QuoteToASCII(secret)
	all := []string{
		secret, ascii[1 : len(ascii)-1], url.QueryEscape(secret), url.PathEscape(secret),
		strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(secret),
	}
	var quoted strings.Builder
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(secret) == nil {
		all = append(all, strings.TrimSuffix(quoted.String()[1:], "\"\n"))
	}
	return append(all, recoded(secret)...)
}

// recoded is a secret in the one case, in the other, and what is sure to stand in the base64 of any text that holds it,
// wherever it begins in that.
func recoded(secret string) []string {
	if len(secret) < recodedAtLeast {
		return nil
	}
	all := []string{strings.ToUpper(secret), strings.ToLower(secret)}
	for shift := range 3 {
		padded := strings.Repeat("\x00", shift) + secret
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			all = append(all, encoding.EncodeToString([]byte(padded))[(shift*8+5)/6:len(padded)*8/6])
		}
	}
	return all
}

// Mask takes known secrets out of text. A nil Mask takes out nothing.
type Mask struct {
	secrets []string
	forms   []string // of which no text may hold one, decoded
	longest int      // of the forms, in bytes
	text    *strings.Replacer
}

// NewMask is a mask of secrets; nil where there are none.
func NewMask(secrets ...string) *Mask {
	m := &Mask{}
	var all []string
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		m.secrets = append(m.secrets, secret)
		m.forms = append(append(m.forms, secret, strings.ReplaceAll(secret, " ", "+")), recoded(secret)...)
		all = append(all, spellings(secret)...)
	}
	if m.secrets == nil {
		return nil
	}
	for _, form := range m.forms {
		m.longest = max(m.longest, len(form))
	}
	// At one place the first that fits wins: a secret that starts with another one is replaced whole.
	slices.SortStableFunc(all, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, spelling := range all {
		pairs = append(pairs, spelling, redacted.Mark)
	}
	m.text = strings.NewReplacer(pairs...)
	return m
}

// Text is text without the secrets, as they are or as they travel: quoted, in base64, percent-encoded however often.
func (m *Mask) Text(text string) string {
	if m == nil {
		return text
	}
	text = m.text.Replace(text)
	if !strings.Contains(text, "%") {
		return text
	}
	return cut(text, m.stretches(text, (*Mask).whole), 0, len(text))
}

// Target is a request's path and query without what [Mask.Text] takes out, without parts of the secrets, and without one
// that goes on from the path into the query.
func (m *Mask) Target(path, query string) (maskedPath, maskedQuery string) {
	if m == nil {
		return path, query
	}
	target := path
	if query != "" {
		target += "?" + query
	}
	hidden := m.stretches(target, (*Mask).parts)
	maskedPath = cut(target, hidden, 0, len(path))
	if query != "" {
		maskedQuery = cut(target, hidden, len(path)+1, len(target))
	}
	return maskedPath, maskedQuery
}

// stretch is a part of a target, by where it stands there.
type stretch struct{ from, to int }

// stretches are where find finds something in target, decoded as often as it can be, in order and apart.
func (m *Mask) stretches(target string, find func(*Mask, view) []stretch) (merged []stretch) {
	var found []stretch
	for base := 0; base < len(target); base += window {
		end := min(base+window+m.longest*encodedSize, len(target)) // what begins in a window goes on behind it
		for v, changed := (view{text: target[base:end]}), true; changed; v, changed = v.decoded() {
			for _, s := range find(m, v) {
				found = append(found, stretch{base + s.from, base + s.to})
			}
		}
	}
	slices.SortFunc(found, func(a, b stretch) int { return a.from - b.from })
	for _, s := range found {
		if last := len(merged) - 1; last >= 0 && s.from <= merged[last].to {
			merged[last].to = max(merged[last].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}

// whole is where a view holds a secret in one of its forms.
func (m *Mask) whole(v view) (found []stretch) {
	for _, form := range m.forms {
		for from := 0; ; from++ {
			at := strings.Index(v.text[from:], form)
			if at < 0 {
				break
			}
			from += at
			found = append(found, v.stretch(from, len(form)))
		}
	}
	return found
}

// parts is where a view holds a secret, or a part of one.
func (m *Mask) parts(v view) []stretch {
	found := m.whole(v)
	for _, secret := range m.secrets {
		size := min(max(partAtLeast, (len(secret)+2)/3), partAtMost)
		for from := 0; from+size <= len(v.text) && size < len(secret); from++ {
			if strings.Contains(secret, v.text[from:from+size]) {
				found = append(found, v.stretch(from, size))
			}
		}
	}
	return found
}

// view is a target as it reads after some decodings.
type view struct {
	text   string
	at     []int // where each byte, and the end, stand in the target; nil: where they stand in text
	layers int
}

func (v view) origin(i int) int {
	if v.at == nil {
		return i
	}
	return v.at[i]
}

func (v view) stretch(from, size int) stretch {
	return stretch{v.origin(from), v.origin(from + size)}
}

// decoded percent-decodes once more; changed is false when there was nothing to decode, or too much. What is no escape
// stays as it is.
func (v view) decoded() (next view, changed bool) {
	if v.layers == decodings || !strings.Contains(v.text, "%") {
		return v, false
	}
	var text strings.Builder
	at := make([]int, 0, len(v.text)+1)
	for i := 0; i < len(v.text); {
		at = append(at, v.origin(i))
		char, size := v.text[i], 1
		if char == '%' && i+3 <= len(v.text) {
			if code, err := strconv.ParseUint(v.text[i+1:i+3], 16, 8); err == nil {
				char, size, changed = byte(code), 3, true
			}
		}
		text.WriteByte(char)
		i += size
	}
	at = append(at, v.origin(len(v.text)))
	return view{text: text.String(), at: at, layers: v.layers + 1}, changed
}

// cut is target from one place to another, with a mark for each stretch that reaches into it.
func cut(target string, hidden []stretch, from, to int) string {
	var kept strings.Builder
	at := from
	for _, s := range hidden {
		if s.to <= from || s.from >= to {
			continue
		}
		kept.WriteString(target[at:max(at, s.from)] + redacted.Mark)
		at = min(s.to, to)
	}
	return kept.String() + target[at:to]
}
