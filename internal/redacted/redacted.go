// Package redacted contains what all redaction in this module shares: the mark that replaces secret values, and the
// names of the fields, parameters and variables that contain them. It has no dependencies, so every package may use
// it.
package redacted

import (
	"slices"
	"strings"
	"sync"
	"unicode"
)

// Mark replaces secret values.
const Mark = "[REDACTED]"

// A match defines how a listed name matches the name of a field or parameter.
type match uint8

const (
	never    match = iota
	anywhere       // anywhere in it, however its words are joined: "apiKey", "X-API-KEY", "my_api_key_2"
	word           // as a whole word: "auth_header", "userAuth"
	ending         // at the end of a word: "auth", "oauth"
)

// A secretName is a name of credentials, with the places where it applies.
type secretName struct {
	words     string // in lower case, separated by spaces
	field     match  // of a header, or of an attribute of the log
	parameter match  // of a query, whose short names are often credentials
	assigned  bool   // in a text, directly before "=" or ":": `TOKEN=x`, `"token": "x"`, `Token:x`
	prose     bool   // in a text, before a colon and a space: `password: x`, but `token: x` may be a message
}

// names is the only list of these names in Go. kizen_runtime/redact.py has a copy of the field column; a test compares
// them.
var names = []secretName{
	{"password", anywhere, anywhere, true, true},
	{"passwd", anywhere, anywhere, true, true},
	{"pwd", anywhere, anywhere, true, true},
	{"passphrase", anywhere, anywhere, true, true},
	{"passcode", anywhere, anywhere, false, false},
	{"secret", anywhere, anywhere, true, false},
	{"token", anywhere, anywhere, true, false},
	{"credential", anywhere, anywhere, true, false},
	{"credentials", anywhere, anywhere, true, false},
	{"api key", anywhere, anywhere, true, true},
	{"access key", anywhere, anywhere, true, false},
	{"auth key", anywhere, anywhere, true, false},
	{"private key", anywhere, anywhere, true, false},
	{"shared key", anywhere, anywhere, false, false},
	{"account key", anywhere, anywhere, false, false},
	{"functions key", anywhere, anywhere, false, false},
	{"encryption key", anywhere, anywhere, false, false},
	{"subscription key", anywhere, anywhere, false, false},
	{"authorization", anywhere, anywhere, false, false}, // in texts, patterns of telemetry match this and cookie
	{"cookie", anywhere, anywhere, false, false},
	{"bearer", anywhere, anywhere, false, false},
	{"signature", anywhere, anywhere, false, false},
	{"amz signature", never, never, true, false},
	{"client secret", never, never, false, true},
	{"access token", never, never, false, true},
	{"refresh token", never, never, false, true},
	{"auth token", never, never, false, true},
	{"bearer token", never, never, false, true},
	{"auth", word, ending, false, false},
	{"hmac", word, ending, false, false},
	{"jwt", word, ending, false, false},
	{"otp", word, ending, false, false},
	{"pass", word, ending, false, false},
	{"saml", word, ending, false, false},
	{"session", word, ending, false, false},
	{"sessionid", word, ending, false, false},
	{"sig", word, ending, false, false},
	{"code", never, ending, false, false},
	{"key", never, ending, false, false},
	{"nonce", never, ending, false, false},
	{"pin", never, ending, false, false},
	{"sid", never, ending, false, false},
}

// places are the last words of names that give the location of a credential, not its value: "token_file".
var places = []string{"file", "path", "dir"}

// joints removes the characters that join the words of a name.
var joints = strings.NewReplacer("-", "", "_", "", ".", "", " ", "")

// squeezedNames are the words of names without joints.
var squeezedNames = sync.OnceValue(func() (squeezed []string) {
	for _, n := range names {
		squeezed = append(squeezed, joints.Replace(n.words))
	}
	return squeezed
})

// Field reports whether a header or an attribute with this name contains a credential.
func Field(name string) bool {
	return carries(name, func(n secretName) match { return n.field })
}

// Parameter reports whether a query parameter with this decoded name contains a credential. It includes short names
// that are ambiguous elsewhere, because hiding a harmless value in the audit file is better than revealing a secret.
func Parameter(name string) bool {
	return carries(name, func(n secretName) match { return n.parameter })
}

func carries(name string, column func(secretName) match) bool {
	words := wordsOf(name)
	if len(words) == 0 || slices.Contains(places, words[len(words)-1]) {
		return false
	}
	squeezed := joints.Replace(strings.ToLower(name))
	for i, n := range names {
		found := false
		switch column(n) {
		case anywhere:
			found = strings.Contains(squeezed, squeezedNames()[i])
		case word:
			found = slices.Contains(words, n.words)
		case ending:
			found = slices.ContainsFunc(words, func(w string) bool {
				return strings.HasSuffix(strings.TrimRight(w, "0123456789"), n.words)
			})
		}
		if found {
			return true
		}
	}
	return false
}

// wordsOf returns the words of a name in lower case. Characters other than letters and digits separate words, and so
// does a capital after a small letter.
func wordsOf(name string) []string {
	var split strings.Builder
	last := ' '
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsNumber(r):
			split.WriteByte(' ')
		case unicode.IsUpper(r) && unicode.IsLower(last):
			split.WriteByte(' ')
			fallthrough
		default:
			split.WriteRune(unicode.ToLower(r))
		}
		last = r
	}
	return strings.Fields(split.String())
}

// Assigned returns the names whose values follow "=" or ":" in a text, in lower case, with words separated by spaces.
func Assigned() []string {
	return filter(func(n secretName) bool { return n.assigned })
}

// Prose returns the names whose values follow a colon and a space in a text, in the format of [Assigned].
func Prose() []string {
	return filter(func(n secretName) bool { return n.prose })
}

func filter(keep func(secretName) bool) (kept []string) {
	for _, n := range names {
		if keep(n) {
			kept = append(kept, n.words)
		}
	}
	return kept
}
