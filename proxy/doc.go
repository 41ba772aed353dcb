// Package proxy is the only way from a step to the API: it turns a relative path on loopback into an authenticated
// request.
//
// A [Proxy] serves one execution. It passes the step's requests to the API byte for byte, but sets three headers
// (X-API-KEY, X-BUSINESS-ID, X-USER-ID) and drops the step's credentials; docs/proxy.md lists every difference. The
// step never holds the key: the proxy gets it from a [KeySource] for each request, writes it to the connection to the
// API, and drops every header in which the API echoes it.
//
// The data path is HTTP/1.1 on both sides, on one goroutine for each connection of the step, with strict parsing
// (package internal/h1) so that no two parties can disagree on where a request ends. Where TLS negotiates HTTP/2 with
// the API, the exchange goes through net/http's client connection instead. Both are a protocol (protocol.go), and share
// every decision. [New] validates the configuration, [Proxy.Start] binds the listener, [Proxy.URL] returns the step's
// base URL, and [Proxy.Shutdown] ends everything and waits for it.
package proxy
