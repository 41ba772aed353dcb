package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// Each entry is what follows "METHOD /capability/x HTTP/1.1\r\nHost: ours\r\n", unless it has a request line.
var smuggling = []struct {
	name, raw string
	passed    string // body the API sees, for the entries that are unambiguous; else the proxy must refuse
}{
	{name: "length and coding", raw: "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding and length", raw: "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"},
	{name: "two lengths that differ", raw: "Content-Length: 0\r\nContent-Length: 40\r\n\r\n"},
	{name: "two lengths that agree", raw: "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"},
	{name: "length as a list", raw: "Content-Length: 2, 2\r\n\r\nab"},
	{name: "length with sign", raw: "Content-Length: +2\r\n\r\nab"},
	{name: "negative length", raw: "Content-Length: -1\r\n\r\nab"},
	{name: "hexadecimal length", raw: "Content-Length: 0x2\r\n\r\nab"},
	{name: "length with underscore digits", raw: "Content-Length: 1_0\r\n\r\nab"},
	{name: "empty length", raw: "Content-Length:\r\n\r\nab"},
	{name: "overflowing length", raw: "Content-Length: 18446744073709551618\r\n\r\nab"},
	{name: "length name with space", raw: "Content-Length : 2\r\n\r\nab"},
	{name: "length name in underscore", raw: "Content_Length: 40\r\n\r\n"},
	{name: "coding twice", raw: "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding in list", raw: "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
	{name: "coding gzip, chunked", raw: "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding identity", raw: "Transfer-Encoding: identity\r\n\r\n"},
	{name: "coding xchunked", raw: "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{name: "coding quoted", raw: "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"},
	{name: "coding with parameter", raw: "Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n"},
	{name: "coding with vertical tab", raw: "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
	{name: "coding name with space", raw: "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding name with tab", raw: "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding name in underscore", raw: "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding name in dot", raw: "Transfer.Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding folded", raw: "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding after bare LF", raw: "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding after bare CR", raw: "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "coding in HTTP/1.0", raw: "POST /CAP/x HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{name: "bare LF head", raw: "GET /CAP/x HTTP/1.1\nHost: HOST\n\n"},
	{name: "bare LF at the end of the head", raw: "X: y\r\n\n"},
	{name: "folded field", raw: "X: y\r\n z\r\n\r\n"},
	{name: "field that begins with space", raw: " X: y\r\n\r\n"},
	{name: "NUL in a value", raw: "X: a\x00b\r\n\r\n"},
	{name: "NUL in a name", raw: "X\x00: b\r\n\r\n"},
	{name: "field without colon", raw: "nonsense\r\n\r\n"},
	{name: "empty name", raw: ": x\r\n\r\n"},
	{name: "two hosts", raw: "Host: HOST\r\n\r\n"},
	{name: "host in underscore form of a proxy", raw: "GET /CAP/x HTTP/1.1\r\n\r\n"},
	{name: "NUL in the target", raw: "GET /CAP/x\x00 HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "space in the target", raw: "GET /CAP/x y HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "tab for space", raw: "GET\t/CAP/x\tHTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "two spaces", raw: "GET  /CAP/x HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "fragment", raw: "GET /CAP/x#y HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "HTTP/0.9", raw: "GET /CAP/x\r\n\r\n"},
	{name: "HTTP/1.2", raw: "GET /CAP/x HTTP/1.2\r\nHost: HOST\r\n\r\n"},
	{name: "HTTP/2 preface", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{name: "empty line first", raw: "\r\nGET /CAP/x HTTP/1.1\r\nHost: HOST\r\n\r\n"},
	{name: "chunk size with sign", raw: "Transfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n"},
	{name: "chunk size in 0x", raw: "Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n"},
	{name: "chunk size with space", raw: "Transfer-Encoding: chunked\r\n\r\n 2\r\nab\r\n0\r\n\r\n"},
	{name: "chunk size too large", raw: "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n0\r\n\r\n"},
	{name: "chunk shorter than its data", raw: "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"},
	{name: "chunk line in bare LF", raw: "Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n"},
	{name: "chunk data in bare LF", raw: "Transfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n"},
	{name: "bare LF in chunk extension", raw: "Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\nab\r\n0\r\n\r\n"},
	{name: "bare CR in chunk extension", raw: "Transfer-Encoding: chunked\r\n\r\n2;a\rb\r\nab\r\n0\r\n\r\n"},
	{name: "chunk extension", raw: "Transfer-Encoding: chunked\r\n\r\n2;a=\"b\"\r\nab\r\n0\r\n\r\n", passed: "ab"},
	{name: "trailer that frames", raw: "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nContent-Length: 40\r\nX-API-KEY: mine\r\n\r\n", passed: "ab"},
	{name: "connection names the length", raw: "Connection: content-length\r\nContent-Length: 2\r\n\r\nab", passed: "ab"},
	{name: "connection names the coding", raw: "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", passed: "ab"},
	{name: "request in a length body", raw: "Content-Length: 31\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r", passed: "GET /admin HTTP/1.1\r\nHost: x\r\n\r"},
	{name: "length with tabs around", raw: "Content-Length:\t2\t\r\n\r\nab", passed: "ab"},
	{name: "length with leading zeros", raw: "Content-Length: 002\r\n\r\nab", passed: "ab"},
}

func TestNoTwoRequestsOutOfOne(t *testing.T) {
	for _, attempt := range smuggling {
		t.Run(attempt.name, func(t *testing.T) {
			api := startRawAPI(t, answerWith(ok204))
			p := start(t, api.root(), nil)
			raw := strings.NewReplacer("CAP", p.capability, "HOST", p.addr).Replace(attempt.raw)
			if !strings.Contains(strings.SplitN(raw, "\n", 2)[0], "HTTP/") && attempt.name != "empty line first" && attempt.name != "HTTP/0.9" {
				raw = fmt.Sprintf("POST %s/x HTTP/1.1\r\nHost: %s\r\n%s", p.base, p.addr, raw)
			}
			// A second request follows, which must not be answered after a malformed one.
			conn := rawDial(t, p.addr, raw+request(p, "GET", "/second", "\r\n"))
			answer, _ := io.ReadAll(conn)
			whole := completeRequests(api)
			if attempt.passed == "" {
				if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") || strings.Count(string(answer), "HTTP/1.1 400 Bad Request\r\n") != 1 || whole != 0 {
					t.Fatalf("%d requests reached the api, answer %q", whole, answer)
				}
				return
			}
			if whole != 2 {
				t.Fatalf("%d requests reached the api, answer %q", whole, answer)
			}
			first := api.seen()[0]
			if first.body != attempt.passed || len(first.trailers) != 0 {
				t.Errorf("the api saw body %q, trailers %q", first.body, first.trailers)
			}
			if n := strings.Count(strings.ToLower(strings.Join(first.fields, "\n")), "x-api-key"); n != 1 {
				t.Errorf("%d keys in %q", n, first.fields)
			}
		})
	}
}

func completeRequests(api *rawAPI) int { return len(api.seen()) }

func TestAnswerCannotBecomeTwo(t *testing.T) {
	tests := []struct{ name, raw string }{
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
		{"folded field", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"},
		{"unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		{"switch of protocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"},
		{"not http", "SSH-2.0-x\r\n\r\n"},
		{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"NUL", "HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n"},
		{"endless interim answers", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool { io.WriteString(conn, tt.raw); return true })
			p := start(t, api.root(), nil)
			answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
			if !strings.Contains(answer, "HTTP/1.1 502 Bad Gateway\r\n") || !strings.Contains(answer, `"code":"api_protocol_error"`) {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

func TestUnaskedAnswerReachesNobody(t *testing.T) {
	api := startRawAPI(t, answerWith("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"+"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
	p := start(t, api.root(), nil)
	client := newClient(t)
	for range 3 {
		if _, body := do(t, client, "GET", p.URL()+"/x", "", nil); body != "a" {
			t.Fatalf("answer %q", body)
		}
	}
}
