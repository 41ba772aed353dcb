package proxy

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dyingAPI answers the given number of requests on a new connection, and closes it at the next. It counts all
// requests.
func dyingAPI(t *testing.T, first int, last string) (root string, requests *atomic.Int64) {
	requests = new(atomic.Int64)
	l := listen(t)
	serve(t, l, func(conn net.Conn) {
		for range first {
			if !skipHead(conn) {
				return
			}
			requests.Add(1)
			io.WriteString(conn, ok204)
		}
		if skipHead(conn) {
			requests.Add(1)
			io.WriteString(conn, last)
		}
	})
	return "http://" + l.Addr().String(), requests
}

func TestOnlyIdempotentRequestsAreRepeated(t *testing.T) {
	tests := []struct {
		name, method string
		first        int
		last         string
		status       int
		requests     int64
	}{
		{"GET on a used connection", "GET", 1, "", 204, 3},
		{"POST on a used connection", "POST", 1, "", 502, 2},
		{"PATCH on a used connection", "PATCH", 1, "", 502, 2},
		{"GET on a new connection", "GET", 0, "", 502, 1},
		{"GET after an interim answer", "GET", 1, "HTTP/1.1 103 Early Hints\r\n\r\n", 502, 2},
		{"GET after half an answer", "GET", 1, "HTTP/1.1 200 O", 502, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root, requests := dyingAPI(t, tt.first, tt.last)
			p := start(t, root, nil)
			if tt.first > 0 {
				rawExchange(t, p.addr, request(p, "GET", "/first", "\r\n"))
			}
			answer := rawExchange(t, p.addr, request(p, tt.method, "/x", "\r\n"))
			if got := answer[strings.Index(answer, "\r\n\r\n")+4:]; !strings.Contains(answer,
				fmt.Sprintf("HTTP/1.1 %d ", tt.status)) || requests.Load() != tt.requests {
				t.Errorf("answer %q, %d requests reached the api, want %d and %d", got, requests.Load(), tt.status, tt.requests)
			}
		})
	}
}

func TestRepeatedRequestIsTheSame(t *testing.T) {
	var n atomic.Int64
	api := startRawAPI(t, func(conn net.Conn, _ recorded) bool {
		if n.Add(1) == 2 {
			return false // to the proxy, the connection died idle
		}
		_, err := io.WriteString(conn, ok204)
		return err == nil
	})
	var log callLog
	p := start(t, api.root(), func(c *Config) { c.OnCall = log.add })
	rawExchange(t, p.addr, request(p, "GET", "/first", "\r\n"))
	log.wait(t, 1)
	rawExchange(t, p.addr, request(p, "PUT", "/x?y", "Content-Length: 4\r\nX-A: 1\r\n\r\nbody"))
	seen := api.seen()
	if len(seen) != 3 || fmt.Sprint(seen[1]) != fmt.Sprint(seen[2]) || seen[2].body != "body" {
		t.Fatalf("the api saw %q", seen)
	}
	if calls := log.wait(t, 2); calls[0].Retried || !calls[1].Retried || calls[1].Outcome != Answered {
		t.Errorf("calls %+v", calls)
	}
}

func TestOverriddenMethodIsNotRepeated(t *testing.T) {
	for _, raw := range []struct{ path, rest string }{{"/x", "X-HTTP-Method-Override: POST\r\n\r\n"},
		{"/x?_method=patch", "\r\n"}} {
		root, requests := dyingAPI(t, 1, "")
		p := start(t, root, nil)
		rawExchange(t, p.addr, request(p, "GET", "/first", "\r\n"))
		answer := rawExchange(t, p.addr, request(p, "GET", raw.path, raw.rest))
		if !strings.HasPrefix(answer, "HTTP/1.1 502 ") || requests.Load() != 2 {
			t.Errorf("%q: answer %q, %d requests", raw, answer, requests.Load())
		}
	}
}

func TestUploadIsRepeatedWhileItsBodyIsKept(t *testing.T) {
	for _, tt := range []struct {
		size, status int
		requests     int64
	}{{1, 204, 3}, {maxReplay, 204, 3}, {maxReplay + 1, 502, 2}} {
		var n atomic.Int64
		api := startRawAPI(t, func(conn net.Conn, r recorded) bool {
			if n.Add(1) == 2 {
				return false // to the proxy, the connection died idle
			}
			_, err := io.WriteString(conn, ok204)
			return err == nil
		})
		p := start(t, api.root(), nil)
		rawExchange(t, p.addr, request(p, "GET", "/first", "\r\n"))
		body := strings.Repeat("b", tt.size)
		answer := rawExchange(t, p.addr, request(p, "PUT", "/x",
			fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nX-Sum: 7\r\n\r\n", tt.size, body)))
		seen := api.seen()
		last := seen[len(seen)-1]
		if !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", tt.status)) || n.Load() != tt.requests ||
			last.body != body || len(last.trailers) != 1 {
			t.Errorf("%d bytes: answer %q, %d requests, the last of %d bytes, trailers %q", tt.size, answer, n.Load(),
				len(last.body), last.trailers)
		}
	}
}

func TestConnectionIsNotUsedWhenTheAPIIsAboutToCloseIt(t *testing.T) {
	for _, tt := range []struct {
		keepAlive   string
		idle        time.Duration
		connections int
	}{
		{"timeout=1", 400 * time.Millisecond, 1}, {"timeout=1", 600 * time.Millisecond, 2},
		{"max=9, Timeout = 30", 28 * time.Second, 1},
		{"timeout=30, max=9", 29 * time.Second, 2}, {"timeout=0", 0, 2}, {"timeout=3600", 54 * time.Second, 1},
		{"timeout=3600", 56 * time.Second, 2},
		{"timeout=-1", 54 * time.Second, 1}, {"nonsense", 54 * time.Second, 1},
	} {
		api := startRawAPI(t, answerWith("HTTP/1.1 204 No Content\r\nKeep-Alive: "+tt.keepAlive+"\r\n\r\n"))
		p := start(t, api.root(), nil)
		rawExchange(t, p.addr, request(p, "POST", "/x", "\r\n"))
		p.pool.mu.Lock()
		for _, a := range p.pool.idle {
			a.since = a.since.Add(-tt.idle)
		}
		p.pool.mu.Unlock()
		rawExchange(t, p.addr, request(p, "POST", "/x", "\r\n"))
		api.mu.Lock()
		if api.accepted != tt.connections {
			t.Errorf("Keep-Alive: %s, idle for %s: %d connections, want %d", tt.keepAlive, tt.idle, api.accepted, tt.connections)
		}
		api.mu.Unlock()
	}
}

func TestConnectionClosedWhileIdleIsNotUsed(t *testing.T) {
	// A POST must not be repeated, so it must never use a connection that is known to be dead.
	closed := make(chan struct{}, 10)
	l := listen(t)
	serve(t, l, func(conn net.Conn) {
		skipHead(conn)
		io.WriteString(conn, ok204)
		conn.Close()
		closed <- struct{}{}
	})
	p := start(t, "http://"+l.Addr().String(), nil)
	for range 5 {
		if answer := rawExchange(t, p.addr, request(p, "POST", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
			t.Fatalf("answer %q", answer)
		}
		<-closed
	}
}

func TestPrewarmedConnectionIsUsed(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		var conns, active atomic.Int64
		api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
			r *http.Request) {
			io.WriteString(w, "ok")
		}))
		api.EnableHTTP2 = h2
		api.Config.ConnState = func(c net.Conn, s http.ConnState) {
			countNew(&conns)(c, s)
			if s == http.StateActive {
				active.Add(1)
			}
		}
		api.StartTLS()
		t.Cleanup(api.Close)
		ca := x509.NewCertPool()
		ca.AddCert(api.Certificate())
		p := start(t, api.URL, func(c *Config) { c.APICA = ca; c.Prewarm = 1 })
		// The client has its response before the connection returns to the pool.
		waiting := func() bool {
			p.pool.mu.Lock()
			defer p.pool.mu.Unlock()
			return len(p.pool.idle)+len(p.pool.shared) == 1
		}
		for range 3 {
			waitFor(t, waiting)
			if resp, _ := do(t, newClient(t), "POST", p.URL()+"/x", "", nil); resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		if conns.Load() != 1 {
			t.Errorf("h2 %v: %d connections, of which the first was made ahead of time", h2, conns.Load())
		}
	}
}

func TestPrewarmingDoesNotHoldUpShutdown(t *testing.T) {
	l := listen(t) // accepts connections into its queue but never completes the handshake
	p := start(t, "https://"+l.Addr().String(), func(c *Config) { c.Prewarm = 2; c.dialTimeout = time.Hour })
	if err := p.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestConnectingHasADeadline(t *testing.T) {
	l := listen(t)
	p := start(t, "https://"+l.Addr().String(), func(c *Config) { c.dialTimeout = 50 * time.Millisecond })
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 504 ") &&
		!strings.HasPrefix(answer, "HTTP/1.1 502 ") {
		t.Errorf("answer %q", answer)
	}
}

func TestAddressIsCheckedAfterDNS(t *testing.T) {
	pool := func(root string, change func(*Config)) *pool {
		u, _ := url.Parse(root)
		cfg := &Config{APIRoot: u}
		if change != nil {
			change(cfg)
		}
		return newPool(cfg)
	}
	insecure := func(c *Config) { c.InsecureAPI = true }
	tests := []struct {
		root, address string
		change        func(*Config)
		ok            bool
	}{
		{"https://api.example", "93.184.216.34:443", nil, true},
		{"https://api.example", "10.0.0.1:443", nil, true},
		{"https://api.example", "127.0.0.1:443", nil, false},
		{"https://api.example", "[::1]:443", nil, false},
		{"https://api.example", "[::ffff:127.0.0.1]:443", nil, false},
		{"https://api.example", "169.254.169.254:443", nil, false},
		{"https://api.example", "[fe80::1%eth0]:443", nil, false},
		{"https://api.example", "[::ffff:169.254.169.254]:443", nil, false},
		{"https://api.example", "0.0.0.0:443", nil, false},
		{"https://api.example", "224.0.0.1:443", nil, false},
		{"https://127.0.0.1", "127.0.0.1:443", nil, true},
		{"https://localhost", "127.0.0.1:443", nil, true},
		{"http://localhost", "192.0.2.1:80", nil, false},
		{"http://api.example", "192.0.2.1:80", insecure, true},
		{"http://api.example", "127.0.0.1:80", insecure, false},
	}
	for _, tt := range tests {
		if err := pool(tt.root, tt.change).checkAddress(tt.address); (err == nil) != tt.ok {
			t.Errorf("%s at %s: %v", tt.root, tt.address, err)
		}
	}
}

func TestRebindingNeverReachesTheAddress(t *testing.T) {
	var reached atomic.Int64
	l := listen(t)
	serve(t, l, func(conn net.Conn) { reached.Add(1) })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := start(t, "https://api.example:"+port, nil)
	p.pool.dialer.Resolver = resolverTo(t, [4]byte{127, 0, 0, 1})
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 502 ") || !strings.Contains(answer, "resolves to the loopback address") ||
		reached.Load() != 0 {
		t.Errorf("answer %q, %d connections", answer, reached.Load())
	}
}

func TestNamesAreResolvedWithinTheDeadline(t *testing.T) {
	p := start(t, "https://api.example", func(c *Config) { c.dialTimeout = 50 * time.Millisecond })
	p.pool.dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done() // a name server that does not answer
		return nil, ctx.Err()
	}}
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 50") {
		t.Errorf("answer %q", answer)
	}
}

// tunnelProxy is an operator's HTTP proxy. It keeps the targets that it was asked for.
func tunnelProxy(t *testing.T, over func(http.Handler) *httptest.Server) (*httptest.Server, *atomic.Value) {
	var asked atomic.Value
	proxy := over(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Header.Get("Proxy-Authorization"),
			r.Header.Get("X-Api-Key")))
		if strings.HasPrefix(r.Host, "refused") {
			w.WriteHeader(403)
			return
		}
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer up.Close()
		down, in, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n")
		go io.Copy(up, in)
		io.Copy(down, up)
	}))
	t.Cleanup(proxy.Close)
	return proxy, &asked
}

func TestOperatorsProxyIsUsed(t *testing.T) {
	root, ca := tlsAPI(t, true, func(w http.ResponseWriter,
		r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Business-Id"))
	})
	for _, over := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
		proxy, asked := tunnelProxy(t, over)
		via, _ := url.Parse(strings.Replace(proxy.URL, "://", "://user:pass@", 1))
		p := start(t, root, func(c *Config) { c.APICA = ca; c.proxyFor = http.ProxyURL(via) })
		want := "CONNECT " + strings.TrimSuffix(strings.TrimPrefix(root, "https://"), "/api") + " Basic dXNlcjpwYXNz"
		for range 2 {
			resp, body := do(t, newClient(t), "GET", p.URL()+"/x", "", nil)
			if resp.StatusCode != 200 || body != "business-1" || asked.Load() != want {
				t.Errorf("%d %s, the proxy was asked %q, want %q", resp.StatusCode, body, asked.Load(), want)
			}
			asked.Store(want) // the second call uses the same tunnel
		}
		p.Shutdown(context.Background())
	}
}

func TestOperatorsProxyMayRefuse(t *testing.T) {
	proxy, _ := tunnelProxy(t, httptest.NewServer)
	via, _ := url.Parse(strings.Replace(proxy.URL, "http://", "http://user:hunter2@", 1))
	p := start(t, "https://refused.example", func(c *Config) { c.proxyFor = http.ProxyURL(via) })
	resp, body := do(t, newClient(t), "GET", p.URL()+"/x", "", nil)
	if resp.StatusCode != 502 || !strings.Contains(body, "403") || strings.Contains(body, "hunter2") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestUnusableOperatorsProxyFailsTheStart(t *testing.T) {
	root, _ := url.Parse("https://api.example")
	for name, via := range map[string]func(*http.Request) (*url.URL, error){
		"another scheme": func(*http.Request) (*url.URL, error) { return url.Parse("socks5://user:hunter2@proxy:1080") },
		"no url":         func(*http.Request) (*url.URL, error) { return nil, errors.New("http://user:hunter2@ is no url") },
	} {
		_, err := New(Config{APIRoot: root, BusinessID: "b", UserID: "u", Keys: staticKey(testKey), proxyFor: via})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPoolIsBounded(t *testing.T) {
	root, entered, release := blockingAPI(t)
	p := start(t, root, func(c *Config) { c.maxIdleConns = 2 })
	var conns []net.Conn
	for range 5 {
		conns = append(conns, rawDial(t, p.addr, request(p, "GET", "/x", "\r\n")))
		<-entered
	}
	release()
	for _, conn := range conns {
		io.Copy(io.Discard, conn)
	}
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if len(p.pool.idle) != 2 {
		t.Errorf("%d idle connections", len(p.pool.idle))
	}
}

func TestKeySourceFailureIs503(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	sources := map[string]KeySource{
		"error":      keyFunc(func(context.Context) (string, error) { return "", errors.New("the key has expired") }),
		"empty":      keyFunc(func(context.Context) (string, error) { return "", nil }),
		"line break": keyFunc(func(context.Context) (string, error) { return "a\r\nX-Evil: 1", nil }),
		"never":      keyFunc(func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }),
		"asks context": keyFunc(func(ctx context.Context) (string, error) {
			_, ok := ctx.Deadline()
			return "", fmt.Errorf("deadline %v", ok)
		}),
	}
	for name, source := range sources {
		p := start(t, api.root(), func(c *Config) { c.Keys, c.keyTimeout = source, 20*time.Millisecond })
		resp, body := do(t, newClient(t), "GET", p.URL()+"/x", "", nil)
		if resp.StatusCode != 503 || !strings.Contains(body, `"code":"key_unavailable"`) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %q", api.seen())
	}
}

type keyFunc func(context.Context) (string, error)

func (f keyFunc) Key(ctx context.Context) (string, error) { return f(ctx) }

func TestRenewedKeyIsUsedAtOnce(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	var n atomic.Int64
	p := start(t, api.root(), func(c *Config) {
		c.Keys = keyFunc(func(context.Context) (string, error) {
			return fmt.Sprintf("a-key-of-some-length-%d", n.Add(1)),
				nil
		})
	})
	client := newClient(t)
	for i := range 3 {
		do(t, client, "GET", p.URL()+"/x", "", nil)
		if got := api.seen()[i].value("X-API-KEY"); got != fmt.Sprintf("a-key-of-some-length-%d", i+1) {
			t.Errorf("request %d has key %q", i, got)
		}
	}
}

func TestConfigurationErrorsAreReportedTogether(t *testing.T) {
	root, _ := url.Parse("http://user@api.example/x?y")
	_, err := New(Config{APIRoot: root, UserID: "a\nb", MaxBody: -1, Open: true})
	for _, want := range []string{"more than scheme", "business id is missing", "user id cannot", "key source is missing",
		"max body is negative", "proxy without capability"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	for root, ok := range map[string]bool{
		"http://127.0.0.1:1": true, "http://localhost/api": true, "http://[::1]/": true, "https://api.example/api/": true,
		"http://api.example": false, "http://10.0.0.1": false, "ftp://api.example": false, "https://": false,
		"https://api.example/a/../b": false,
	} {
		u, _ := url.Parse(root)
		if _, err := New(Config{APIRoot: u, BusinessID: "b", UserID: "u", Keys: staticKey(testKey)}); (err == nil) != ok {
			t.Errorf("%s: %v", root, err)
		}
	}
	for address, ok := range map[string]bool{"127.0.0.1:0": true, "localhost:0": true, "0.0.0.0:0": false, ":0": false,
		"192.0.2.1:0": false} {
		l, err := listenLoopback(address)
		if err == nil {
			l.Close()
		}
		if (err == nil) != ok {
			t.Errorf("listen on %s: %v", address, err)
		}
	}
}

// resolverTo is a resolver for which every name has the given address.
func resolverTo(t *testing.T, address [4]byte) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go answerDNS(theirs, address) // ends with the resolver's side
		return ours, nil
	}}
}

func answerDNS(conn net.Conn, address [4]byte) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		packed := make([]byte, binary.BigEndian.Uint16(size[:]))
		var m dnsmessage.Message
		if _, err := io.ReadFull(conn, packed); err != nil || m.Unpack(packed) != nil {
			return
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: address},
			}}
		}
		answer, err := m.Pack()
		if err != nil {
			return
		}
		conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}
}
