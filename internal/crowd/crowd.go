// Package crowd limits the connections of an HTTP server, and the requests that share a connection of HTTP/2. Otherwise,
// callers that open many and send little or nothing could exhaust descriptors and memory.
package crowd

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Crowd holds the connections of one server. A connection counts once, and again for each further request that it
// serves at the same time. If there are too many, the crowd closes the connection, or resets the further request, that
// has waited longest for its caller.
type Crowd struct {
	most int

	mu      sync.Mutex
	turn    uint64 // a counter; a waiting member stores its value at the start of the wait
	members map[*member]struct{}
}

// member is a connection, or a further request of one.
type member struct {
	close func() // must not call the crowd
	since uint64
	held  int // requests whose callers are waiting
}

// Extra is the number of connections in addition to those of waiting callers: for browsers, event streams and new
// callers.
const Extra = 512

// New returns a crowd of at most the given number of connections and further requests, and of at most half of the
// process's descriptors.
func New(most int) *Crowd {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < uint64(most)*2 {
		most = max(1, int(files.Cur/2))
	}
	return &Crowd{most: most, members: map[*member]struct{}{}}
}

// conn is a connection of a crowd.
type conn struct {
	net.Conn
	crowd *Crowd
	place *member

	requests int // in progress; guarded by crowd.mu
}

// sendBuffer is the size in bytes of the kernel's buffer for what a client has not read yet. Otherwise it grows to some
// megabytes for each connection, which no memory limit of the sidecar counts with cgroup v1.
const sendBuffer = 128 << 10

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
		if connection, ok := accepted.(*net.TCPConn); ok {
			_ = connection.SetWriteBuffer(sendBuffer) // only memory depends on it
		}
		if joined := l.crowd.join(accepted); joined != nil {
			return joined, nil
		}
		_ = accepted.Close() // too many connections
	}
}

// join adds a connection, or returns nil if nothing can be closed for it.
func (c *Crowd) join(accepted net.Conn) *conn {
	place := c.enter(func() { _ = accepted.Close() }) // the server's next read fails
	if place == nil {
		return nil
	}
	return &conn{Conn: accepted, crowd: c, place: place}
}

// enter adds a member, or returns nil if there are too many and none can be closed.
func (c *Crowd) enter(closing func()) *member {
	c.mu.Lock()
	var oldest *member
	if len(c.members) >= c.most {
		if oldest = c.oldest(); oldest == nil {
			c.mu.Unlock()
			return nil
		}
		delete(c.members, oldest)
	}
	c.turn++
	joined := &member{close: closing, since: c.turn}
	c.members[joined] = struct{}{}
	c.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
	return joined
}

// oldest returns the member that has waited longest for its caller, or nil if all callers are waiting. The caller
// holds c.mu.
func (c *Crowd) oldest() (oldest *member) {
	for candidate := range c.members {
		if candidate.held == 0 && (oldest == nil || candidate.since < oldest.since) {
			oldest = candidate
		}
	}
	return oldest
}

func (c *Crowd) leave(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.members, m)
}

// Close implements net.Conn.
func (m *conn) Close() error {
	m.crowd.leave(m.place)
	return m.Conn.Close()
}

// refusalTimeout is how long a client may take to read that its request was refused.
const refusalTimeout = time.Second

// Handler counts the requests that share a connection.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m, ok := r.Context().Value(contextKey{}).(*conn)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		controller := http.NewResponseController(w)
		further := m.count(1) > 1
		defer m.count(-1)
		if !further {
			next.ServeHTTP(w, r)
			flushShared(r, controller)
			return
		}
		stream := &stream{controller: controller}
		place := m.crowd.enter(stream.reset)
		if place == nil {
			_ = controller.SetWriteDeadline(time.Now().Add(refusalTimeout))
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"detail":"too many requests are in progress","code":"busy"}`+"\n") // it may have gone
			return
		}
		defer m.crowd.leave(place)
		defer stream.end()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), placeKey{}, place)))
		flushShared(r, controller)
	})
}

// flushShared sends the response to a request of a shared connection. Otherwise net/http would send the rest after the
// handler has returned, and a client that does not read could have any number of them wait, because they do not count.
func flushShared(r *http.Request, controller *http.ResponseController) {
	if r.ProtoMajor == 2 {
		_ = controller.Flush() // the client may have disconnected
	}
}

// count changes the number of requests in progress, and returns it.
func (m *conn) count(more int) int {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	m.requests += more
	return m.requests
}

// stream is a request that shares its connection.
type stream struct {
	controller *http.ResponseController

	mu    sync.Mutex
	ended bool // the controller must not be used any more
}

func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if past := time.Unix(1, 0); !s.ended {
		_, _ = s.controller.SetReadDeadline(past), s.controller.SetWriteDeadline(past) // its caller gets no answer
	}
}

func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

type (
	contextKey struct{} // of a connection
	placeKey   struct{} // of a further request
)

// ConnContext is the ConnContext of the http.Server.
func ConnContext(ctx context.Context, accepted net.Conn) context.Context {
	if secure, ok := accepted.(interface{ NetConn() net.Conn }); ok {
		accepted = secure.NetConn()
	}
	return context.WithValue(ctx, contextKey{}, accepted)
}

// Hold protects a request whose caller is now waiting, until release is called.
func Hold(r *http.Request) (release func()) {
	accepted, _ := r.Context().Value(contextKey{}).(net.Conn)
	release = HoldConn(accepted)
	place, further := r.Context().Value(placeKey{}).(*member)
	if !further {
		return release
	}
	crowd := accepted.(*conn).crowd
	crowd.hold(place, 1)
	return func() {
		crowd.hold(place, -1)
		release()
	}
}

// HoldConn protects an accepted connection, as Hold does.
func HoldConn(accepted net.Conn) (release func()) {
	m, ok := accepted.(*conn)
	if !ok {
		return func() {}
	}
	m.crowd.hold(m.place, 1)
	return func() { m.crowd.hold(m.place, -1) }
}

func (c *Crowd) hold(m *member, more int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.held += more
	c.turn++
	m.since = c.turn
}
