package proxy

import (
	"bytes"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// headerAction says how the proxy treats a header field.
type headerAction uint8

const (
	pass      headerAction = iota
	drop                   // set by the proxy, a credential, or hop-by-hop
	framing                // rewritten as parsed
	hostField              // replaced by the API's
	location               // see location.go
	trace                  // replaced if tracing is on
	coding                 // TE, of which only "trailers" is end-to-end
	byteRange              // Range, which is widened
	override               // names a method or a path other than the request line's
)

// longestName is the length of the longest name in the tables below.
const longestName = 32

// fold returns a field's name as the most tolerant server sees it, so that X_Api_Key matches too.
func fold(buf *[longestName]byte, name []byte) []byte {
	if len(name) > longestName {
		name = name[:longestName]
	}
	for i, c := range name {
		buf[i] = h1.FoldName(c)
	}
	return buf[:len(name)]
}

// requestAction returns the action for a field of the step's request.
func requestAction(name []byte) headerAction {
	var buf [longestName]byte
	folded := fold(&buf, name)
	switch string(folded) {
	case "x-api-key", "x-business-id", "x-user-id", "authorization", "cookie", "cookie2":
		return drop
	case "connection", "proxy-connection", "keep-alive", "upgrade", "http2-settings",
		"proxy-authorization", "proxy-authenticate":
		return drop
		// Fields from which some server or framework reads who the caller is.
	case "remote-user", "client-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip",
		"cf-connecting-ip",
		"fastly-client-ip", "forwarded":
		return drop
		// Fields from which some server or framework reads the requested path or host. They include CGI variables: CGI
		// turns a field named Proxy into HTTP_PROXY.
	case "script-name", "path-info", "path-translated", "request-uri", "request-method", "x-script-name", "x-path-info",
		"x-request-uri", "x-host", "x-http-host-override", "x-sendfile-type", "proxy", "x-request-method":
		return drop
		// The other variables of RFC 3875 and of the servers that extend it, for servers that read them from fields.
	case "auth-type", "gateway-interface", "query-string", "remote-addr", "remote-host", "remote-ident", "remote-port",
		"request-scheme", "server-addr", "server-name", "server-port", "server-protocol", "server-software",
		"script-filename",
		"document-root", "document-uri", "https":
		return drop
		// The pseudo-fields of HTTP/2, for servers that accept them without the colon.
	case "method", "scheme", "authority", "path", "uri":
		return drop
	case "content-length", "transfer-encoding":
		return framing
	case "host":
		return hostField
	case "te":
		return coding
	case "range":
		return byteRange
	case "accept-encoding", "a-im":
		return drop // a compressed response could not be searched for the key
	case "request-range":
		return drop // Apache reads it as Range
	case "traceparent", "tracestate":
		return trace
	case "x-http-method-override", "x-http-method", "x-method-override":
		return override
	}
	if assertsIdentity(folded) {
		return drop
	}
	if bytes.HasPrefix(folded, []byte("x-")) {
		for _, prefix := range droppedPrefixes {
			if len(folded) >= len(prefix) && string(folded[:len(prefix)]) == prefix {
				return drop
			}
		}
	}
	return pass
}

var dash = []byte("-")

// assertsIdentity reports whether a field's name contains a word that gateways use in fields about the authenticated
// caller or the caller's certificate: X-Authenticated-Userid, X-Consumer-Id, X-WEBAUTH-USER, X-MS-CLIENT-PRINCIPAL,
// X-Amzn-Oidc-Identity, Impersonate-User, X-On-Behalf-Of, Ssl-Client-Verify. A name that only mentions a user passes.
func assertsIdentity(folded []byte) bool {
	for more := true; more; { // bytes.SplitSeq would move folded to the heap
		var word []byte
		word, folded, more = bytes.Cut(folded, dash)
		switch string(word) {
		case "authenticated", "webauth", "consumer", "credential", "principal", "oidc", "iap", "jwt", "userinfo",
			"impersonate", "behalf",
			"ssl", "tls", "cert", "certificate", "assertion":
			return true
		}
	}
	return false
}

// droppedPrefixes are the prefixes of fields with which gateways pass caller, path or host to a server, and of our own
// fields.
var droppedPrefixes = []string{
	"x-forwarded", "x-envoy-", "x-original-", "x-rewrite-", "x-accel-", "x-remote-", "x-auth-request-", "x-kizen-",
	"x-override-", "x-proxy-",
}

// responseAction returns the action for a field of the API's response.
func responseAction(name []byte) headerAction {
	var buf [longestName]byte
	switch string(fold(&buf, name)) {
	case "x-api-key", "x-business-id", "x-user-id", "set-cookie", "set-cookie2":
		return drop
	case "connection", "proxy-connection", "keep-alive", "upgrade", "proxy-authenticate", "proxy-authentication-info":
		return drop
	case "content-length", "transfer-encoding":
		return framing
	case "location":
		return location
	}
	return pass
}

// connectionNames collects the fields that Connection declares as hop-by-hop (RFC 9110 section 7.6.1). Naming a field
// that the proxy itself sets has no effect.
func connectionNames(names [][]byte, fields []h1.Field) [][]byte {
	names = names[:0]
	for _, f := range fields {
		if len(f.Name) != len("connection") || !h1.EqualFold(f.Name, "connection") {
			continue
		}
		for name := range h1.Tokens(f.Value) {
			if !h1.EqualFold(name, "close") && !h1.EqualFold(name, "keep-alive") {
				names = append(names, name)
			}
		}
	}
	return names
}

func named(names [][]byte, name []byte) bool {
	for _, n := range names {
		if bytes.EqualFold(n, name) {
			return true
		}
	}
	return false
}

func appendField(b []byte, name, value []byte) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}
