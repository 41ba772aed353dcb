package proxy

import (
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// countNew is a ConnState hook that counts connections.
func countNew(n *atomic.Int64) func(net.Conn, http.ConnState) {
	return func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
}

// readUntil reads exactly want, which proves that it arrived before anything else happened.
func readUntil(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err != nil || string(got) != want {
		t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

// readThrough reads up to and including mark.
func readThrough(t testing.TB, r io.Reader, mark string) string {
	t.Helper()
	var got strings.Builder
	for one := make([]byte, 1); !strings.HasSuffix(got.String(), mark); {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("got %q (%v), want %q", got.String(), err, mark)
		}
		got.Write(one)
	}
	return got.String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve passes every connection of l to handle and then closes it, until the test ends.
func serve(t testing.TB, l net.Listener, handle func(net.Conn)) {
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wait.Wait()
	})
}

// skipHead reads a message's head from a connection, for a test's servers.
func skipHead(conn net.Conn) bool {
	var last [4]byte
	for one := make([]byte, 1); string(last[:]) != "\r\n\r\n"; {
		if _, err := conn.Read(one); err != nil {
			return false
		}
		copy(last[:], last[1:])
		last[3] = one[0]
	}
	return true
}

// callLog keeps the calls reported to Config.OnCall.
type callLog struct {
	mu    sync.Mutex
	calls []Call
}

func (l *callLog) add(call Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, call)
}

// wait waits for n calls and returns them: the proxy reports a call after its response.
func (l *callLog) wait(t testing.TB, n int) (calls []Call) {
	t.Helper()
	waitFor(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		calls = append([]Call(nil), l.calls...)
		return len(calls) >= n
	})
	return calls
}
