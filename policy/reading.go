package policy

import "strings"

// Servers interpret one path in different ways. They decode it once, several times or not at all. For some, an encoded
// slash or a backslash separates segments; for others, it is part of a segment. Some drop path parameters, empty and
// dot segments, spaces, control characters, and everything after an encoded "?", "#", NUL or line break. Frameworks
// treat a suffix such as ".json" as a format. An operation matches a path under every one of these interpretations,
// because a guardrail must hold for every server.

// reach is a set of prefixes of a route: bit i is set if its first i segments have been matched.
type reach uint64

// reading matches one route against all interpretations of a path.
type reading struct {
	route
	ended    bool     // an interpretation that ends before the path has matched the whole route
	accounts []string // the possible values of {account}
}

// match reports whether path, in any spelling, can be interpreted as the route, and which accounts it may then name.
func (r route) match(path string) (accounts []string, ok bool) {
	whole := reading{route: r}
	at := reach(1)
	for segment := range strings.SplitSeq(foldCase(path), "/") {
		if at = whole.segment(at, segment); at == 0 {
			break
		}
	}
	return whole.accounts, whole.ended || whole.complete(at)
}

func (r *reading) complete(at reach) bool { return at>>len(r.segments)&1 == 1 }

// segment advances by the text between two slashes, decoded as often as any server does.
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
		raw = foldCase(decoded)
	}
	return next
}

func isSeparator(c rune) bool { return c == '/' || c == '\\' }

// piece advances by text without separators: the whole of it, and the part before the end of the path for some servers.
func (r *reading) piece(at reach, text string) (next reach) {
	next = r.parameters(at, text)
	if end := strings.IndexAny(text, "?#\x00\r\n"); end >= 0 {
		last := r.parameters(at, text[:end])
		r.ended = r.ended || r.complete(last)
		next |= last
	}
	return next
}

// parameters advances by text with and without its path parameters.
func (r *reading) parameters(at reach, text string) (next reach) {
	next = r.blanks(at, text)
	if name, _, ok := strings.Cut(text, ";"); ok {
		next |= r.blanks(at, name)
	}
	return next
}

// blanks advances by text with and without its spaces and control characters.
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

// literal advances by text as one segment. In the last segment of the route, it also tries the text without a format
// suffix.
func (r *reading) literal(at reach, text string) (next reach) {
	if r.rest && text != "" && r.complete(at) {
		next |= 1 << len(r.segments)
	}
	for i, want := range r.segments {
		if at>>i&1 == 0 {
			continue
		}
		texts := []string{text}
		if dot := strings.LastIndexByte(text, '.'); i == len(r.segments)-1 && dot > 0 {
			texts = append(texts, text[:dot], strings.TrimRight(text, "."))
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
