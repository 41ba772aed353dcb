package proxy

import (
	"io"
	"log"
	"net"
	"net/http"
	"strings"
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

// readUntil reads exactly want, which proves that it was sent before anything else happened.
func readUntil(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err != nil || string(got) != want {
		t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

// readThrough reads up to and with mark.
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
