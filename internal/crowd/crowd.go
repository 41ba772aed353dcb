// Package crowd limits the connections of an HTTP server. Otherwise, callers that open many connections and send
// little or nothing could exhaust descriptors and memory.
package crowd

import (
	"context"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

// Crowd holds the connections of one server. If there are too many, it closes the connection that has waited longest
// for its caller.
type Crowd struct {
	most int

	mu    sync.Mutex
	turn  uint64 // a counter; a waiting connection stores its value at the start of the wait
	conns map[*conn]struct{}
}

// Extra is the number of connections in addition to those of waiting callers: for browsers, event streams and new
// callers.
const Extra = 512

// New returns a crowd of at most the given number of connections, and of at most half of the process's descriptors.
func New(most int) *Crowd {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < uint64(most)*2 {
		most = max(1, int(files.Cur/2))
	}
	return &Crowd{most: most, conns: map[*conn]struct{}{}}
}

// conn is a connection of a crowd.
type conn struct {
	net.Conn
	crowd *Crowd
	since uint64
	held  int // requests whose callers are waiting
}

// Listener counts the connections of inner.
func (c *Crowd) Listener(inner net.Listener) net.Listener { return &listener{inner, c} }

type listener struct {
	net.Listener
	crowd *Crowd
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if joined := l.crowd.join(accepted); joined != nil {
			return joined, nil
		}
		_ = accepted.Close() // too many connections
	}
}

// join adds a connection, or returns nil if no other connection can be closed for it.
func (c *Crowd) join(accepted net.Conn) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) >= c.most {
		oldest := c.oldest()
		if oldest == nil {
			return nil
		}
		delete(c.conns, oldest)
		_ = oldest.Conn.Close() // the server's next read fails
	}
	c.turn++
	joined := &conn{Conn: accepted, crowd: c, since: c.turn}
	c.conns[joined] = struct{}{}
	return joined
}

// oldest returns the connection that has waited longest for its caller, or nil if all callers are waiting. The caller
// holds c.mu.
func (c *Crowd) oldest() (oldest *conn) {
	for candidate := range c.conns {
		if candidate.held == 0 && (oldest == nil || candidate.since < oldest.since) {
			oldest = candidate
		}
	}
	return oldest
}

// Close implements net.Conn.
func (m *conn) Close() error {
	m.crowd.mu.Lock()
	delete(m.crowd.conns, m)
	m.crowd.mu.Unlock()
	return m.Conn.Close()
}

type contextKey struct{}

// ConnContext is the ConnContext of the http.Server.
func ConnContext(ctx context.Context, accepted net.Conn) context.Context {
	if secure, ok := accepted.(interface{ NetConn() net.Conn }); ok {
		accepted = secure.NetConn()
	}
	return context.WithValue(ctx, contextKey{}, accepted)
}

// Hold protects the connection of a request whose caller is now waiting, until release is called.
func Hold(r *http.Request) (release func()) {
	accepted, _ := r.Context().Value(contextKey{}).(net.Conn)
	return HoldConn(accepted)
}

// HoldConn protects an accepted connection, as Hold does.
func HoldConn(accepted net.Conn) (release func()) {
	m, ok := accepted.(*conn)
	if !ok {
		return func() {}
	}
	m.count(1)
	return func() { m.count(-1) }
}

func (m *conn) count(more int) {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	m.held += more
	m.crowd.turn++
	m.since = m.crowd.turn
}
