package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// read reads a request and its body from src, and returns one string with all their parts.
func read(src io.Reader) (string, error) {
	r := NewReader(src)
	var req Request
	if err := r.ReadRequest(&req, 64<<10, 128); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %d %s", req.Method, req.Target, req.Minor, req.Host)
	for _, f := range req.Fields {
		fmt.Fprintf(&b, "|%s:%s", f.Name, f.Value)
	}
	var body Body
	body.Reset(r, &req.Head, false)
	content, err := io.ReadAll(&body)
	if err != nil {
		return "", err
	}
	for _, f := range req.Fields { // the head must survive reading the body
		fmt.Fprintf(&b, "|%s:%s", f.Name, f.Value)
	}
	fmt.Fprintf(&b, "|%q %q %v", content, body.Trailer(), body.Done())
	rest, err := io.ReadAll(io.MultiReader(bytes.NewReader(r.buf[r.r:r.w]), src))
	fmt.Fprintf(&b, "|%q", rest)
	return b.String(), err
}

func TestPacketBoundariesDoNotMatter(t *testing.T) {
	for _, raw := range []string{
		"GET /x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\nGET /second",
		"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /second",
		"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\nGET /second",
		"POST /x HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("long", 3000) + "\r\nContent-Length: 9000\r\n\r\n" +
			strings.Repeat("b", 9000) + "GET /second",
	} {
		whole, err := read(strings.NewReader(raw))
		if err != nil || !strings.HasSuffix(whole, `|"GET /second"`) {
			t.Fatalf("%.60q: %v, %.200s", raw, err, whole)
		}
		for name, src := range map[string]io.Reader{
			"one byte at a time": iotest.OneByteReader(strings.NewReader(raw)),
			"half reads":         iotest.HalfReader(strings.NewReader(raw)),
			"data with error":    iotest.DataErrReader(strings.NewReader(raw)),
		} {
			if got, err := read(src); got != whole {
				t.Errorf("%s: %.200s, %v", name, got, err)
			}
		}
		if end := strings.Index(raw, "GET /second"); end > 0 {
			for cut := range min(end, 300) {
				if got, err := read(strings.NewReader(raw[:cut])); err == nil {
					t.Errorf("cut at %d it reads as %.200s", cut, got)
				}
			}
		}
	}
}

func TestHeadsAreBounded(t *testing.T) {
	for raw, want := range map[string]error{
		"GET /" + strings.Repeat("a", 2000) + " HTTP/1.1\r\nHost: h\r\n\r\n": ErrTooLarge,
		strings.Repeat("a", 1<<20): ErrTooLarge,
		"GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: b\r\n", 10) + "\r\n": ErrTooManyFields,
		"GET / HTTP/1.1\r\nHost: h\r\n\r\n":                                       nil,
	} {
		r, req := NewReader(strings.NewReader(raw)), Request{}
		if err := r.ReadRequest(&req, 1000, 10); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", raw, err, want)
		}
		if len(r.buf) > 16<<10 {
			t.Errorf("%.40q: buffer of %d bytes", raw, len(r.buf))
		}
	}
}

// net/http accepts every request that we accept, and ends it at the same byte.
func FuzzRequestsEndWhereNetHTTPEndsThem(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\n\r\nrest", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcrest",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nrest",
		"POST / HTTP/1.0\r\n\r\nrest",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nA:\r\n b\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, req := NewReader(bytes.NewReader(raw)), Request{}
		if r.ReadRequest(&req, 64<<10, 128) != nil {
			return
		}
		var body Body
		body.Reset(r, &req.Head, false)
		ours, err := io.ReadAll(&body)
		if err != nil {
			return
		}
		in := bufio.NewReader(bytes.NewReader(raw))
		theirs, err := http.ReadRequest(in)
		if err != nil {
			return // net/http also checks targets and hosts, which are not checked here
		}
		content, err := io.ReadAll(theirs.Body)
		if err != nil {
			t.Skip(err) // such as a trailer that net/http rejects
		}
		if !bytes.Equal(ours, content) {
			t.Errorf("body %q, net/http reads %q", ours, content)
		}
		left, _ := io.ReadAll(in)
		if rest := raw[len(raw)-len(left):]; r.Buffered() != len(rest) {
			t.Errorf("%d bytes follow, after net/http %d: %q", r.Buffered(), len(rest), raw)
		}
	})
}

// net/http reads every response that we accept with the same body.
func FuzzAnswersEndWhereNetHTTPEndsThem(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabrest", "HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
		"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nuntil close",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, resp := NewReader(bytes.NewReader(raw)), Response{}
		if r.ReadResponse(&resp, []byte("GET"), 64<<10, 128) != nil || resp.Interim() {
			return
		}
		var body Body
		body.Reset(r, &resp.Head, true)
		ours, err := io.ReadAll(&body)
		if err != nil {
			return
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), &http.Request{Method: "GET"})
		if err != nil {
			return
		}
		content, err := io.ReadAll(theirs.Body)
		if err == nil && !bytes.Equal(ours, content) {
			t.Errorf("body %q, net/http reads %q", ours, content)
		}
	})
}
