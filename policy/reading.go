package policy

import "strings"

// Servers read one path in different ways. They decode it once, several times or not at all. To some an encoded slash or a
// backslash separates segments, to others it is part of one. Some drop path parameters, empty and dot segments, blanks,
// control characters, and what follows an encoded "?", "#", NUL or line break; frameworks take a suffix such as ".json" for a
// format. An operation is found by every one of these readings, since a guardrail must hold for the server that the call
// meets, whichever it is.

// reach is how much of a route can have been read. Bit i stands for its first i segments.
type reach uint64

// reading follows one route through every reading of a path.
type reading struct {
	route
	ended    bool     // a reading that ends before the path does has read all of the route
	accounts []string // what may stand for {account}
}

// reads reports whether path, in any spelling, may be read as the route, and which accounts it may name then.
func (r route) reads(path string) (accounts []string, ok bool) {
	whole := reading{route: r}
	at := reach(1)
	for segment := range strings.SplitSeq(strings.ToLower(path), "/") {
		if at = whole.segment(at, segment); at == 0 {
			break
		}
	}
	return whole.accounts, whole.ended || whole.complete(at)
}

func (r *reading) complete(at reach) bool { return at>>len(r.segments)&1 == 1 }

// segment goes on by what stands between two slashes, as often decoded as any server does.
func (r *reading) segment(at reach, raw string) (next reach) {
	for range maxDecodings + 1 {
		next |= r.literal(at, raw)
		split := at
		for piece := range strings.FieldsFuncSeq(raw, isSeparator) {
			split = r.piece(split, piece)
		}
		next |= split
		decoded := unescape(raw)
		if decoded == raw {
			break
		}
		raw = strings.ToLower(decoded)
	}
	return next
}

func isSeparator(c rune) bool { return c == '/' || c == '\\' }

// piece goes on by what has no separator in it, whole and up to where the path ends for some servers.
func (r *reading) piece(at reach, text string) (next reach) {
	next = r.parameters(at, text)
	if end := strings.IndexAny(text, "?#\x00\r\n"); end >= 0 {
		last := r.parameters(at, text[:end])
		r.ended = r.ended || r.complete(last)
		next |= last
	}
	return next
}

// parameters goes on by text with the path parameters in it and without them.
func (r *reading) parameters(at reach, text string) (next reach) {
	next = r.blanks(at, text)
	if name, _, ok := strings.Cut(text, ";"); ok {
		next |= r.blanks(at, name)
	}
	return next
}

// blanks goes on by text with the blanks and control characters in it and without them.
func (r *reading) blanks(at reach, text string) (next reach) {
	next = r.literal(at, text)
	bare := strings.TrimSpace(withoutControls(text))
	if bare != text {
		next |= r.literal(at, bare)
	}
	if bare == "" || bare == "." {
		next |= at
	}
	return next
}

// literal goes on by text as one segment, of which a format suffix may be left out at the end of the route.
func (r *reading) literal(at reach, text string) (next reach) {
	for i, want := range r.segments {
		if at>>i&1 == 0 {
			continue
		}
		texts := []string{text}
		if dot := strings.LastIndexByte(text, '.'); i == len(r.segments)-1 && dot > 0 {
			texts = append(texts, text[:dot])
		}
		for _, t := range texts {
			if t != "" && (want == "" || want == t) {
				next |= 1 << (i + 1)
				if i == r.account {
					r.accounts = append(r.accounts, t)
				}
			}
		}
	}
	return next
}
