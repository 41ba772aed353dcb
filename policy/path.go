package policy

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"unicode"
)

// errPath is the error of a path on which policies cannot decide.
var errPath = errors.New("the path is ambiguous")

// maxDecodings is the maximal number of nested percent-encodings of a path.
const maxDecodings = 4

// Canonical returns the form of a call's path that policies use: percent-decoded, in lower case, without empty and dot
// segments, path parameters, query and trailing slash. It returns an error if servers may interpret the path
// differently: if it climbs with "..", has too many nested encodings, or contains a NUL or invalid UTF-8.
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

// isCanonical avoids a copy of an ordinary path.
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

// unescape decodes once, as the most tolerant server would: an invalid escape stays unchanged.
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

// foldCase returns text as a server sees it that ignores case as Unicode defines it: the long s is an s, and the
// Kelvin sign a k.
func foldCase(text string) string { return strings.ToLower(strings.ToUpper(text)) }

func clean(path string) (string, error) {
	if strings.ContainsAny(path, "\x00\uFFFD") {
		return "", errPath
	}
	var cleaned strings.Builder
	for segment := range strings.SplitSeq(foldCase(path), "/") {
		if end := strings.IndexAny(segment, ";?#"); end >= 0 {
			segment = segment[:end]
		}
		segment = strings.TrimFunc(segment, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
		switch withoutControls(segment) {
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

// spellings returns the canonical path and its other forms for servers that treat a backslash as a slash or remove
// control characters. Most paths have one spelling.
func spellings(canonical string) ([]string, error) {
	all := []string{canonical}
	if isCanonical(canonical) {
		return all, nil
	}
	slashes := strings.ReplaceAll(canonical, `\`, "/")
	for _, other := range []string{slashes, withoutControls(canonical), withoutControls(slashes)} {
		other, err := clean(other)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, other) {
			all = append(all, other)
		}
	}
	return all, nil
}

func withoutControls(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, text)
}
