package proxy

import (
	"regexp"
	"strings"
)

// locationAsIs is the field with which a client asks for the API's original Location. The kizen module does: it knows
// the API root, shows only the API's URLs, and sends requests below the root to the proxy. Every other client treats
// our address as the API's, and would follow the original Location past the proxy.
const locationAsIs = "x-kizen-location"

// localLocation translates the API's Location for the step. A target inside the API root becomes the same path on this
// proxy. A target elsewhere on the API's host becomes absolute, because the step would resolve a relative one against
// the proxy. A reference that already resolves correctly, and a target on another host, stay unchanged.
func (x *exchange) localLocation(value []byte) []byte {
	if len(value) == 0 || headerValue(x.c.req.Fields, locationAsIs) != nil {
		return value
	}
	p, reference := x.c.p, splitURL(string(value))
	target := splitURL(p.origin + string(x.appendTarget(nil))).resolve(reference)
	inside, ok := p.insideRoot(target)
	switch {
	case !ok && reference.scheme != "":
		return value
	case !ok:
		return []byte(target.String())
	}
	here := uri{scheme: "http:", authority: "//" + p.addr, path: p.base + string(x.path), query: string(x.query)}
	if host := x.c.req.Host; len(host) > 0 {
		here.authority = "//" + string(host)
	}
	local := uri{here.scheme, here.authority, p.base + inside, target.query, target.fragment}
	if local.path == "" {
		local.path = "/"
	}
	switch {
	case here.resolve(reference) == local:
		return value
	case reference.scheme+reference.authority == "" && !strings.HasPrefix(local.path, "//"):
		local.scheme, local.authority = "", ""
	}
	return []byte(local.String())
}

// insideRoot returns the part of a URL's path after the API root, unchanged.
func (p *Proxy) insideRoot(target uri) (rest string, ok bool) {
	if target.origin() != splitURL(p.origin).origin() {
		return "", false
	}
	rest, ok = strings.CutPrefix(target.path, p.prefix)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// uri is a URL or a relative reference, split into parts with their delimiters, so that concatenation restores the
// original. net/url cannot restore a URL byte for byte.
type uri struct{ scheme, authority, path, query, fragment string }

// urlParts is the expression of RFC 3986 appendix B.
var urlParts = regexp.MustCompile(`(?s)^([A-Za-z][A-Za-z0-9+.-]*:)?(//[^/?#]*)?([^?#]*)(\?[^#]*)?(#.*)?$`)

func splitURL(text string) uri {
	part := urlParts.FindStringSubmatch(text)
	return uri{part[1], part[2], part[3], part[4], part[5]}
}

func (u uri) String() string { return u.scheme + u.authority + u.path + u.query + u.fragment }

// origin returns scheme, host and port in a normal form.
func (u uri) origin() string {
	scheme, host := strings.ToLower(u.scheme), strings.ToLower(strings.TrimPrefix(u.authority, "//"))
	host = host[strings.LastIndexByte(host, '@')+1:]
	switch scheme {
	case "http:":
		host = strings.TrimSuffix(host, ":80")
	case "https:":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "//" + host
}

// resolve resolves reference against u (RFC 3986 section 5.2.2). It removes dot segments and keeps every other byte.
func (u uri) resolve(reference uri) uri {
	switch {
	case reference.scheme != "":
		return uri{reference.scheme, reference.authority, withoutDots(reference.path), reference.query, reference.fragment}
	case reference.authority != "":
		u.authority, u.path, u.query = reference.authority, reference.path, reference.query
	case reference.path == "" && reference.query == "":
	case reference.path == "":
		u.query = reference.query
	case reference.path[0] == '/':
		u.path, u.query = reference.path, reference.query
	default:
		directory := u.path[:strings.LastIndexByte(u.path, '/')+1]
		if directory == "" {
			directory = "/"
		}
		u.path, u.query = directory+reference.path, reference.query
	}
	u.path, u.fragment = withoutDots(u.path), reference.fragment
	return u
}

// withoutDots removes the segments "." and ".." (RFC 3986 section 5.2.4).
func withoutDots(path string) string {
	if !strings.HasPrefix(path, "/") || !strings.Contains(path, "/.") {
		return path
	}
	segments := strings.Split(path, "/")
	kept := segments[:1:1]
	for _, segment := range segments[1:] {
		switch segment {
		case ".":
		case "..":
			kept = kept[:max(1, len(kept)-1)]
		default:
			kept = append(kept, segment)
		}
	}
	if last := segments[len(segments)-1]; last == "." || last == ".." {
		kept = append(kept, "")
	}
	return strings.Join(kept, "/")
}
