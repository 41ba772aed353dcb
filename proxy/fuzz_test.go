package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// No accepted path leaves its root, however often a server decodes it and whichever characters it treats as slashes.
func FuzzPathStaysInsideRoot(f *testing.F) {
	for _, seed := range []string{
		"/", "/a/b", "/a/../../b", "/%2e%2e/b", "/%252e%252e%252fb", "/..;/b", `/..\b`, "/.%00./b", "/%c0%ae%c0%ae/b",
		"/a%2F..%2f..%2fb", "/...", "/a//b", "/..%09/x",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 || raw[0] != '/' {
			return
		}
		canonical, err := canonicalPath(raw)
		if err != nil {
			return
		}
		if got := string(canonical); path.Clean("/root"+got) != "/root" &&
			!strings.HasPrefix(path.Clean("/root"+got), "/root/") || strings.Contains(got, "//") {
			t.Errorf("%q became %q", raw, got)
		}
		again, err := canonicalPath(canonical)
		if err != nil || !bytes.Equal(again, canonical) {
			if bytes.IndexByte(canonical, '%') < 0 { // a lone % is not an escape
				t.Errorf("%q is not canonical: %q, %v", canonical, again, err)
			}
		}
		view := string(raw)
		for range 3 {
			for _, reading := range []string{view, strings.ReplaceAll(view, `\`, "/"), cutParameters(view)} {
				if up := depth(reading); up < 0 {
					t.Errorf("%q leaves its root, read as %q", raw, reading)
				}
			}
			decoded, err := url.PathUnescape(view)
			if err != nil {
				return
			}
			view = decoded
		}
	})
}

// depth returns the lowest level that a path passes through.
func depth(p string) (lowest int) {
	level := 0
	for segment := range strings.SplitSeq(p, "/") {
		switch segment {
		case "", ".":
		case "..":
			level--
		default:
			level++
		}
		lowest = min(lowest, level)
	}
	return lowest
}

func cutParameters(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

// net/http must read the request written for the API as a single request with our three headers and no other
// credential.
func FuzzRequestIsOneRequestWithOurHeaders(f *testing.F) {
	for _, seed := range []string{
		"Connection: X-API-KEY\r\n\r\n", "x_api_key: mine\r\nX-Api-Key: mine\r\n\r\n", "Content-Length: 2\r\n\r\nab",
		"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nA: b\r\n\r\n",
		"TE: trailers, gzip\r\n\r\n", "X: y\n\r\n", "X : y\r\n\r\n", " X: y\r\n\r\n",
		"Cookie: a\r\nAUTHORIZATION: b\r\nX-Forwarded_For: c\r\n\r\n",
		"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte("/a?b"), []byte(seed))
	}
	p, err := New(Config{APIRoot: &url.URL{Scheme: "https", Host: "api.example", Path: "/api"}, BusinessID: "business-1",
		UserID: "user-1", Keys: staticKey(testKey)})
	if err != nil {
		f.Fatal(err)
	}
	p.addr = "127.0.0.1:1"
	f.Fuzz(func(t *testing.T, target, rest []byte) {
		raw := "POST " + p.base + string(target) + " HTTP/1.1\r\nHost: 127.0.0.1:1\r\n" + string(rest)
		c := &conn{p: p, rd: h1.NewReader(strings.NewReader(raw))}
		if c.rd.ReadRequest(&c.req, 64<<10, 128) != nil {
			return
		}
		x := &exchange{c: c, key: testKey}
		if x.identify() != nil {
			return
		}
		c.body.Reset(c.rd, &c.req.Head, false)
		body, err := io.ReadAll(&c.body)
		if err != nil {
			return
		}
		head := x.appendRequest(nil)
		in := bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("REST")))
		got, err := http.ReadRequest(in)
		if err != nil {
			t.Logf("net/http does not read it: %v", err) // it is stricter about some hosts and paths
			return
		}
		if left, _ := io.ReadAll(in); string(left) != "REST" {
			t.Fatalf("the head ends early, before %q", left)
		}
		for name, want := range map[string]string{"X-Api-Key": testKey, "X-Business-Id": "business-1",
			"X-User-Id": "user-1"} {
			if values := got.Header[name]; len(values) != 1 || values[0] != want {
				t.Errorf("%s: %q", name, values)
			}
		}
		for name := range got.Header {
			switch folded := strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name)); folded {
			case "x-api-key", "x-business-id", "x-user-id":
				if name != http.CanonicalHeaderKey(folded) {
					t.Errorf("%q reaches the api", name)
				}
			case "authorization", "cookie", "connection", "proxy-authorization", "forwarded", "x-forwarded-for", "upgrade":
				t.Errorf("%q reaches the api", name)
			}
		}
		if got.Host != "api.example" || c.req.Framing == h1.Length && got.ContentLength != int64(len(body)) ||
			(c.req.Framing == h1.Chunked) != (len(got.TransferEncoding) == 1) || c.req.Framing == h1.NoBody &&
			got.ContentLength != 0 {
			t.Errorf("framed as %v %d %v for %q", got.Host, got.ContentLength, got.TransferEncoding, raw)
		}
		if !strings.HasPrefix(got.RequestURI, "/api") || !strings.HasSuffix(got.RequestURI, string(target)) {
			t.Errorf("target %q for %q", got.RequestURI, target)
		}
	})
}
