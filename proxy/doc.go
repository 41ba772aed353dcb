// Package proxy is the one way from a step to the API: a relative path comes in on loopback, an authenticated
// request goes out.
//
// A [Proxy] serves one execution. What the step sends reaches the API byte for byte, but for three headers that
// are ours (X-API-KEY, X-BUSINESS-ID, X-USER-ID) and whatever the step sent as credentials, which is dropped;
// docs/proxy.md lists every difference. The step never holds the key: it is asked of a [KeySource] for each
// request, written to the connection to the API, and any header in which the API echoes it is dropped.
//
// The data path is HTTP/1.1 on both sides, on one goroutine for each connection of the step, with strict parsing
// (package internal/h1) so that no two parties can disagree on where a request ends. Where TLS negotiates HTTP/2
// with the API, the exchange goes through net/http's client connection instead. Both are a protocol (protocol.go), and
// share every decision.
//
// Life: [New] checks the configuration, [Proxy.Start] binds, [Proxy.URL] is what the step is given, and
// [Proxy.Shutdown] ends everything and waits for it.
package proxy
