// Package redacted has what every redaction of this module shares: the mark that stands for a secret value, and the names
// of the fields, parameters and variables that carry one. It depends on nothing, so that every package may use it.
package redacted

import (
	"slices"
	"strings"
	"unicode"
)

// Mark stands wherever a secret value stood.
const Mark = "[REDACTED]"

// A match is how a name of the list is found in the name of a field or parameter.
type match uint8

const (
	never    match = iota
	anywhere       // in it, however its words are joined: "apiKey", "X-API-KEY", "my_api_key_2"
	word           // as a word of it: "auth_header", "userAuth"
	ending         // at the end of a word of it: "auth", "oauth"
)

// A secretName is a name that a credential goes by, and where.
type secretName struct {
	words     string // lower case, apart by blanks
	field     match  // of a header, or of an attribute of the log
	parameter match  // of a query, whose short names are often credentials
	assigned  bool   // in a text, directly before "=" or ":": `TOKEN=x`, `"token": "x"`, `Token:x`
	prose     bool   // in a text, before a colon and a blank: `password: x`, where `token: x` may well be a message
}

// names is the only list of its kind. kizen_runtime/redact.py has its column of fields; a test compares them.
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
	{"authorization", anywhere, anywhere, false, false}, // the forms of this and the next in a text are of several words
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

// places are the last words of names that say where a credential is, and not what it is: "token_file".
var places = []string{"file", "path", "dir"}

// Field reports whether a header or an attribute of this name carries a credential.
func Field(name string) bool {
	return carries(name, func(n secretName) match { return n.field })
}

// Parameter reports whether a parameter of a query with this name, decoded, carries a credential. Short names that mean
// something else elsewhere count here, because what they hide in an audit is missed less than what they might tell.
func Parameter(name string) bool {
	return carries(name, func(n secretName) match { return n.parameter })
}

func carries(name string, column func(secretName) match) bool {
	words := wordsOf(name)
	if len(words) == 0 || slices.Contains(places, words[len(words)-1]) {
		return false
	}
	squeezed := strings.NewReplacer("-", "", "_", "", ".", "", " ", "").Replace(strings.ToLower(name))
	return slices.ContainsFunc(names, func(n secretName) bool {
		switch column(n) {
		case anywhere:
			return strings.Contains(squeezed, strings.ReplaceAll(n.words, " ", ""))
		case word:
			return slices.Contains(words, n.words)
		case ending:
			return slices.ContainsFunc(words, func(w string) bool { return strings.HasSuffix(strings.TrimRight(w, "0123456789"), n.words) })
		}
		return false
	})
}

// wordsOf are the words of a name in lower case: what is apart by anything but letters and digits, or begins with a
// capital behind a small letter.
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

// Assigned are the names whose values follow "=" or ":" in a text, in lower case, their words apart by blanks.
func Assigned() []string {
	return filter(func(n secretName) bool { return n.assigned })
}

// Prose are the names whose values follow a colon and a blank in a text, as [Assigned] has them.
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
