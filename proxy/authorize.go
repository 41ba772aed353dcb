package proxy

import (
	"bytes"
	"strings"
)

// authorize asks the policy about every call that the API could take this request for.
func (x *exchange) authorize() *refusal {
	x.call.Allowed = true
	authorizer := x.c.p.cfg.Authorizer
	if authorizer == nil {
		return nil
	}
	for _, method := range x.methods() {
		for _, path := range readings(x.path) {
			d := authorizer.Authorize(x.c.p.ctx, method, path)
			x.call.Policy, x.call.Allowed = d.Policy, d.Allowed
			if !d.Allowed {
				return &refusal{outcome: Denied, detail: d.Reason, code: d.Code, policy: d.Policy}
			}
		}
	}
	return nil
}

// readings are the canonical paths of a raw one: servers differ on whether an encoded slash separates segments, and
// on whether a path is decoded once or until nothing is left to decode, so policy must allow either.
func readings(raw []byte) []string {
	if len(raw) == 0 {
		return []string{"/"}
	}
	canonical, err := canonicalPath(raw)
	if err != nil {
		return nil // identify has refused it
	}
	if bytes.IndexByte(raw, '%') < 0 {
		return []string{string(canonical)}
	}
	var segments []string
	for segment := range bytes.SplitSeq(raw, []byte{'/'}) {
		decoded, err := unescape(segment)
		if err != nil || len(decoded) == 0 || string(decoded) == "." {
			continue
		}
		segments = append(segments, strings.ReplaceAll(string(decoded), "/", "%2F"))
	}
	once := "/" + strings.Join(segments, "/")
	if once == string(canonical) {
		return []string{once}
	}
	return []string{string(canonical), once}
}

// methods are the request's own and those that a framework may be talked into by an override.
func (x *exchange) methods() []string {
	methods := []string{x.call.Method}
	for _, f := range x.c.req.Fields {
		if requestFate(f.Name) == override {
			methods = append(methods, strings.ToUpper(string(f.Value)))
		}
	}
	query := strings.TrimPrefix(string(x.query), "?")
	for parameter := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, _ := strings.Cut(parameter, "=")
		switch strings.ToLower(name) {
		case "_method", "_httpmethod", "x-http-method-override":
			methods = append(methods, strings.ToUpper(value))
		}
	}
	return methods
}
