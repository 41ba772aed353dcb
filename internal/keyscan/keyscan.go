// Package keyscan finds a key in bytes: plain, in base64 or base64url at any alignment, in hexadecimal,
// percent-encoded, or in UTF-16.
//
// A [Scanner] searches for the last characters of the key, which in a signed key are its signature, in pieces: if an
// encoder wraps lines, or a sender splits the key once, other pieces stay intact. Scanning takes one load and one
// table look-up for every few bytes, so a proxy can scan all traffic.
package keyscan

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
)

const (
	// MinKey is the minimum length of a key. A shorter one cannot be distinguished from other text, so it is not
	// searched for.
	MinKey = 16
	// MaxForm is the length of the longest form of a piece, in bytes.
	MaxForm = 3 * pieceSize
	// MinPending is the minimum length of a form's beginning that [Scanner.Pending] reports.
	MinPending = 8

	// pieceSize is a multiple of 3, so that neighbouring pieces also meet in base64. It holds 126 bits of base64url.
	pieceSize = 21
	maxPieces = 4
	block     = 8 // bytes per look-up
	slots     = 1 << 11
)

// Scanner finds one key. A nil Scanner finds nothing. It is safe for concurrent use.
type Scanner struct {
	forms  [][]byte
	stride int             // every form contains a block at a multiple of it
	seen   [1 << 10]uint64 // a bit for every block, by its hash: this excludes nearly all other bytes
	table  [slots]uint16   // blocks by their hash, open addressing; 1 + an index of blocks, or 0 if empty
	blocks []position
	first  [256][]uint16 // forms by their first byte
	names  [][]byte      // the pieces in lower case
	masked string        // the replacement of a form
}

// position is the position of a block: its form, and its offset in the form.
type position struct{ form, offset uint16 }

// New returns a scanner for key, or nil if key is shorter than [MinKey].
func New(key string) *Scanner {
	if len(key) < MinKey {
		return nil
	}
	s := &Scanner{masked: strings.Repeat("*", MaxForm)}
	size := min(pieceSize, len(key))
	for end := len(key); end >= size && end > len(key)-maxPieces*size; end -= size {
		s.forms = append(s.forms, formsOf(key[end-size:end])...)
		s.names = append(s.names, []byte(strings.ToLower(key[end-size:end])))
	}
	shortest := len(s.forms[0])
	for i, form := range s.forms {
		shortest = min(shortest, len(form))
		s.first[form[0]] = append(s.first[form[0]], uint16(i))
	}
	s.stride = shortest - block + 1
	for i, form := range s.forms {
		for offset := range s.stride {
			s.blocks = append(s.blocks, position{uint16(i), uint16(offset)})
			h := hash(form[offset:])
			s.seen[h>>54] |= 1 << (h >> 48 & 63)
			at := h % slots
			for s.table[at] != 0 {
				at = (at + 1) % slots
			}
			s.table[at] = uint16(len(s.blocks))
		}
	}
	return s
}

// formsOf returns the encodings of a piece of a key.
func formsOf(piece string) [][]byte {
	hexadecimal := hex.EncodeToString([]byte(piece))
	var percent, wide strings.Builder
	for i := range len(piece) {
		percent.WriteString("%" + hexadecimal[2*i:2*i+2])
		wide.WriteString("\x00" + piece[i:i+1])
	}
	// Without its first byte, UTF-16 is the same in both byte orders.
	forms := [][]byte{[]byte(piece), []byte(wide.String()[1:])}
	for _, text := range []string{hexadecimal, percent.String()} {
		forms = append(forms, []byte(text))
		if upper := strings.ToUpper(text); upper != text {
			forms = append(forms, []byte(upper))
		}
	}
	for shift := range 3 {
		padded := []byte(strings.Repeat("\x00", shift) + piece)
		var plain []byte
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			// Only the characters that do not depend on the bytes around the piece.
			form := []byte(encoding.EncodeToString(padded)[(shift*8+5)/6 : len(padded)*8/6])
			if !bytes.Equal(form, plain) {
				forms = append(forms, form)
			}
			plain = form
		}
	}
	return forms
}

// hash returns the hash of a block, with well distributed upper and lower bits.
func hash(data []byte) uint64 {
	h := binary.LittleEndian.Uint64(data) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// Contains reports whether data contains a piece of the key in one of its forms.
func (s *Scanner) Contains(data []byte) bool {
	from, _ := s.find(data, 0)
	return from >= 0
}

// ContainsName is [Scanner.Contains] for the name of a field. It ignores case, because servers change it, and half of
// a key's characters would still be revealed.
func (s *Scanner) ContainsName(name []byte) bool {
	if s == nil || len(name) < MinKey {
		return false
	}
	lower := bytes.ToLower(name)
	return s.Contains(name) || slices.ContainsFunc(s.names,
		func(piece []byte) bool { return bytes.Contains(lower, piece) })
}

// Mask overwrites every piece of the key in data with asterisks, without changing any length.
func (s *Scanner) Mask(data []byte) {
	for at := 0; ; {
		from, size := s.find(data, at)
		if from < 0 {
			return
		}
		copy(data[from:from+size], s.masked)
		at = from + size
	}
}

// find returns the offset and length of the first form at or after an offset, or a negative offset.
func (s *Scanner) find(data []byte, from int) (at, size int) {
	if s == nil {
		return -1, 0
	}
	for i := from; i+block <= len(data); i += s.stride {
		h := hash(data[i:])
		if s.seen[h>>54]&(1<<(h>>48&63)) == 0 {
			continue
		}
		for at := h % slots; s.table[at] != 0; at = (at + 1) % slots {
			p := s.blocks[s.table[at]-1]
			form, begin := s.forms[p.form], i-int(p.offset)
			if begin >= from && begin+len(form) <= len(data) && bytes.Equal(data[begin:begin+len(form)], form) {
				return begin, len(form)
			}
		}
	}
	return -1, 0
}

// Pending returns how many bytes at the end of data are the beginning of a form whose rest has not arrived, or 0 if
// they are fewer than [MinPending].
func (s *Scanner) Pending(data []byte) int {
	if s == nil {
		return 0
	}
	for tail := data[max(0, len(data)-MaxForm+1):]; len(tail) >= MinPending; tail = tail[1:] {
		for _, i := range s.first[tail[0]] {
			if form := s.forms[i]; len(tail) < len(form) && bytes.HasPrefix(form, tail) {
				return len(tail)
			}
		}
	}
	return 0
}
