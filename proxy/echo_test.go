package proxy

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// compressed returns a text in a content coding.
func compressed(t *testing.T, coding, text string) string {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "deflate":
		w = zlib.NewWriter(&out)
	default: // the bare format
		w, _ = flate.NewWriter(&out, 6)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func eachProtocol(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, p *Proxy)) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "http/1.1", true: "h2"}[h2], func(t *testing.T) {
			root, ca := tlsAPI(t, h2, handler)
			test(t, start(t, root, func(c *Config) { c.APICA = ca }))
		})
	}
}

// plainClient asks for exactly the codings that a test names, and decodes nothing.
func plainClient(t *testing.T) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestTheKeyIsMaskedInCompressedAnswers(t *testing.T) {
	text := func(r *http.Request) string {
		return strings.Repeat("compressible ", 5000) + r.Header.Get("X-Api-Key") + strings.Repeat(" and more", 5000)
	}
	api := func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("the API was asked for %q", got)
		}
		coding := r.URL.Query().Get("coding")
		w.Header().Set("Content-Encoding", coding)
		w.Header().Set("Etag", `"1"`)
		body := compressed(t, strings.TrimPrefix(coding, "x-"), text(r))
		if r.URL.Query().Get("raw") != "" {
			body = compressed(t, "raw", text(r))
		}
		if r.URL.Query().Get("broken") != "" {
			body = body[:len(body)/2]
		}
		_, _ = io.WriteString(w, body)
	}
	eachProtocol(t, api, func(t *testing.T, p *Proxy) {
		want := strings.Repeat("compressible ", 5000) + testKey + strings.Repeat(" and more", 5000)
		for _, query := range []string{"coding=gzip", "coding=x-gzip", "coding=deflate", "coding=deflate&raw=1"} {
			resp, body := do(t, plainClient(t), "GET", p.URL()+"/x?"+query, "", http.Header{"Accept-Encoding": {"gzip, br"}})
			if resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("Etag") != `"1"` {
				t.Fatalf("%s: %d %v", query, resp.StatusCode, resp.Header)
			}
			requireMasked(t, body, want)
		}
		for _, coding := range []string{"br", "zstd", "compress", "gzip, gzip"} {
			resp, body := do(t, plainClient(t), "GET", p.URL()+"/x?coding="+strings.ReplaceAll(coding, " ", "%20"), "", nil)
			if resp.StatusCode != 502 || !strings.Contains(body, "content coding") {
				t.Errorf("%s: %d %.200s", coding, resp.StatusCode, body)
			}
		}
		resp, body := do(t, plainClient(t), "HEAD", p.URL()+"/x?coding=br", "", nil)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != "br" || body != "" {
			t.Errorf("HEAD: %d %v", resp.StatusCode, resp.Header)
		}
		resp, err := plainClient(t).Get(p.URL() + "/x?coding=gzip&broken=1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("half of a compressed response is accepted as complete")
		}
	})
}

// A compressed stream is decoded as it arrives.
func TestACompressedStreamIsNotBuffered(t *testing.T) {
	next := make(chan string, 1)
	eachProtocol(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		for line := range next {
			if line == "" {
				break
			}
			_, _ = io.WriteString(packed, line)
			_ = packed.Flush()
			w.(http.Flusher).Flush()
		}
		_ = packed.Close()
	}, func(t *testing.T, p *Proxy) {
		next <- "data: 1\n"
		resp, err := plainClient(t).Get(p.URL() + "/x")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		readUntil(t, resp.Body, "data: 1\n")
		next <- "data: 2\n"
		readUntil(t, resp.Body, "data: 2\n")
		next <- ""
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
	})
}

func TestRangesRevealNoPartOfTheKey(t *testing.T) {
	text := "before " + testKey + " behind it" + strings.Repeat(" and more", 100)
	var whole string // the proxy's output
	eachProtocol(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "x.txt", time.Time{},
			strings.NewReader(strings.ReplaceAll(text, testKey, r.Header.Get("X-Api-Key"))))
	}, func(t *testing.T, p *Proxy) {
		client := plainClient(t)
		ask := func(method, value string) (*http.Response, string) {
			return do(t, client, method, p.URL()+"/x", "", http.Header{"Range": {value}})
		}
		_, whole = do(t, client, "GET", p.URL()+"/x", "", nil)
		requireMasked(t, whole, text)
		for _, size := range []int{1, 7, 40, 83, 500} {
			for first := 0; first < 120; first += size {
				last := first + size - 1
				resp, body := ask("GET", fmt.Sprintf("bytes=%d-%d", first, last))
				if resp.StatusCode != 206 || body != whole[first:last+1] || resp.ContentLength != int64(size) ||
					resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", first, last, len(text)) {
					t.Fatalf("%d-%d: %d %v %q, want %q", first, last, resp.StatusCode, resp.Header, body, whole[first:last+1])
				}
			}
		}
		end := len(text)
		for value, want := range map[string]string{
			"bytes=20-":                      whole[20:],
			fmt.Sprintf("bytes=-%d", end-20): whole[20:],
			"bytes=-5":                       whole[end-5:],
			"bytes=-100000":                  whole,
			fmt.Sprintf("bytes=%d-%d", end-3, end+1000): whole[end-3:],
		} {
			if resp, body := ask("GET", value); resp.StatusCode != 206 || body != want {
				t.Errorf("%s: %d %q, want %q", value, resp.StatusCode, body, want)
			}
		}
		for _, value := range []string{"bytes=0-3, 10-20", "bytes=5-2", "bytes=", "bytes=a-b",
			"bytes=99999999999999999999-"} {
			if resp, body := ask("GET", value); resp.StatusCode != 200 || body != whole {
				t.Errorf("%s: %d %q", value, resp.StatusCode, body)
			}
		}
		for _, first := range []int{end, end + 10, end + 1000} { // after the end, within the margin and beyond it
			resp, _ := ask("GET", fmt.Sprintf("bytes=%d-%d", first, first+9))
			if resp.StatusCode != 416 || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", end) {
				t.Errorf("from %d of %d: %d %v", first, end, resp.StatusCode, resp.Header)
			}
		}
		if resp, _ := ask("HEAD", "bytes=10-19"); resp.StatusCode != 206 || resp.ContentLength != 10 {
			t.Errorf("HEAD: %d %v", resp.StatusCode, resp.Header)
		}
	})
}

func TestUnrequestedRangesAreRefused(t *testing.T) {
	const head = "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n"
	for _, tt := range []struct {
		name, asked, answer string
		passes              bool
	}{
		{"no range asked for", "", "Content-Range: bytes 10-13/20\r\n\r\nabcd", false},
		{"another range", "bytes=200-203", "Content-Range: bytes 200-203/2000\r\n\r\nabcd", false},
		{"several ranges", "bytes=200-203", "Content-Type: multipart/byteranges; boundary=x\r\n\r\nabcd", false},
		{"several ranges that were not asked for", "", "Content-Type: Multipart/ByteRanges ; boundary=x\r\n\r\nabcd", false},
		{"the same as Apache once wrote it", "", "Content-Type: multipart/x-byteranges; boundary=x\r\n\r\nabcd", false},
		{"no range at all", "", "Content-Type: multipart/mixed; boundary=x\r\n\r\nabcd", true},
		{"compressed", "bytes=0-3", "Content-Range: bytes 0-3/4\r\nContent-Encoding: gzip\r\n\r\nabcd", false},
		{"a range without a unit", "0-3", "Content-Range: bytes 0-3/20\r\n\r\nabcd", false},
		{"another unit", "items=0-3", "Content-Range: items 0-3/20\r\n\r\nabcd", true},
		{"another unit, without a name", "0-3", "Content-Range: 0-3/20\r\n\r\nabcd", true},
		{"the whole resource", "bytes=0-9", "Content-Range: bytes 0-3/4\r\n\r\nabcd", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
				_, _ = io.WriteString(conn, head+tt.answer)
				return false
			})
			p := start(t, api.root(), nil)
			header := http.Header{}
			if tt.asked != "" {
				header.Set("Range", tt.asked)
			}
			resp, body := do(t, plainClient(t), "GET", p.URL()+"/x", "", header)
			if passes := resp.StatusCode == 206 && body == "abcd"; passes != tt.passes || !passes && resp.StatusCode != 502 {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
}

func TestShortRangeIsDeliveredWithoutItsMargin(t *testing.T) {
	api := startRawAPI(t, func(conn net.Conn, _ recorded) bool { // sends 200 bytes at a time
		_, _ = io.WriteString(conn,
			"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-199/100000\r\nContent-Length: 200\r\n\r\n"+strings.Repeat("x", 200))
		return false
	})
	p := start(t, api.root(), nil)
	resp, body := do(t, plainClient(t), "GET", p.URL()+"/x", "", http.Header{"Range": {"bytes=10-5000"}})
	if resp.StatusCode != 206 || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes 10-%d/100000", 199-margin) ||
		len(body) != 190-margin {
		t.Errorf("%d %v, %d bytes", resp.StatusCode, resp.Header, len(body))
	}
}
