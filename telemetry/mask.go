package telemetry

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// A Mask follows the same rules as kizen_runtime/redact.py: the cases in testdata/redaction.json test both.

const (
	// wholeWordBelow is the length in characters below which a value is replaced only as a whole word.
	wholeWordBelow = 4
	// recodedAtLeast is the length, in bytes, from which a secret can be distinguished from other text in an encoded
	// form.
	recodedAtLeast = 6
	// recodedSize is the nominal size of an encoded form in a zone: an encoded form is never part of an identifier.
	recodedSize = 1 << 20
	// A third of a secret, within these limits, counts as a part of it in a call's target.
	partAtLeast, partAtMost = 8, 32
	// window is how much text is decoded at once: a decoded byte needs nine times its size.
	window = 64 << 10
)

// A form is an encoding of a secret to search for.
type form struct {
	text  string
	size  int  // in characters
	named bool // looks like a name: only letters and word separators
}

// formsOf returns the forms of a secret: plain, as an HTML form sends it, in upper and lower case, in hexadecimal, and
// the characters that the base64 of any text containing it must have, at each alignment.
func formsOf(secret string) []form {
	exact := []string{secret, strings.ReplaceAll(secret, " ", "+")}
	var recoded []string
	if len(secret) >= recodedAtLeast {
		exact = append(exact, strings.ToUpper(secret), strings.ToLower(secret))
		hexadecimal := hex.EncodeToString([]byte(secret))
		recoded = append(recoded, hexadecimal, strings.ToUpper(hexadecimal))
		for shift := range 3 {
			padded := strings.Repeat("\x00", shift) + secret
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				recoded = append(recoded, encoding.EncodeToString([]byte(padded))[(shift*8+5)/6:len(padded)*8/6])
			}
		}
	}
	named := strings.IndexFunc(secret, func(r rune) bool {
		return !unicode.IsLetter(r) &&
			!strings.ContainsRune("-_. ", r)
	}) < 0
	var forms []form
	for _, text := range exact {
		forms = append(forms, form{text, utf8.RuneCountInString(text), named})
	}
	for _, text := range recoded {
		forms = append(forms, form{text, recodedSize, false})
	}
	return forms
}

// Mask replaces known secrets in text. A nil Mask replaces nothing.
type Mask struct {
	secrets []string
	forms   map[string]form
	begin   [1 << 10]uint64 // a set of the first two bytes of the forms, which excludes most positions in a text
	// of the forms, in bytes, by first two bytes; a form of one byte is under all pairs that begin with it
	lengths map[uint16][]int
	longest int // of the forms, in bytes
	pieces  func() map[int]map[string]bool
}

// NewMask returns a mask of secrets, or nil without secrets.
func NewMask(secrets ...string) *Mask {
	m := &Mask{forms: map[string]form{}, lengths: map[uint16][]int{}}
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		m.secrets = append(m.secrets, secret)
		for _, f := range formsOf(secret) {
			m.add(f)
		}
	}
	if m.secrets == nil {
		return nil
	}
	m.pieces = sync.OnceValue(func() map[int]map[string]bool { return piecesOf(m.secrets) })
	return m
}

func (m *Mask) add(f form) {
	if _, known := m.forms[f.text]; known {
		return
	}
	m.forms[f.text] = f
	m.longest = max(m.longest, len(f.text))
	first := firstBytes(f.text, 0)
	last := first
	if len(f.text) == 1 {
		last |= 0xff
	}
	for at := int(first); at <= int(last); at++ {
		m.begin[at>>6] |= 1 << (at & 63)
		if lengths := m.lengths[uint16(at)]; !slices.Contains(lengths, len(f.text)) {
			m.lengths[uint16(at)] = append(lengths, len(f.text))
		}
	}
}

// firstBytes returns two bytes of a text, padded with a zero at its end.
func firstBytes(text string, at int) uint16 {
	first := uint16(text[at]) << 8
	if at+1 < len(text) {
		first |= uint16(text[at+1])
	}
	return first
}

// Text returns text without the secrets, whether plain, quoted, in base64, or percent-encoded repeatedly. A value of
// fewer than four characters is replaced only as a whole word. Identifiers, line numbers, field names and the syntax of
// URLs and JSON stay unchanged.
func (m *Mask) Text(text string) string {
	return m.text(text)
}

// Name redacts the name of a field as Text would redact it in JSON.
func (m *Mask) Name(name string) string {
	return m.text(name, zone{0, len(name), identifying, true})
}

func (m *Mask) text(text string, known ...zone) string {
	if m == nil {
		return text
	}
	s := structure{text: text, kinds: [][]zone{known}}
	found := m.stretches(&s, (*Mask).whole)
	if len(found) == 0 {
		return text
	}
	return cut(text, s.inJSON(found), 0, len(text))
}

// Target returns a request's path and query without everything that [Mask.Text] replaces, without parts of the secrets,
// and without a secret that extends from the path into the query.
func (m *Mask) Target(path, query string) (maskedPath, maskedQuery string) {
	if m == nil {
		return path, query
	}
	target := path
	if query != "" {
		target += "?" + query
	}
	hidden := m.stretches(&structure{text: target}, (*Mask).parts)
	maskedPath = cut(target, hidden, 0, len(path))
	if query != "" {
		maskedQuery = cut(target, hidden, len(path)+1, len(target))
	}
	return maskedPath, maskedQuery
}

// stretch is a range of bytes in a text.
type stretch struct {
	from, to int
	quoted   bool // a bare JSON value, whose replacement becomes a string
}

// found is an occurrence of a form in a view.
type found struct {
	form
	from int
}

// stretches returns the ranges in which find finds something, in the text and in all its decodings. They are sorted and
// disjoint.
func (m *Mask) stretches(s *structure, find func(*Mask, view) []found) []stretch {
	var all []stretch
	for base := 0; base < len(s.text); base += window {
		end := min(base+window+m.longest*encodedSize, len(s.text)) // a match may extend beyond the window
		var here []stretch
		for _, v := range viewsOf(s.text[base:end]) {
			for _, f := range find(m, v) {
				at := stretch{from: base + v.origin(f.from), to: base + v.origin(f.from+len(f.text))}
				if s.isSecret(at, f.form) {
					here = append(here, at)
				}
			}
		}
		all = append(all, merged(here)...)
	}
	all = merged(all)
	for i := range all {
		all[i] = s.widened(all[i])
	}
	return merged(all)
}

// merged sorts stretches and joins those that overlap or touch.
func merged(stretches []stretch) []stretch {
	slices.SortFunc(stretches, func(a, b stretch) int { return a.from - b.from })
	apart := stretches[:0]
	for _, s := range stretches {
		if last := len(apart) - 1; last >= 0 && s.from <= apart[last].to {
			apart[last].to = max(apart[last].to, s.to)
			apart[last].quoted = apart[last].quoted || s.quoted
		} else {
			apart = append(apart, s)
		}
	}
	return apart
}

// whole returns where a view contains a secret in one of its forms.
func (m *Mask) whole(v view) (all []found) {
	for at := range len(v.text) {
		first := firstBytes(v.text, at)
		if m.begin[first>>6]&(1<<(first&63)) == 0 {
			continue
		}
		for _, length := range m.lengths[first] {
			if at+length > len(v.text) {
				continue
			}
			if f, ok := m.forms[v.text[at:at+length]]; ok {
				all = append(all, found{f, at})
			}
		}
	}
	return all
}

// parts returns where a view contains a secret or a part of one.
func (m *Mask) parts(v view) []found {
	all := m.whole(v)
	for size, pieces := range m.pieces() {
		for from := 0; from+size <= len(v.text); from++ {
			if piece := v.text[from : from+size]; pieces[piece] {
				all = append(all, found{form{piece, recodedSize, false}, from})
			}
		}
	}
	return all
}

// piecesOf returns the parts of secrets that are long enough to recognise, by length.
func piecesOf(secrets []string) map[int]map[string]bool {
	pieces := map[int]map[string]bool{}
	for _, secret := range secrets {
		size := min(max(partAtLeast, (len(secret)+2)/3), partAtMost)
		if size >= len(secret) {
			continue
		}
		if pieces[size] == nil {
			pieces[size] = map[string]bool{}
		}
		for from := range len(secret) - size + 1 {
			pieces[size][secret[from:from+size]] = true
		}
	}
	return pieces
}

// cut returns text from one offset to another, with a mark for each stretch that overlaps it.
func cut(text string, hidden []stretch, from, to int) string {
	var kept strings.Builder
	at := from
	for _, s := range hidden {
		if s.to <= from || s.from >= to {
			continue
		}
		mark := redacted.Mark
		if s.quoted {
			mark = `"` + mark + `"`
		}
		kept.WriteString(text[at:max(at, s.from)] + mark)
		at = min(s.to, to)
	}
	return kept.String() + text[at:to]
}
