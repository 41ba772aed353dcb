package proxy

import (
	"bytes"
	"errors"
)

var (
	errTraversal = errors.New("path leaves the API root")
	errEscape    = errors.New("path has a malformed percent-encoding")
	errAuthority = errors.New("path begins with \"//\", which names a host")
)

// maxDecodings is the maximal number of nested percent-encodings of a path.
const maxDecodings = 4

// canonicalPath returns the path on which policy decides: percent-decoded, without empty and dot segments, without path
// parameters. A path that some server could interpret as leaving its root is an error, in every spelling. If nothing
// changes, the result is raw itself.
func canonicalPath(raw []byte) ([]byte, error) {
	if len(raw) >= 2 && isSlash(raw[0]) && isSlash(raw[1]) {
		return nil, errAuthority
	}
	if isPlain(raw) {
		return raw, nil
	}
	path := raw
	for range maxDecodings {
		if leavesRoot(path) {
			return nil, errTraversal
		}
		decoded, err := unescape(path)
		if err != nil && &path[0] == &raw[0] {
			return nil, err
		}
		if err != nil || len(decoded) == len(path) {
			return clean(path), nil
		}
		path = decoded
	}
	return nil, errTraversal
}

// isPlain reports whether a path has only one interpretation: letters, digits and a few marks between single slashes.
func isPlain(path []byte) bool {
	previous := byte(0)
	for _, c := range path {
		switch {
		case c == '%' || c == '\\' || c == ';' || c <= ' ' || c >= 0x7f:
			return false
		case (c == '/' || c == '.') && previous == '/':
			return false
		}
		previous = c
	}
	return len(path) == 1 || previous != '/'
}

// leavesRoot looks for a ".." segment as the most tolerant server would see it: between slashes of either kind, with
// path parameters, with spaces and control characters, in overlong or compatibility forms of UTF-8.
func leavesRoot(path []byte) bool {
	path = foldLookalikes(path)
	for len(path) > 0 {
		end := bytes.IndexAny(path, `/\`)
		segment := path
		if end >= 0 {
			segment, path = path[:end], path[end+1:]
		} else {
			path = nil
		}
		if isDotDot(segment) {
			return true
		}
	}
	return false
}

func isDotDot(segment []byte) bool {
	dots := 0
	for _, c := range segment {
		switch {
		case c == '.':
			dots++
		case c == ';':
			return dots == 2
		case c > ' ' && c != 0x7f:
			return false
		}
	}
	return dots == 2
}

// lookalikes are byte sequences that lax decoders or Unicode normalisation turn into the character.
var lookalikes = []struct {
	bytes string
	char  string
}{
	{"\xc0\xae", "."}, {"\xe0\x80\xae", "."}, {"\xf0\x80\x80\xae", "."}, {"\uff0e", "."}, {"\u2024", "."},
	{"\u2025", ".."}, {"\ufe52", "."},
	{"\xc0\xaf", "/"}, {"\xe0\x80\xaf", "/"}, {"\xf0\x80\x80\xaf", "/"}, {"\uff0f", "/"}, {"\u2044", "/"}, {"\u2215", "/"},
	{"\xc1\x9c", `\`}, {"\xe0\x81\x9c", `\`}, {"\uff3c", `\`}, {"\ufe68", `\`},
}

func foldLookalikes(path []byte) []byte {
	for _, c := range path {
		if c >= 0x80 {
			for _, l := range lookalikes {
				path = bytes.ReplaceAll(path, []byte(l.bytes), []byte(l.char))
			}
			break
		}
	}
	return path
}

// unescape decodes once.
func unescape(path []byte) ([]byte, error) {
	if bytes.IndexByte(path, '%') < 0 {
		return path, nil
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			decoded = append(decoded, path[i])
			continue
		}
		if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
			return nil, errEscape
		}
		decoded = append(decoded, fromHex(path[i+1])<<4|fromHex(path[i+2]))
		i += 2
	}
	return decoded, nil
}

// clean drops empty and "." segments, path parameters and the trailing slash.
func clean(path []byte) []byte {
	cleaned := make([]byte, 0, len(path)+1)
	for segment := range bytes.SplitSeq(path, []byte{'/'}) {
		segment, _, _ = bytes.Cut(segment, []byte{';'})
		if len(segment) == 0 || len(segment) == 1 && segment[0] == '.' {
			continue
		}
		cleaned = append(append(cleaned, '/'), segment...)
	}
	if len(cleaned) == 0 {
		return []byte{'/'}
	}
	return cleaned
}

func isSlash(c byte) bool { return c == '/' || c == '\\' }

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func fromHex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
