package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLimitsOfARequest(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), func(c *Config) { c.MaxBody = 10; c.maxHeaderBytes = 4 << 10; c.maxHeaders = 10 })
	tests := []struct{ name, rest, want string }{
		{"body of the limit", "Content-Length: 10\r\n\r\n0123456789", "204"},
		{"declared body beyond it", "Content-Length: 11\r\n\r\n0123456789a", "413"},
		{"declared body far beyond it, not sent", "Content-Length: 999999999999\r\n\r\n", "413"},
		{"chunked body beyond it", "Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n3\r\n89a\r\n0\r\n\r\n", "413"},
		{"header bytes", "X: " + strings.Repeat("a", 5<<10) + "\r\n\r\n", "431"},
		{"header bytes without end", "X: " + strings.Repeat("a", 64<<10), "431"},
		{"header count", strings.Repeat("X: a\r\n", 20) + "\r\n", "431"},
	}
	for _, tt := range tests {
		answer := rawExchange(t, p.addr, request(p, "POST", "/x", tt.rest))
		if !strings.HasPrefix(answer, "HTTP/1.1 "+tt.want+" ") {
			t.Errorf("%s: %q, want %s", tt.name, answer, tt.want)
		}
	}
	for _, r := range api.seen() {
		if len(r.body) > 10 {
			t.Errorf("the api saw a body of %d bytes", len(r.body))
		}
	}
}

// blockingAPI does not answer until it is released; entered receives once for each request.
func blockingAPI(t *testing.T) (root string, entered chan struct{}, release func()) {
	entered, gate := make(chan struct{}, 100), make(chan struct{})
	root = serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-gate:
			io.WriteString(w, "late")
		case <-r.Context().Done():
		}
	})
	done := false
	release = func() {
		if !done {
			close(gate)
			done = true
		}
	}
	t.Cleanup(release)
	return root, entered, release
}

func TestConcurrentRequestsAreLimited(t *testing.T) {
	root, entered, release := blockingAPI(t)
	p := start(t, root, func(c *Config) { c.MaxInFlight = 2 })
	var conns []net.Conn
	for range 2 {
		conns = append(conns, rawDial(t, p.addr, request(p, "GET", "/x", "\r\n")))
		<-entered
	}
	answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n"))
	if !strings.HasPrefix(answer, "HTTP/1.1 429 ") || !strings.Contains(answer, "\r\nRetry-After: 1\r\n") {
		t.Errorf("answer %q", answer)
	}
	release()
	for _, conn := range conns {
		if answer, _ := io.ReadAll(conn); !strings.HasSuffix(string(answer), "late") {
			t.Errorf("answer %q", answer)
		}
	}
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasSuffix(answer, "late") {
		t.Errorf("answer %q", answer)
	}
	if p.inFlight.Load() != 0 {
		t.Errorf("%d in flight", p.inFlight.Load())
	}
}

func TestSlowCallersAreCutOff(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), func(c *Config) {
		c.headerTimeout, c.stallTimeout, c.idleTimeout = 50*time.Millisecond, 60*time.Millisecond, 70*time.Millisecond
	})
	tests := []struct{ name, send, want string }{
		{"half a head", "GET /x HTTP/1.1\r\nHost: x\r\n", "HTTP/1.1 408 "},
		{"half a body", request(p, "POST", "/x", "Content-Length: 9\r\n\r\nhalf"), "HTTP/1.1 408 "},
		{"half a chunk", request(p, "POST", "/x", "Transfer-Encoding: chunked\r\n\r\n5\r\nha"), "HTTP/1.1 408 "},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		answer, err := io.ReadAll(rawDial(t, p.addr, tt.send)) // ends only when the proxy closes the connection
		if err != nil || !strings.HasPrefix(string(answer), tt.want) {
			t.Errorf("%s: %q, %v", tt.name, answer, err)
		}
	}
	if len(api.seen()) > 0 {
		t.Errorf("the api saw %d whole requests", len(api.seen()))
	}
}

func TestTricklingRequestHeadTimesOut(t *testing.T) {
	p := start(t, "http://127.0.0.1:1/", func(c *Config) { c.headerTimeout = 100 * time.Millisecond })
	conn := rawDial(t, p.addr, "GET /x HTTP/1.1\r\n")
	go func() {
		for {
			if _, err := io.WriteString(conn, "X: y\r\n"); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // the attack, not synchronisation
		}
	}()
	readThrough(t, conn, "HTTP/1.1 ")
	if answer := readThrough(t, conn, "\r\n"); !strings.HasPrefix(answer, "408") && !strings.HasPrefix(answer, "431") {
		t.Errorf("answer %q", answer)
	}
	conn.Close()
}

func TestCallerThatNeverReadsIsCutOff(t *testing.T) {
	ended := make(chan struct{})
	root := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		io.Copy(w, zeros{})
	})
	p := start(t, root, func(c *Config) { c.stallTimeout = 100 * time.Millisecond })
	rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
	<-ended
	waitFor(t, func() bool { return p.Stats()[ClientGone] == 1 && p.inFlight.Load() == 0 })
}

// TestKernelBuffersOfASlowStepAreSmall: these buffers count towards no limit of the step.
func TestKernelBuffersOfASlowStepAreSmall(t *testing.T) {
	p := start(t, serveAPI(t, func(http.ResponseWriter, *http.Request) {}), nil)
	do(t, plainClient(t), "GET", p.URL()+"/x", "", nil)
	p.eachConn(func(c *conn) {
		raw, err := c.nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var size int
		if failed := raw.Control(func(fd uintptr) {
			size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		}); failed != nil || err != nil || size > 2*sendBuffer {
			t.Errorf("%d bytes, %v, %v", size, failed, err)
		}
	})
}

func TestCallEndsIfItsCallerDisconnects(t *testing.T) {
	for _, half := range []bool{false, true} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("half-closed %v h2 %v", half, h2), func(t *testing.T) {
				entered, ended := make(chan struct{}), make(chan struct{})
				root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
					close(entered)
					<-r.Context().Done()
					close(ended)
				})
				p := start(t, root, func(c *Config) { c.APICA = ca })
				conn := rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
				<-entered
				if half {
					conn.(*net.TCPConn).CloseWrite()
				} else {
					conn.Close()
				}
				<-ended
				waitFor(t, func() bool { return p.Stats()[ClientGone] == 1 })
			})
		}
	}
}

func TestAPIThatDoesNotAnswerIs504(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		p := start(t, root, func(c *Config) { c.APICA = ca; c.ResponseTimeout = 50 * time.Millisecond })
		for _, size := range []int{0, 300000} {
			resp, body := do(t, newClient(t), "POST", p.URL()+"/x", strings.Repeat("x", size), nil)
			if resp.StatusCode != 504 || !strings.Contains(body, `"code":"api_timeout"`) {
				t.Errorf("h2 %v: %d %s", h2, resp.StatusCode, body)
			}
		}
	}
}

func TestAPIThatReadsNothingIs504(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		over := make(chan struct{})
		root, ca := tlsAPI(t, h2, func(http.ResponseWriter, *http.Request) { <-over })
		t.Cleanup(func() { close(over) })
		p := start(t, root, func(c *Config) {
			c.APICA, c.stallTimeout, c.ResponseTimeout = ca, 300*time.Millisecond, 50*time.Millisecond
		})
		req, _ := http.NewRequest("POST", p.URL()+"/x", zeros{})
		resp, err := newClient(t).Do(req)
		if err != nil {
			continue // the response may be lost because the client was still sending
		}
		resp.Body.Close()
		if resp.StatusCode != 504 {
			t.Errorf("h2 %v: %d", h2, resp.StatusCode)
		}
		waitFor(t, func() bool { return p.Stats()[APITooSlow] == 1 })
	}
}

func TestDeadlineEndsCalls(t *testing.T) {
	t.Run("waiting", func(t *testing.T) {
		root, _, _ := blockingAPI(t)
		p := start(t, root, func(c *Config) { c.Deadline = time.Now().Add(100 * time.Millisecond) })
		for range 2 { // one already in flight, one that arrives later
			resp, body := do(t, newClient(t), "GET", p.URL()+"/x", "", nil)
			if resp.StatusCode != 504 || !strings.Contains(body, `"code":"deadline_exceeded"`) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		}
	})
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("endless answer, h2 %v", h2), func(t *testing.T) {
			root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, zeros{}) })
			p := start(t, root, func(c *Config) { c.APICA = ca; c.Deadline = time.Now().Add(300 * time.Millisecond) })
			answer := rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
			io.Copy(io.Discard, answer)
			waitFor(t, func() bool { return p.Stats()[PastDeadline] == 1 })
		})
		t.Run(fmt.Sprintf("endless upload, h2 %v", h2), func(t *testing.T) {
			root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
			p := start(t, root, func(c *Config) { c.APICA = ca; c.Deadline = time.Now().Add(300 * time.Millisecond) })
			req, _ := http.NewRequest("POST", p.URL()+"/x", zeros{})
			if resp, err := newClient(t).Do(req); err == nil {
				resp.Body.Close()
			}
			waitFor(t, func() bool { return p.Stats()[PastDeadline] == 1 })
		})
	}
}

func TestConnectionsWithoutCapabilityCannotLockOutTheStep(t *testing.T) {
	api := startRawAPI(t, answerWith(ok204))
	p := start(t, api.root(), func(c *Config) { c.maxConns = 4 })
	for range 20 { // each one makes room for the next
		rawDial(t, p.addr, "GET /x HTTP/1.1\r\n")
	}
	if answer := rawExchange(t, p.addr, request(p, "GET", "/x", "\r\n")); !strings.HasPrefix(answer, "HTTP/1.1 204 ") {
		t.Errorf("answer %q", answer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) > 4 {
		t.Errorf("%d connections", len(p.conns))
	}
}

func TestShutdownLetsCallsFinish(t *testing.T) {
	root, entered, release := blockingAPI(t)
	p := start(t, root, nil)
	idle := rawDial(t, p.addr, strings.Replace(request(p, "GET", "//", "\r\n"), "Connection: close\r\n", "", 1))
	readThrough(t, idle, "\r\n\r\n")
	busy := rawDial(t, p.addr, strings.Replace(request(p, "GET", "/x", "\r\n"), "Connection: close\r\n", "", 1))
	<-entered
	done := make(chan error, 1)
	go func() { done <- p.Shutdown(context.Background()) }()
	io.Copy(io.Discard, idle) // it is closed because it is idle
	if _, err := net.Dial("tcp", p.addr); err == nil {
		t.Error("the listener is open during shutdown")
	}
	select {
	case err := <-done:
		t.Fatalf("shutdown did not wait: %v", err)
	default:
	}
	release()
	answer, _ := io.ReadAll(busy)
	if !strings.HasSuffix(string(answer), "late") || !strings.Contains(string(answer), "\r\nConnection: close\r\n") {
		t.Errorf("answer %q", answer)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func TestShutdownAnswersUnfinishedCalls(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		for name, rest := range map[string]string{"a request": "\r\n",
			"an unfinished upload": "Content-Length: 100000\r\n\r\nabc"} {
			entered := make(chan struct{})
			root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			})
			var log callLog
			p := start(t, root, func(c *Config) { c.APICA = ca; c.OnCall = log.add })
			conn := rawDial(t, p.addr, request(p, "POST", "/x", rest))
			<-entered
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("h2 %v: shutdown: %v", h2, err)
			}
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") ||
				!strings.Contains(string(answer), `"code":"shutting_down"`) {
				t.Errorf("h2 %v, %s: answer %q, %v", h2, name, answer, err)
			}
			if calls := log.wait(t, 1); calls[0].Outcome != ShuttingDown || calls[0].Status != 503 {
				t.Errorf("h2 %v, %s: recorded %+v", h2, name, calls[0])
			}
		}
	}
}

func TestShutdownCutsAnAnswerThatHasBegun(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		root, ca := tlsAPI(t, h2, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // otherwise the server would end its response normally
		})
		p := start(t, root, func(c *Config) { c.APICA = ca })
		conn := rawDial(t, p.addr, request(p, "GET", "/x", "\r\n"))
		readThrough(t, conn, "half")
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		p.Shutdown(ctx)
		if rest, _ := io.ReadAll(conn); strings.Contains(string(rest), "0\r\n\r\n") {
			t.Errorf("h2 %v: half a response looks complete: %q", h2, rest)
		}
	}
}

// waitFor polls for an event on another goroutine that follows soon after its cause.
func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the event did not happen in time")
		}
	}
}
