package telemetry

import (
	"regexp"
	"strings"
	"sync"
)

// Redacted stands wherever a secret value stood.
const Redacted = "[REDACTED]"

// secretName is the end of what a parameter, header, field or variable that
// holds a credential is called.
const secretName = `(?:x-api-key|api[_-]?key|passw(?:or)?d|passphrase|secret|token|credentials?|auth_?key|access[_-]?key|private[_-]?key)`

// secretValue is what stands behind such a name and its separator: a string in
// quotes, which may be escaped themselves, or everything up to the next blank.
const secretValue = `(?:\\*"[^"]+|\\*'[^']+|[^\s"'&}\]]+)`

// secretShapes match what a secret looks like when nothing else says that it
// is one. Each keeps what stands in its first group. They are compiled when
// the first line is written: a process may live without a log.
var secretShapes = sync.OnceValue(func() []*regexp.Regexp {
	shapes := []string{
		// A PEM block that holds a private key, whole or cut (RFC 7468). Its body
		// may have dashes, in the headers of an encrypted one.
		`()(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\z)`,
		// A JSON Web Token (RFC 7519), any other compact JWS, or any JSON object in
		// base64, such as a JWK in a variable: they all start with an encoded brace.
		`()\b(?:ey[AJ]|ew[ko])[A-Za-z0-9_+/-]{5,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?`,
		`()\b(?:ey[AJ]|ew[ko])[A-Za-z0-9_+/-]{20,}={0,2}`,
		// PEM, or the DER of a private key (RFC 5958), in base64.
		`()\b(?:LS0tLS1CRUdJTi|MC4CAQAw|MII)[A-Za-z0-9_+/-]{30,}={0,2}`,
		// The private parts of a JSON Web Key (RFC 7517, RFC 8037, RFC 7518), quoted or escaped.
		`(\\*["'](?:d|k|p|q|dp|dq|qi)\\*["']\s*:\s*\\*["'])[A-Za-z0-9_-]{16,}`,
		// Keys that say what they are: ours, Standard Webhooks', and those of services that steps call.
		`()(?:kzn_|whsec_|whsk_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|sk_live_|rk_live_|AKIA)[A-Za-z0-9_+/=-]{12,}`,
		// Headers with credentials (RFC 9110, section 11.6.2; RFC 6265), as a line, in a map or in JSON.
		`(?i)(\b(?:proxy-)?authorization\\*["']?\s*[:=]\s*\[?)(?:\\*"[^"\r\n]+|\\*'[^'\r\n]+|[^\s"'\[\]][^\r\n\]]*)`,
		`(?i)(\b(?:set-)?cookie\\*["']?\s*[:=]\s*\[?\\*["']?)[^\s"'\]=]+=[^\r\n"'\]]*`,
		`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}`,
		// The password of a URL, up to the last @ of its authority, whatever is in it; what looks like a port is none.
		`(?i)([a-z][a-z0-9+.-]*://[^\s/:@"'\[]*:)(?:[^\s"'/@]*[^\s"'/@0-9][^\s"']*|[^\s"'/@]+)@`,
		// A token in place of a user's name.
		`(?i)([a-z][a-z0-9+.-]*://)[^\s/:@"']{16,}@`,
		// What is named for what it carries: a=b, "a": "b", A:b as Go prints a structure, and in prose where it is sure.
		`(?i)(` + secretName + `(?:\\*["']\s*[:=]\s*|\s*=\s*|:))` + secretValue,
		`(?i)((?:x-api-key|api[_-]?key|passw(?:or)?d|passphrase)\s*:\s+\[?)` + secretValue,
	}
	compiled := make([]*regexp.Regexp, len(shapes))
	for i, shape := range shapes {
		compiled[i] = regexp.MustCompile(shape)
	}
	return compiled
})

// Redact replaces whatever in text has the shape of a credential.
func Redact(text string) string {
	if len(text) < 6 {
		return text
	}
	for _, shape := range secretShapes() {
		text = shape.ReplaceAllStringFunc(text, func(match string) string {
			kept := shape.FindStringSubmatch(match)[1]
			if strings.HasSuffix(match, "@") {
				return kept + Redacted + "@"
			}
			return kept + Redacted
		})
	}
	return text
}

// secretNames are the parts of an attribute's name that make its value secret,
// without dashes and underscores.
var secretNames = []string{
	"password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "authkey", "privatekey",
	"authorization", "cookie", "credential",
}

// NamesSecret reports whether a header, parameter or attribute of this name
// carries a credential.
func NamesSecret(name string) bool {
	name = strings.NewReplacer("-", "", "_", "", ".", "").Replace(strings.ToLower(name))
	for _, part := range secretNames {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
