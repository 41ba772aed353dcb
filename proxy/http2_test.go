package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// tlsAPI is an API behind TLS that offers HTTP/2 by default.
func tlsAPI(t testing.TB, h2 bool, handler http.HandlerFunc) (root string, ca *x509.CertPool) {
	t.Helper()
	api := httptest.NewUnstartedServer(handler)
	api.EnableHTTP2 = h2
	api.Config.ErrorLog = discardLog()
	api.StartTLS()
	t.Cleanup(api.Close)
	ca = x509.NewCertPool()
	ca.AddCert(api.Certificate())
	return api.URL + "/api", ca
}

func TestHTTP2IsUsedIfTLSNegotiatesIt(t *testing.T) {
	for _, h2 := range []bool{true, false} {
		t.Run(map[bool]string{true: "h2", false: "http/1.1"}[h2], func(t *testing.T) {
			var got atomic.Pointer[http.Request]
			var body atomic.Value
			root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got.Store(r)
				body.Store(string(b))
				w.Header().Set("Trailer", "X-Sum")
				w.Header().Set("Set-Cookie", "a=b")
				w.Header().Set("X-Echo", r.Header.Get("X-Api-Key"))
				w.Header().Set("Location", "/api/next")
				w.WriteHeader(http.StatusAccepted)
				io.WriteString(w, strings.Repeat("answer", 20000))
				w.Header().Set("X-Sum", "sum")
			})
			p := start(t, root, func(c *Config) { c.APICA = ca })
			client := newClient(t)
			for _, size := range []int{0, 10, 300000} {
				sent := strings.Repeat("b", size)
				resp, answer := do(t, client, "PUT", p.URL()+"/a%2Fb%21//c;d?x=%2f&x=+&;", sent, http.Header{
					"X-Kept": {"1", "2"}, "X_Api_Key": {"mine"}, "Cookie": {"a=b"}, "Connection": {"X-Hop"}, "X-Hop": {"1"},
					"User-Agent": {""},
				})
				r := got.Load()
				if wantMajor := map[bool]int{true: 2, false: 1}[h2]; r.ProtoMajor != wantMajor {
					t.Fatalf("spoke %s", r.Proto)
				}
				if r.RequestURI != "/api/a%2Fb%21//c;d?x=%2f&x=+&;" || body.Load() != sent || r.Method != "PUT" ||
					r.ContentLength != int64(size) {
					t.Errorf("request %s %s, body of %d bytes", r.Method, r.RequestURI, len(body.Load().(string)))
				}
				for name, want := range map[string]string{
					"X-Api-Key": testKey, "X-Business-Id": "business-1", "X-User-Id": "user-1", "X-Kept": "1,2", "X-Hop": "",
					"Cookie": "", "X_api_key": "", "User-Agent": "",
				} {
					if given := strings.Join(r.Header.Values(name), ","); given != want {
						t.Errorf("%s: %q, want %q", name, given, want)
					}
				}
				if resp.StatusCode != 202 || len(answer) != 120000 || resp.Trailer.Get("X-Sum") != "sum" {
					t.Errorf("answer %d, %d bytes, trailers %v", resp.StatusCode, len(answer), resp.Trailer)
				}
				if resp.Header.Get("Set-Cookie")+resp.Header.Get("X-Echo") != "" || resp.Header.Get("Location") != p.base+"/next" {
					t.Errorf("answer's headers: %v", resp.Header)
				}
			}
		})
	}
}

func TestEveryStatusMethodAndBodylessAnswerOverHTTP2(t *testing.T) {
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/304":
			w.WriteHeader(304)
		case "/api/204":
			w.WriteHeader(204)
		default:
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "hello")
		}
	})
	p := start(t, root, func(c *Config) { c.APICA = ca })
	client := newClient(t)
	for _, tt := range []struct {
		method, path string
		status       int
		length       int64
		body         string
	}{
		{"HEAD", "/x", 200, 5, ""}, {"GET", "/x", 200, 5, "hello"}, {"GET", "/204", 204, 0, ""}, {"GET", "/304", 304, 0, ""},
		{"OPTIONS", "/x", 200, 5, "hello"},
	} {
		resp, body := do(t, client, tt.method, p.URL()+tt.path, "", nil)
		if resp.StatusCode != tt.status || max(resp.ContentLength, 0) != tt.length || body != tt.body {
			t.Errorf("%s %s: %d, length %d, %q", tt.method, tt.path, resp.StatusCode, resp.ContentLength, body)
		}
	}
}

func TestTrailersAndContinueOverHTTP2(t *testing.T) {
	var trailer atomic.Value
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		trailer.Store(r.Trailer.Get("X-Sum") + r.Trailer.Get("X-Api-Key"))
		w.WriteHeader(204)
	})
	p := start(t, root, func(c *Config) { c.APICA = ca })
	conn := rawDial(t, p.addr, request(p, "POST", "/x",
		"Expect: 100-continue\r\nTE: trailers\r\nTrailer: X-Sum, X-API-KEY\r\nTransfer-Encoding: chunked\r\n\r\n"))
	readUntil(t, conn, "HTTP/1.1 100 Continue\r\n\r\n")
	io.WriteString(conn, "2\r\nab\r\n0\r\nX-Sum: 7\r\nX-API-KEY: mine\r\nX-Other: 1\r\n\r\n")
	readUntil(t, conn, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
	rest, _ := io.ReadAll(conn)
	if !strings.HasPrefix(string(rest), "HTTP/1.1 204 No Content\r\n") || trailer.Load() != "7" {
		t.Errorf("answer %q, trailer %q", rest, trailer.Load())
	}
}

func TestHTTP2ConnectionIsSharedAndReplaced(t *testing.T) {
	var conns atomic.Int64
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		io.WriteString(w, "ok")
	}))
	api.EnableHTTP2 = true
	api.Config.ConnState = countNew(&conns)
	api.StartTLS()
	t.Cleanup(api.Close)
	ca := x509.NewCertPool()
	ca.AddCert(api.Certificate())
	p := start(t, api.URL, func(c *Config) { c.APICA = ca; c.Prewarm = 1 })
	client := newClient(t)
	for range 5 {
		do(t, client, "GET", p.URL()+"/x", "", nil)
	}
	if n := conns.Load(); n < 1 || n > 2 { // the first call need not wait for the prewarmed connection
		t.Errorf("%d connections", n)
	}
	api.CloseClientConnections()
	for range 3 {
		if resp, _ := do(t, client, "GET", p.URL()+"/x", "", nil); resp.StatusCode != 200 {
			t.Errorf("after the connection was closed: %d", resp.StatusCode)
		}
	}
}

func TestDeadHTTP2ConnectionNeverCompletesAnAnswer(t *testing.T) {
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/late" {
			io.WriteString(w, strings.Repeat("x", 100000))
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	p := start(t, root, func(c *Config) { c.APICA = ca })
	if answer := rawExchange(t, p.addr, request(p, "GET", "/early", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 502 ") {
		t.Errorf("answer %q", answer)
	}
	answer := rawExchange(t, p.addr, request(p, "GET", "/late", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || strings.HasSuffix(answer, "0\r\n\r\n") {
		t.Errorf("a truncated response looks complete: %d bytes", len(answer))
	}
	if p.Stats()[APIBroke] != 1 || p.Stats()[APIUnreachable] != 1 {
		t.Errorf("stats %v", p.Stats())
	}
}

func TestBrokenUploadIsNeverCompleteOverHTTP2(t *testing.T) {
	whole := make(chan error, 1)
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		whole <- err
	})
	p := start(t, root, func(c *Config) { c.APICA = ca; c.MaxBody = 100000 })
	for _, tt := range []struct{ rest, status string }{
		{"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", "400"},
		{"Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("2710\r\n"+strings.Repeat("x", 10000)+"\r\n", 12) +
			"0\r\n\r\n", "413"},
	} {
		answer := rawExchange(t, p.addr, request(p, "POST", "/x", tt.rest))
		if !strings.HasPrefix(answer, "HTTP/1.1 "+tt.status) {
			t.Errorf("answer %q", answer)
		}
		if err := <-whole; err == nil {
			t.Errorf("%s: the api accepted half a body as complete", tt.status)
		}
	}
}

func TestTLSIsVerified(t *testing.T) {
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter, r *http.Request) {})
	old := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.Config.ErrorLog = discardLog()
	old.StartTLS()
	t.Cleanup(old.Close)
	tests := []struct {
		name, root string
		ca         *x509.CertPool
		status     int
	}{
		{"known authority", root, ca, 200},
		{"authorities of the system", root, nil, 502},
		{"old protocol", old.URL, ca, 502},
		{"another name", strings.Replace(root, "127.0.0.1", "localhost", 1), ca, 502},
	}
	for _, tt := range tests {
		p := start(t, tt.root, func(c *Config) { c.APICA = tt.ca })
		resp, body := do(t, newClient(t), "GET", p.URL()+"/x", "", nil)
		if resp.StatusCode != tt.status || tt.status == 502 && !strings.Contains(body, "tls to ") {
			t.Errorf("%s: %d %s", tt.name, resp.StatusCode, body)
		}
	}
}

func TestProtocolsAreNotSwitchedOverHTTP2(t *testing.T) {
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter,
		r *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
	})
	p := start(t, root, func(c *Config) { c.APICA = ca })
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 502 Bad Gateway\r\n") ||
		!strings.Contains(answer, `"code":"api_protocol_error"`) {
		t.Errorf("answer %q", answer)
	}
}
