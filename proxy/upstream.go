package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// apiConn is one connection to the API. Only one exchange at a time uses an HTTP/1.1 connection; several exchanges can
// share an HTTP/2 connection, each with its own apiConn.
type apiConn struct {
	net.Conn
	h2     *http.ClientConn // if not nil, the connection is HTTP/2, and of the other fields only reused is used
	rd     *h1.Reader
	reused bool
	since  time.Time     // when it became idle
	idle   time.Duration // how long the API keeps it idle; 0 if unknown

	armed time.Time    // the current read deadline
	asked time.Time    // the last call of wake
	wake  func() error // called repeatedly while waiting for the API; an error ends the wait
}

// abort closes a connection without TLS's close_notify, to which the API could still respond.
func (a *apiConn) abort() {
	if secure, ok := a.Conn.(*tls.Conn); ok {
		secure.NetConn().Close()
	}
	a.Close()
}

// tick is the interval at which a wait for the API calls wake.
const tick = 250 * time.Millisecond

// Read waits for the API as long as wake returns nil. It calls wake regularly, even if the API keeps sending single
// bytes.
func (a *apiConn) Read(p []byte) (int, error) {
	for {
		now := time.Now()
		if a.wake != nil && now.Sub(a.asked) > tick {
			a.asked = now
			if err := a.wake(); err != nil {
				return 0, err
			}
		}
		if a.armed.Sub(now) < tick/2 {
			a.armed = now.Add(tick)
			if err := a.SetReadDeadline(a.armed); err != nil {
				return 0, err
			}
		}
		n, err := a.Conn.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if !isTimeout(err) {
			return n, err
		}
		a.armed = time.Time{}
		if err := a.wake(); err != nil {
			return n, err
		}
	}
}

// keepAlive records how long the API keeps an idle connection open, if it says so (RFC 2068 section 19.7.1.1). Near the
// end of that time a request could cross the close, so half of the time stays unused, at most one second. It returns
// false if no usable time is left.
func (a *apiConn) keepAlive(fields []h1.Field) bool {
	for _, f := range fields {
		if len(f.Name) != len("keep-alive") || !h1.EqualFold(f.Name, "keep-alive") {
			continue
		}
		for parameter := range h1.Tokens(f.Value) {
			name, value, _ := bytes.Cut(parameter, []byte{'='})
			seconds, err := strconv.ParseUint(string(bytes.Trim(value, "\" ")), 10, 31)
			if err != nil || !bytes.EqualFold(bytes.TrimSpace(name), []byte("timeout")) {
				continue
			}
			if seconds == 0 {
				return false
			}
			timeout := time.Duration(seconds) * time.Second
			a.idle = timeout - min(timeout/2, time.Second)
		}
	}
	return true
}

// expired reports whether an idle connection is too old to be used.
func (a *apiConn) expired(limit time.Duration) bool {
	if a.idle > 0 {
		limit = min(limit, a.idle)
	}
	return time.Since(a.since) >= limit
}

// stale reports whether the API closed the connection, or sent unsolicited data, while it was idle.
func (a *apiConn) stale() bool {
	if a.rd.Buffered() > 0 {
		return true
	}
	secure, ok := a.Conn.(*tls.Conn)
	if !ok {
		n, err := peek(a.Conn)
		return n > 0 || err == nil || !isAgain(err)
	}
	n, err := peek(secure.NetConn())
	if n <= 0 {
		return err == nil || !isAgain(err)
	}
	// TLS itself sends data without a request, such as session tickets after the handshake. Read the arrived data
	// without blocking, to see whether it contains application data.
	arrived, ok := secure.NetConn().(*pollingConn)
	if !ok {
		return true
	}
	arrived.polling = true
	n, err = secure.Read(make([]byte, 1))
	arrived.polling = false
	return n > 0 || !isTimeout(err)
}

// pollingConn is a connection whose reads time out instead of blocking while polling is set. Only one goroutine may use
// it at a time.
type pollingConn struct {
	net.Conn
	polling bool
	// http2 makes Write ignore that the other side has closed the connection, so that Read finds it: the last data
	// may be a GOAWAY, which says what was not processed, and which net/http would not read after a failed Write.
	http2 bool
}

func (c *pollingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.http2 && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return len(p), nil
	}
	return n, err
}

func (c *pollingConn) Read(p []byte) (int, error) {
	if !c.polling {
		return c.Conn.Read(p)
	}
	n, err := receive(c.Conn, p, 0)
	switch {
	case isAgain(err):
		return 0, os.ErrDeadlineExceeded
	case n == 0 && err == nil:
		return 0, io.EOF
	}
	return max(n, 0), err
}

// SyscallConn implements syscall.Conn, for peek.
func (c *pollingConn) SyscallConn() (syscall.RawConn, error) {
	if conn, ok := c.Conn.(syscall.Conn); ok {
		return conn.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// peek peeks at a socket without blocking. (0, nil) means the end of the stream.
func peek(conn net.Conn) (n int, err error) {
	var b [1]byte
	return receive(conn, b[:], syscall.MSG_PEEK)
}

// receive reads from a socket without blocking.
func receive(conn net.Conn, p []byte, flags int) (n int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, syscall.EAGAIN
	}
	raw, err := sc.SyscallConn()
	if errors.Is(err, errors.ErrUnsupported) {
		return 0, syscall.EAGAIN
	}
	if err != nil {
		return 0, err
	}
	if controlErr := raw.Control(func(fd uintptr) {
		n, _, err = syscall.Recvfrom(int(fd), p, flags|syscall.MSG_DONTWAIT)
	}); controlErr != nil {
		return 0, controlErr
	}
	return n, err
}

func isAgain(err error) bool { return errors.Is(err, syscall.EAGAIN) }

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

// pool keeps the connections to the API.
type pool struct {
	cfg    *Config
	dialer net.Dialer
	tls    *tls.Config // nil for plain HTTP

	mu     sync.Mutex
	idle   []*apiConn         // HTTP/1.1, most recently used last
	shared []*http.ClientConn // HTTP/2
	closed bool
}

func newPool(cfg *Config) *pool {
	p := &pool{cfg: cfg}
	if cfg.APIRoot.Scheme == "https" {
		p.tls = &tls.Config{
			ServerName:         cfg.APIRoot.Hostname(),
			RootCAs:            cfg.APICA,
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"h2", "http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(8),
		}
	}
	return p
}

// get returns a connection: an idle one if available, unless fresh is true.
func (p *pool) get(ctx context.Context, fresh bool) (*apiConn, error) {
	for !fresh {
		if cc := p.takeShared(); cc != nil {
			return &apiConn{h2: cc, reused: true}, nil
		}
		a := p.takeIdle()
		if a == nil {
			break
		}
		if !a.expired(p.cfg.apiIdleTimeout) && !a.stale() {
			a.reused = true
			return a, nil
		}
		a.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.dialTimeout)
	defer cancel()
	return p.dial(ctx)
}

func (p *pool) takeIdle() *apiConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	a := p.idle[last]
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return a
}

// put returns a connection to the pool after a clean exchange.
func (p *pool) put(a *apiConn) {
	if a.h2 != nil {
		a.h2.Release() // the connection is already shared
		return
	}
	a.since = time.Now()
	a.wake = nil
	var surplus *apiConn
	p.mu.Lock()
	switch {
	case p.closed:
		surplus = a
	case len(p.idle) >= p.cfg.maxIdleConns:
		surplus = p.idle[0]
		copy(p.idle, p.idle[1:])
		p.idle[len(p.idle)-1] = a
	default:
		p.idle = append(p.idle, a)
	}
	p.mu.Unlock()
	if surplus != nil {
		surplus.Close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	idle, shared := p.idle, p.shared
	p.idle, p.shared, p.closed = nil, nil, true
	p.mu.Unlock()
	for _, a := range idle {
		a.Close()
	}
	for _, cc := range shared {
		cc.Close()
	}
}

// dial opens a connection to the API, through the operator's HTTP proxy if there is one.
func (p *pool) dial(ctx context.Context) (*apiConn, error) {
	root := p.cfg.APIRoot
	via, err := p.cfg.via()
	if err != nil {
		return nil, err
	}
	conn, err := p.connect(ctx, via)
	if err != nil {
		return nil, err
	}
	if p.tls != nil {
		polled := &pollingConn{Conn: conn}
		secure := tls.Client(polled, p.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("tls to %s: %w", root.Host, err)
		}
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			polled.http2 = true
			return p.share(ctx, secure)
		}
		conn = secure
	}
	a := &apiConn{Conn: conn}
	a.rd = h1.NewReader(a)
	return a, nil
}

func (p *pool) connect(ctx context.Context, via *url.URL) (net.Conn, error) {
	if via == nil {
		d := p.dialer
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			return p.checkAddress(address)
		}
		return d.DialContext(ctx, "tcp", hostPort(p.cfg.APIRoot))
	}
	conn, err := p.dialer.DialContext(ctx, "tcp", hostPort(via))
	if err != nil {
		return nil, fmt.Errorf("proxy on the way to the api: %w", err)
	}
	if via.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: via.Hostname(), RootCAs: p.cfg.APICA,
			MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("proxy on the way to the api: %w", err)
		}
		conn = secure
	}
	if err := tunnel(ctx, conn, via, hostPort(p.cfg.APIRoot)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("proxy on the way to the api: %w", err)
	}
	return conn, nil
}

// tunnel asks an HTTP proxy for a connection to target (RFC 9110 section 9.3.6).
func tunnel(ctx context.Context, conn net.Conn, via *url.URL, target string) error {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
		defer conn.SetDeadline(time.Time{})
	}
	stop := context.AfterFunc(ctx, routine.Safe(func() { conn.SetDeadline(time.Unix(1, 0)) }))
	defer stop()
	request := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if via.User != nil {
		password, _ := via.User.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(via.User.Username() + ":" + password))
		request += "Proxy-Authorization: Basic " + credentials + "\r\n"
	}
	if _, err := conn.Write([]byte(request + "\r\n")); err != nil {
		return err
	}
	// The server at the other end does not speak first, so reading ahead loses none of its data.
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	// The response's body is the tunnel.
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s", resp.Status)
	}
	return nil
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// checkAddress checks an address after DNS resolution, before it is dialled.
func (p *pool) checkAddress(address string) error {
	addrPort, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("api address %q: %w", address, err)
	}
	addr := addrPort.Addr().Unmap().WithZone("")
	host := p.cfg.APIRoot.Hostname()
	_, notLiteral := netip.ParseAddr(host)
	switch {
	case addr.IsUnspecified() || addr.IsMulticast():
		return fmt.Errorf("api resolves to %s, which is not a unicast address", addr)
	case notLiteral == nil:
		return nil
	case addr.IsLoopback() && !loopbackName(host):
		return fmt.Errorf("api %q resolves to the loopback address %s", host, addr)
	case addr.IsLinkLocalUnicast():
		return fmt.Errorf("api %q resolves to the link-local address %s", host, addr)
	case !addr.IsLoopback() && p.tls == nil && !p.cfg.InsecureAPI:
		return fmt.Errorf("api %q resolves to %s: plain http is allowed only on loopback", host, addr)
	}
	return nil
}
