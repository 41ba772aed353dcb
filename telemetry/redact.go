package telemetry

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	quotedValue = `(?:\\*"[^"]+|\\*'[^']+)`
	// secretValue matches the value after such a name and its separator: a string in quotes, which may themselves be
	// escaped, or everything up to the next space.
	secretValue = `(?:\\*"[^"]+|\\*'[^']+|[^\s"'&}\]]+)`
	// noPath matches the beginning of a name that is not the last element of a path.
	noPath = `(?:^|[^/\w.-])[\w.-]*`
	// fileErrors matches the reason why a file could not be used, which follows its name in an error.
	fileErrors = `(?:no such file|permission denied|is a directory|not a directory|file exists|no space left|` +
		`too many open files|operation not permitted|read-only file system|input/output error)\b`
)

// assignedNames and proseNames match the ends of credential names in a text.
var (
	assignedNames = anyOf(redacted.Assigned())
	proseNames    = anyOf(redacted.Prose())
	nameHints     = lastWords(append(redacted.Assigned(), redacted.Prose()...))
)

func anyOf(names []string) string {
	return `(?:` + strings.ReplaceAll(strings.Join(names, "|"), " ", "[_-]?") + `)`
}

func lastWords(names []string) (words []string) {
	for _, name := range names {
		words = append(words, name[strings.LastIndexByte(name, ' ')+1:])
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// A shape is a pattern by which a secret can be recognised without knowing it.
type shape struct {
	// hints are in lower case. Every match contains one of them, in any case, and searching for them is much
	// cheaper than matching.
	// A nil list stands for nameHints, and for a colon or an equals sign.
	hints   []string
	pattern string // the first group is kept
}

var shapes = []shape{
	// A PEM block with a private key, complete or truncated (RFC 7468). Its body may have dashes, in the headers of
	// an encrypted key.
	{[]string{"-----begin"},
		`()(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\z)`},
	// A JSON Web Token (RFC 7519), any other compact JWS, or any JSON object in
	// base64, such as a JWK in a variable: they all start with an encoded brace.
	{[]string{"eyj", "eya", "ewk",
		"ewo"}, `()\b(?:ey[AJ]|ew[ko])[A-Za-z0-9_+/-]{5,}(?:\.|%2[Ee])[A-Za-z0-9_-]*(?:(?:\.|%2[Ee])[A-Za-z0-9_-]*)?`},
	{[]string{"eyj", "eya", "ewk", "ewo"}, `()\b(?:ey[AJ]|ew[ko])[A-Za-z0-9_+/-]{20,}={0,2}`},
	// PEM, or the DER of a private key (RFC 5958), in base64.
	{[]string{"ls0tls1crudjti", "mc4caqaw", "mii"}, `()\b(?:LS0tLS1CRUdJTi|MC4CAQAw|MII)[A-Za-z0-9_+/-]{30,}={0,2}`},
	// The private parts of a JSON Web Key (RFC 7517, RFC 8037, RFC 7518), quoted or escaped.
	{[]string{`"`, "'"}, `(\\*["'](?:d|k|p|q|dp|dq|qi)\\*["']\s*:\s*\\*["'])[A-Za-z0-9_-]{16,}`},
	// Keys with a known prefix: ours, those of Standard Webhooks, and those of services that steps call.
	{
		[]string{"kizen_", "whsec_", "whsk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox",
			"k_live_", "akia"},
		`()(?:kizen_[0-9A-Za-z]{49}|(?:whsec_|whsk_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|sk_live_|rk_live_|AKIA)[A-Za-z0-9_+/=-]{12,})`,
	},
	// These keys, a token, and the text after a scheme, in base64; our keys also at any alignment, and in
	// hexadecimal.
	{[]string{"zxlk", "qmvhcmvyi", "qmfzawmg"}, `()\b(?:ZXlK|QmVhcmVyI|QmFzaWMg)[A-Za-z0-9_+/-]{20,}={0,2}`},
	{[]string{"a2l6zw5f", "tpemvux", "raxplbl"},
		`()[A-Za-z0-9_+/-]*(?:a2l6ZW5f|tpemVuX|raXplbl)[A-Za-z0-9_+/-]{60,}={0,2}`},
	{[]string{"6b697a656e5f"}, `(?i)()6b697a656e5f[0-9a-f]{98}`},
	// Headers with credentials (RFC 9110, section 11.6.2; RFC 6265), as a line, in a map or in JSON.
	{[]string{"authorization"},
		`(?i)(\b(?:proxy-)?authorization\\*["']?\s*[:=]\s*\[?)(?:\\*"[^"\r\n]+|\\*'[^'\r\n]+|[^\s"'\[\]][^\r\n\]]*)`},
	{[]string{"cookie"}, `(?i)(\b(?:set-)?cookie\\*["']?\s*[:=]\s*\[?\\*["']?)[^\s"'\]=]+=[^\r\n"'\]]*`},
	{[]string{"bearer", "basic"}, `(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}`},
	// The password of a URL, up to the last @ of its authority, with any content; digits that look like a port are
	// not a password.
	{[]string{"://"}, `(?i)([a-z][a-z0-9+.-]*://[^\s/:@"'\[]*:)(?:[^\s"'/@]*[^\s"'/@0-9][^\s"']*|[^\s"'/@]+)@`},
	// A token instead of a user name.
	{[]string{"://"}, `(?i)([a-z][a-z0-9+.-]*://)[^\s/:@"']{16,}@`},
	// Values with a credential's name: "a": "b", "a": b, a=b, and A:b as Go prints a structure. A name in quotes,
	// or before a number, must not be a path: an error says `"/run/token": no such file`, a compiler
	// `/src/token:12`.
	{nil, `(?i)(` + assignedNames + `\]?\\*["']\s*[:=]\s*)` + quotedValue},
	// The reason why a file with such a name cannot be used is not a value.
	{nil, `(?i)["'][^/"'\n]*["']:\s+` + fileErrors + `|(["'][^/"'\n]*` + assignedNames + `\]?\\*["']\s*[:=]\s*)` +
		secretValue},
	{nil, `(?i)(` + assignedNames + `\s*=\s*)` + secretValue},
	{nil, `(?i)(` + assignedNames + `:)(?:` + quotedValue + `|[0-9]*[^\s"'&}\]0-9:][^\s"'&}\]]*)`},
	{nil, `(?i)(` + noPath + assignedNames + `:)` + secretValue},
	// In prose, only by unambiguous names.
	{nil, `(?i)(` + noPath + proseNames + `\s*:\s+\[?)` + secretValue},
	// The same inside a URL, and the signature of a presigned URL.
	{[]string{"%3d", "%3a"}, `(?i)(` + assignedNames + `(?:%5C)*(?:%2[27])?(?:%3D|%3A))[^\s"'&]+`},
	{[]string{"sig="}, `(?i)([?&]sig=)[^\s"'&]+`},
}

// patterns are compiled when the first line is written, because a process may never log.
var patterns = sync.OnceValue(func() []*regexp.Regexp {
	compiled := make([]*regexp.Regexp, len(shapes))
	for i, shape := range shapes {
		compiled[i] = regexp.MustCompile(shape.pattern)
	}
	return compiled
})

// Redact replaces everything in text that looks like a credential.
func Redact(text string) string {
	lower := strings.ToLower(text)
	contains := func(hint string) bool { return strings.Contains(lower, hint) }
	named := strings.ContainsAny(text, ":=") && slices.ContainsFunc(nameHints, contains)
	for i, shape := range shapes {
		if shape.hints == nil && !named || shape.hints != nil && !slices.ContainsFunc(shape.hints, contains) {
			continue
		}
		pattern := patterns()[i]
		text = pattern.ReplaceAllStringFunc(text, func(match string) string {
			group := pattern.FindStringSubmatchIndex(match)
			if group[2] < 0 {
				return match // this shape protects the text
			}
			kept := match[group[2]:group[3]]
			if strings.HasSuffix(match, "@") {
				return kept + redacted.Mark + "@"
			}
			return kept + redacted.Mark
		})
	}
	return text
}
