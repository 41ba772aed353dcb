// Package crowd bounds the connections of an HTTP server. Callers that open many and send little, or nothing, would otherwise take the
// descriptors and the memory that everybody else needs.
package crowd

import (
	"context"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

// Crowd is the connections of one server. Where there are too many, one that waits for its caller makes room: the one that has done so
// for the longest.
type Crowd struct {
	most int

	mu    sync.Mutex
	turn  uint64 // counts up; a connection that waits for its caller has the turn in which that began
	conns map[*conn]struct{}
}

// Extra is how many connections a server needs beside those that wait for it: of browsers, of those who watch, of newcomers.
const Extra = 512

// New returns a crowd of at most so many connections, and of no more than half of what the process may have open.
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
	held  int // requests whose callers wait
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
		_ = accepted.Close() // there is no room
	}
}

// join adds a connection, nil where none makes room for it.
func (c *Crowd) join(accepted net.Conn) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) >= c.most {
		oldest := c.oldest()
		if oldest == nil {
			return nil
		}
		delete(c.conns, oldest)
		_ = oldest.Conn.Close() // its server notices
	}
	c.turn++
	joined := &conn{Conn: accepted, crowd: c, since: c.turn}
	c.conns[joined] = struct{}{}
	return joined
}

// oldest is the connection that has waited for its caller for the longest, nil where all callers wait. Needs c.mu.
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

// ConnContext is for http.Server.
func ConnContext(ctx context.Context, accepted net.Conn) context.Context {
	if secure, ok := accepted.(interface{ NetConn() net.Conn }); ok {
		accepted = secure.NetConn()
	}
	return context.WithValue(ctx, contextKey{}, accepted)
}

// Hold keeps the connection of a request that has arrived, and whose caller waits now, until release is called.
func Hold(r *http.Request) (release func()) {
	m, ok := r.Context().Value(contextKey{}).(*conn)
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
