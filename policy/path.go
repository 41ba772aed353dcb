package policy

import (
	"encoding/hex"
	"errors"
	"strings"
)

// errPath is why a path cannot be decided on.
var errPath = errors.New("the path has no single reading")

// maxDecodings is how often a path may be percent-encoded upon itself.
const maxDecodings = 4

// Canonical returns the one spelling of a call's path that policies are decided on: percent-decoded, in lower case, without
// empty and dot segments, path parameters, query, and slash at the end. A path that servers may read differently, because it
// climbs with "..", is encoded upon itself too often, or holds control characters or a backslash, is an error.
func Canonical(path string) (string, error) {
	if isCanonical(path) {
		return path, nil
	}
	for range maxDecodings {
		decoded := unescape(path)
		if decoded == path {
			return clean(path)
		}
		path = decoded
	}
	return "", errPath
}

// isCanonical spares the usual path a copy.
func isCanonical(path string) bool {
	if path == "/" {
		return true
	}
	previous := byte('x')
	for i := range len(path) {
		c := path[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == ':', c == '!', c == '@', c == ',':
		case c == '.' && previous != '/':
		case c == '/' && previous != '/':
		default:
			return false
		}
		previous = c
	}
	return path != "" && path[0] == '/' && previous != '/'
}

// unescape decodes once, as the most tolerant server would: what is no encoding stays as it is.
func unescape(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			var b [1]byte
			if _, err := hex.Decode(b[:], []byte(path[i+1:i+3])); err == nil {
				decoded = append(decoded, b[0])
				i += 2
				continue
			}
		}
		decoded = append(decoded, path[i])
	}
	return string(decoded)
}

func clean(path string) (string, error) {
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == '\uFFFD' }) {
		return "", errPath
	}
	var cleaned strings.Builder
	for segment := range strings.SplitSeq(strings.ToLower(path), "/") {
		if end := strings.IndexAny(segment, ";?#"); end >= 0 {
			segment = segment[:end]
		}
		segment = strings.TrimSpace(segment)
		switch segment {
		case "", ".":
			continue
		case "..":
			return "", errPath
		}
		cleaned.WriteString("/" + segment)
	}
	if cleaned.Len() == 0 {
		return "/", nil
	}
	return cleaned.String(), nil
}
