package proxy

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
)

// The API could interpret one request as several calls. authorize asks the policy about each of them.
func (x *exchange) authorize() *refusal {
	x.call.Allowed = true
	if x.c.p.cfg.Authorizer == nil {
		return nil
	}
	for _, method := range x.methods() {
		if r := x.authorizeAs(method); r != nil {
			return r
		}
	}
	return x.scanBody()
}

// authorizeAs asks the policy about the request with the given method.
func (x *exchange) authorizeAs(method string) *refusal {
	for _, path := range readings(x.path) {
		d := x.c.p.cfg.Authorizer.Authorize(x.c.p.ctx, method, path)
		x.call.Policy, x.call.Allowed = d.Policy, d.Allowed
		if !d.Allowed {
			return &refusal{outcome: Denied, detail: d.Reason, code: d.Code, policy: d.Policy}
		}
	}
	return nil
}

// readings returns the canonical paths of a raw path. Servers differ on whether an encoded slash or a backslash
// separates segments, and on whether they decode a path once or completely, so policy must allow each reading.
func readings(raw []byte) []string {
	if len(raw) == 0 {
		return []string{"/"}
	}
	canonical, err := canonicalPath(raw)
	if err != nil {
		return nil // identify has refused it
	}
	all := []string{string(canonical)}
	add := func(path string) {
		if !slices.Contains(all, path) {
			all = append(all, path)
		}
	}
	if !bytes.Equal(raw, canonical) {
		add(string(raw)) // policy matches operations against the raw path
	}
	if bytes.IndexByte(raw, '%') >= 0 {
		add(decodedOnce(raw))
	}
	folded := foldLookalikes(canonical)
	if bytes.IndexByte(folded, '\\') >= 0 {
		folded = bytes.ReplaceAll(folded, []byte{'\\'}, []byte{'/'})
	}
	if !bytes.Equal(folded, canonical) {
		add(string(clean(folded)))
	}
	return all
}

// decodedOnce returns a path whose encoded slashes stay within their segments.
func decodedOnce(raw []byte) string {
	var segments []string
	for segment := range bytes.SplitSeq(raw, []byte{'/'}) {
		decoded, err := unescape(segment)
		if err != nil || len(decoded) == 0 || string(decoded) == "." {
			continue
		}
		segments = append(segments, strings.ReplaceAll(string(decoded), "/", "%2F"))
	}
	return "/" + strings.Join(segments, "/")
}

// methods returns the request's own method, and the methods with which a framework may override it.
func (x *exchange) methods() []string {
	methods := []string{x.call.Method}
	for _, f := range x.c.req.Fields {
		if requestAction(f.Name) == override {
			methods = append(methods, strings.ToUpper(string(f.Value)))
		}
	}
	return append(methods, queryMethods(x.query)...)
}

func decodedParameter(s string) string {
	if decoded, err := url.QueryUnescape(s); err == nil {
		return decoded
	}
	return s
}
