// Package hosts decides which Host headers an HTTP listener accepts. A web page that makes its own name resolve to
// this machine (DNS rebinding) can only send requests under that name, so it cannot reach a listener that accepts only
// its own names and IP addresses.
package hosts

import (
	"net"
	"net/http"
	"strings"
)

// Names are the host names that a listener accepts, besides "localhost" and every IP address. The zero value has no
// further names. Comparison ignores case (RFC 9110, section 4.2.3).
type Names struct{ known map[string]bool }

// New returns the set of names. A name that begins with "*." matches every name with one label in its place, as in a
// certificate (RFC 6125, section 6.4.3).
func New(names ...string) Names {
	known := map[string]bool{}
	for _, name := range names {
		known[strings.ToLower(name)] = true
	}
	return Names{known}
}

// Allow reports whether a Host header, with or without a port, is one of the names.
func (n Names) Allow(host string) bool {
	name := strings.ToLower(withoutPort(host))
	if name == "localhost" || net.ParseIP(name) != nil || n.known[name] {
		return true
	}
	_, parent, found := strings.Cut(name, ".")
	return found && n.known["*."+parent]
}

// Require passes on requests whose Host header is one of the names, and answers all other requests with 421 (RFC 9110,
// section 15.5.20).
func (n Names) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !n.Allow(r.Host) {
			http.Error(w, Refusal(r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Refusal is the message for a request whose Host header is not allowed.
func Refusal(host string) string {
	if len(host) > 100 {
		host = host[:100]
	}
	return "this sidecar does not answer to the host name " + quote(host) +
		"; use its address, or start it with --host-name"
}

// quote quotes a Host header for a message, and replaces the characters that a hostile header may contain.
func quote(text string) string {
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' {
			return '?'
		}
		return r
	}, text) + `"`
}

// IsLoopback reports whether a host, with or without a port, is "localhost" or a loopback address.
func IsLoopback(host string) bool {
	name := withoutPort(host)
	ip := net.ParseIP(name)
	return strings.EqualFold(name, "localhost") || ip != nil && ip.IsLoopback()
}

func withoutPort(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}
