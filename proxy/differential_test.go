package proxy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The corpus is every combination of these with the rest drawn at random from a fixed seed.
var (
	corpusMethods = []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "custom-Verb"}
	corpusPaths   = []string{
		"", "/", "/custom-objects", "/custom-objects/", "/a//b", "/a///", "/records/a%2Fb", "/records/a%2fb", "/x%21y!z",
		"/a:b@c", "/a;v=1/b;w", "/%E2%82%AC", "/\xe2\x82\xac", "/a+b%20c", "/./a", "/a/./b", "/...", "/a/..b/c..",
		"/%25", "/a%00b", "/a\"b<c>", "/external-integrations/proxy/p/s/x?y", "/$&'()*,=~_-.", "/{id}|^`", "/" + strings.Repeat("long/", 800),
	}
	corpusQueries = []string{
		"", "?", "?a=1&a=2&a=", "?x=%2F%2f%zz", "?q=a+b%20c;d", "??&&==", "?u=http://h/..//", "?" + strings.Repeat("k=v&", 2048), "?\xff\xfe",
	}
	corpusFields = []string{
		"Accept: */*", "accept-ENCODING: gzip, deflate, br", "X-Empty:", "X-Empty: ", "X-Twice: 1", "X-Twice: 2", "x-twice: 3",
		"User-Agent: python-requests/2.32", "Content-Type: application/json", "If-None-Match: \"a\", W/\"b\"", "Range: bytes=0-1",
		"X-Bytes: \xc3\xa9\xff", "X-Tabs: a\tb", "Origin: https://x", "Referer: https://x/..", "X_Under_Score: kept", "Via: 1.1 me",
		"!#$%&'*+-.^_`|~: odd", "Content-Encoding: gzip", "Accept: again", "Date: x", "Pragma: no-cache", "X-Long: " + strings.Repeat("v", 5000),
		"TE: trailers", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	// Fields that the proxy drops, by docs/proxy.md.
	corpusDropped = []string{
		"X-API-KEY: mine", "x_api_key: mine", "X-Business_Id: mine", "x-user-id: mine", "AUTHORIZATION: Basic eDp5", "Cookie: a=b",
		"Proxy-Authorization: Basic x", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Forwarded: for=1.2.3.4",
		"X-Forwarded-For: 1.2.3.4", "x-forwarded_host: evil", "X-Real-IP: 1.2.3.4", "X-Original-URL: /admin", "Upgrade: websocket",
	}
	corpusBodies = []func(*rand.Rand) string{
		func(*rand.Rand) string { return "\r\n" },
		func(*rand.Rand) string { return "Content-Length: 0\r\n\r\n" },
		func(*rand.Rand) string { return "Content-Length: 5\r\n\r\nhello" },
		func(*rand.Rand) string { return "content-length: 70000\r\n\r\n" + strings.Repeat("\x00\r\nab", 14000) },
		func(*rand.Rand) string { return "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
		func(*rand.Rand) string {
			return "Transfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: abc\r\n\r\n"
		},
		func(r *rand.Rand) string {
			var b strings.Builder
			b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for range r.IntN(20) {
				n := 1 + r.IntN(9000)
				fmt.Fprintf(&b, "%x\r\n%s\r\n", n, strings.Repeat("z", n))
			}
			return b.String() + "0\r\n\r\n"
		},
	}
)

func TestAPISeesTheSameAsWithoutProxy(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), nil)
	random := rand.New(rand.NewPCG(1, 2))

	count := 0
	for _, path := range corpusPaths {
		for _, query := range corpusQueries {
			for range 2 {
				count++
				method := corpusMethods[random.IntN(len(corpusMethods))]
				var fields strings.Builder
				for _, i := range random.Perm(len(corpusFields))[:random.IntN(len(corpusFields))] {
					fields.WriteString(corpusFields[i] + "\r\n")
				}
				body := corpusBodies[random.IntN(len(corpusBodies))](random)
				dropped := corpusDropped[random.IntN(len(corpusDropped))] + "\r\n"

				direct := fmt.Sprintf("%s /api%s%s HTTP/1.1\r\nHost: %s\r\n%s%s", method, path, query, api.Addr(), fields.String(), body)
				through := fmt.Sprintf("%s %s%s%s HTTP/1.1\r\nHost: %s\r\n%s%sConnection: close\r\n%s",
					method, p.base, path, query, p.addr, fields.String(), dropped, body)
				compare(t, api, direct, p.addr, through)
			}
		}
	}
	if count < 300 {
		t.Errorf("corpus has %d requests", count)
	}
}

// compare sends both and reports every difference that docs/proxy.md does not list.
func compare(t *testing.T, api *rawAPI, direct, proxyAddr, through string) {
	t.Helper()
	before := len(api.seen())
	rawDial(t, api.Addr().String(), direct).Read(make([]byte, len(ok204)))
	if answer := rawExchange(t, proxyAddr, through); !strings.HasPrefix(answer, "HTTP/1.1 204") {
		t.Fatalf("proxy answered %q to %.300q", answer, through)
	}
	seen := api.seen()[before:]
	if len(seen) != 2 {
		t.Fatalf("the api saw %d requests for %.300q", len(seen), through)
	}
	want, got := seen[0], seen[1]
	want.fields = append(normalised(want.fields),
		"X-API-KEY: "+testKey, "X-BUSINESS-ID: business-1", "X-USER-ID: user-1")
	if got.line != want.line {
		t.Errorf("request line %q, want %q", got.line, want.line)
	}
	if !slices.Equal(got.fields, want.fields) {
		t.Errorf("fields\n%q\nwant\n%q", got.fields, want.fields)
	}
	if got.body != want.body || !slices.Equal(got.trailers, want.trailers) {
		t.Errorf("body of %d bytes and %q, want %d and %q", len(got.body), got.trailers, len(want.body), want.trailers)
	}
}

// normalised applies the differences that are no information: one space after the colon, none at the end, and the
// transfer coding in lower case.
func normalised(fields []string) []string {
	same := make([]string, 0, len(fields)+3)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		value = strings.Trim(value, " \t")
		if strings.EqualFold(name, "transfer-encoding") {
			value = "chunked"
		}
		same = append(same, name+": "+value)
	}
	return same
}
