package proxy

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// Frameworks let a request override its method in a query parameter or a body field: Rails, Symfony, Laravel, Spring
// and Express's method-override by "_method", ASP.NET by the name of a header field. They do so for POST, and for the
// body types that they parse.

// overriddenMethods are the methods that may override POST.
var overriddenMethods = []string{"PUT", "PATCH", "DELETE", "GET"}

// isMethodName reports whether a lower-case parameter overrides the method. PHP replaces ".", " " and "[" in names by
// "_".
func isMethodName(name string) bool {
	switch name {
	case "_httpmethod", "x-http-method", "x-http-method-override", "x-method-override":
		return true
	}
	return len(name) == len("_method") && strings.IndexByte("_. [", name[0]) >= 0 && name[1:] == "method"
}

// longestMethodName is the length of the longest name that isMethodName accepts.
const longestMethodName = len("x-http-method-override")

// nameScanner searches a body in pieces for a name of isMethodName as a whole word. It does not parse the body as a
// framework would: the presence of the word is enough.
type nameScanner struct {
	escape  byte // '%' or '\\' inside an escaped character, otherwise 0
	pending []byte
	word    [longestMethodName + 1]byte
	length  int // of the word so far; a word that does not fit is not a name
	// multipart reports that a backslash only quotes the next character, and that "name*" is an encoded name (RFC 5987).
	multipart bool
}

// newNameScanner returns a scanner for the body of a request, or nil if no framework looks for a method in it. hidden
// reports that the body cannot be searched.
func newNameScanner(req *h1.Request) (scanner *nameScanner, hidden bool) {
	if !h1.EqualFold(req.Method, "post") || req.Framing == h1.NoBody {
		return nil, false
	}
	content := contentTypes(req.Fields)
	switch {
	case content == "" || strings.Contains(content, "form-urlencoded"): // Rack treats a body without a type as a form
		scanner = &nameScanner{escape: '%'}
	case strings.Contains(content, "json"):
		scanner = &nameScanner{escape: '\\'}
	case strings.Contains(content, "multipart"):
		scanner = &nameScanner{multipart: true}
	default:
		return nil, false
	}
	// It is unclear which escapes apply.
	hidden = strings.Contains(content, "form-urlencoded") && strings.Contains(content, "json")
	for _, charset := range []string{"utf-16", "utf16", "utf-32", "utf32", "utf-7", "utf7", "ucs"} {
		hidden = hidden || strings.Contains(content, charset)
	}
	for _, f := range req.Fields {
		hidden = hidden || h1.EqualFold(f.Name, "content-encoding") && !h1.EqualFold(f.Value, "identity")
	}
	return scanner, hidden
}

// contentTypes returns every content type of a request in lower case. If the field occurs twice, servers use either,
// and WSGI servers treat "_" in a field's name as "-".
func contentTypes(fields []h1.Field) string {
	var all []string
	for _, f := range fields {
		if len(f.Name) == len("content-type") &&
			strings.ReplaceAll(strings.ToLower(string(f.Name)), "_", "-") == "content-type" {
			all = append(all, strings.ToLower(string(f.Value)))
		}
	}
	return strings.Join(all, ",")
}

// finds reports whether a name ends in p.
func (s *nameScanner) finds(p []byte) bool {
	for _, c := range p {
		if s.multipart && c == '\\' {
			continue
		}
		if len(s.pending) == 0 && (c != s.escape || c == 0) {
			if s.take(c) {
				return true
			}
			continue
		}
		s.pending = append(s.pending, c)
		if char, whole := unescapeOne(s.pending); whole {
			s.pending = s.pending[:0]
			if s.take(char) {
				return true
			}
		}
	}
	return false
}

// unescapeOne decodes an escape once it is complete. It returns 0 for a character that occurs in no name.
func unescapeOne(escape []byte) (char byte, whole bool) {
	if escape[0] == '%' {
		if len(escape) < 3 {
			return 0, false
		}
		return hexByte(escape[1:]), true
	}
	switch {
	case len(escape) < 2 || escape[1] == 'u' && len(escape) < 6:
		return 0, false
	case escape[1] != 'u' || escape[2] != '0' || escape[3] != '0':
		return 0, true
	}
	return hexByte(escape[4:]), true
}

func hexByte(digits []byte) byte {
	var decoded [1]byte
	if _, err := hex.Decode(decoded[:], digits[:2]); err != nil {
		return 0
	}
	return decoded[0]
}

// take adds one character, and reports whether a name ends before it.
func (s *nameScanner) take(c byte) bool {
	if s.multipart && c == '*' && string(s.word[:min(s.length, len(s.word))]) == "name" {
		return true
	}
	if c = nameChars[c]; c != 0 {
		if s.length < len(s.word) {
			s.word[s.length] = c
		}
		s.length++
		return false
	}
	length := s.length
	s.length = 0
	if length < len("_method") || length > longestMethodName {
		return false
	}
	return isMethodName(string(s.word[:length]))
}

// nameChars are the characters of words, in lower case; 0 stands between words.
var nameChars = func() (chars [256]byte) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyz0123456789_-.[") {
		chars[c] = c
		if 'a' <= c && c <= 'z' {
			chars[c-'a'+'A'] = c
		}
	}
	return chars
}()

// searchedUnasked is the number of bytes of a body that are searched before the policy is asked whether an overridden
// method would matter. Four decisions take as long as searching about 10 KiB.
const searchedUnasked = 16 << 10

// scanned is the body of a request, searched for a method override.
type scanned struct {
	scanner  *nameScanner // nil if the search is unnecessary or finished
	deny     func() *refusal
	searched int  // bytes
	asked    bool // whether the policy was asked about other methods before one was found
}

// check returns why a piece of the body may not be sent.
func (s *scanned) check(p []byte) *refusal {
	if s.scanner == nil {
		return nil
	}
	if s.searched += len(p); s.searched > searchedUnasked && !s.asked {
		s.asked = true
		if s.deny() == nil {
			s.scanner = nil
			return nil
		}
	}
	if !s.scanner.finds(p) {
		return nil
	}
	s.scanner = nil // the policy has decided
	return s.deny()
}

// refusedBody is the refusal of a body of which a part was already sent.
type refusedBody struct{ *refusal }

// Error implements error.
func (r refusedBody) Error() string { return r.detail }

// scanBody starts the search of the body for a method override. If the body cannot be searched, it asks the policy at
// once.
func (x *exchange) scanBody() *refusal {
	if x.c.p.cfg.Authorizer == nil {
		return nil
	}
	scanner, hidden := newNameScanner(&x.c.req)
	if hidden {
		return x.deniedAsOther()
	}
	x.body.scanned = scanned{scanner: scanner}
	if scanner != nil {
		x.body.deny = x.deniedAsOther
	}
	return nil
}

// deniedAsOther asks the policy about every method that may override a POST. If all are allowed, the call's record
// keeps the decision about the POST.
func (x *exchange) deniedAsOther() *refusal {
	policy, allowed := x.call.Policy, x.call.Allowed
	for _, method := range overriddenMethods {
		if r := x.authorizeAs(method); r != nil {
			r.detail += "; the body of this POST may make the api treat it as " + method
			return r
		}
	}
	x.call.Policy, x.call.Allowed = policy, allowed
	return nil
}

// queryMethods returns the methods that the query names.
func queryMethods(query []byte) (methods []string) {
	text := string(bytes.TrimPrefix(query, []byte("?")))
	for parameter := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, _ := strings.Cut(parameter, "=")
		if isMethodName(strings.ToLower(strings.TrimLeft(decodedParameter(name), " "))) {
			methods = append(methods, strings.ToUpper(strings.TrimSpace(decodedParameter(value))))
		}
	}
	return methods
}
