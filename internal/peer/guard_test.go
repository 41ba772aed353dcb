package peer

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestOnlyConnectionsOfStepsAreRefused(t *testing.T) {
	var step atomic.Bool
	guard := &Guard{FromStep: func(o Owner) bool { return o.Inode != 0 && step.Load() }}
	server := httptest.NewUnstartedServer(guard.Require(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "fine")
	})))
	server.Config.ConnContext = guard.ConnContext
	server.Start()
	defer server.Close()
	for _, of := range []struct {
		step   bool
		status int
		body   string
	}{{false, 200, "fine"}, {true, 403, `"code":"from_step"`}} {
		step.Store(of.step)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != of.status || !strings.Contains(string(body), of.body) {
			t.Errorf("%+v: %d %s", of, response.StatusCode, body)
		}
	}
}

// TestAConnectionThatClosedAtOnceIsRefused: the kernel no longer knows its owner.
func TestAConnectionThatClosedAtOnceIsRefused(t *testing.T) {
	guard := &Guard{FromStep: func(Owner) bool { return false }}
	client, server := connected(t, "tcp4", "127.0.0.1:0")
	if guard.ConnContext(context.Background(), server).Value(contextKey{}) != false {
		t.Error("an open connection is refused")
	}
	_, _ = client.Write([]byte("POST / HTTP/1.1\r\n\r\n"))
	_ = client.Close()
	if guard.ConnContext(context.Background(), server).Value(contextKey{}) != true {
		t.Error("a closed connection is accepted")
	}
}

// far is a connection that came from another machine.
type far struct{ net.Conn }

func (far) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711} }

func TestConnectionsOfOtherMachinesAreAccepted(t *testing.T) {
	guard := &Guard{FromStep: func(Owner) bool { return true }}
	_, server := connected(t, "tcp4", "127.0.0.1:0")
	if guard.ConnContext(context.Background(), far{server}).Value(contextKey{}) != false {
		t.Error("it is refused")
	}
}
