package proxy

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

func listenLoopback(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", address, err)
	}
	if !loopbackName(host) {
		return nil, fmt.Errorf("listen address %q is not on loopback; use 127.0.0.1", address)
	}
	return net.Listen("tcp", address)
}

// acceptedHosts returns the values of Host that address this proxy. Any other value may be a name that an attacker's
// DNS resolves to this address.
func acceptedHosts(address string) []string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return []string{address}
	}
	hosts := []string{address, "localhost:" + port}
	if port == "80" {
		for _, h := range hosts {
			hosts = append(hosts, strings.TrimSuffix(h, ":80"))
		}
	}
	return hosts
}

// hostIsOurs reports whether a Host field's value addresses this proxy.
func (p *Proxy) hostIsOurs(host []byte) bool {
	if string(host) == p.addr {
		return true
	}
	for _, h := range p.hosts {
		if strings.EqualFold(string(host), h) {
			return true
		}
	}
	// Any loopback address with our port is this proxy: 127.0.0.1, 127.1.2.3, [::1].
	given, err := netip.ParseAddrPort(string(host))
	ours, err2 := netip.ParseAddrPort(p.addr)
	return err == nil && err2 == nil && given.Addr().IsLoopback() && given.Port() == ours.Port()
}

// stripCapability removes the capability segment from a path. The comparison takes constant time.
func (p *Proxy) stripCapability(path []byte) ([]byte, bool) {
	if p.capability == "" {
		return path, true
	}
	path = path[1:]
	rest := []byte{}
	for i, c := range path {
		if c == '/' {
			path, rest = path[:i], path[i:]
			break
		}
	}
	return rest, subtle.ConstantTimeCompare(path, []byte(p.capability)) == 1
}

// accept serves connections until the listener is closed.
func (p *Proxy) accept() {
	for {
		nc, err := p.listener.Accept()
		switch {
		case err == nil:
			p.admit(nc)
		case errors.Is(err, net.ErrClosed) || p.draining.Load():
			return
		default: // out of descriptors, or the connection was aborted in the queue
			p.cfg.Logger.Warn("could not accept a connection", "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-p.ctx.Done():
				return
			}
		}
	}
}

// sendBuffer is the size in bytes of the kernel's buffer for data that the step has not read yet. Without a limit, it
// grows to some megabytes for each connection, which count towards no limit of the step. On one machine, a larger
// buffer is not faster.
const sendBuffer = 128 << 10

// admit starts serving a connection. If there are too many, it closes one that has not presented the capability, so
// that other processes cannot lock out the step. If all have presented it, admit refuses the new one.
func (p *Proxy) admit(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // best effort: it only limits memory
	}
	c := newConn(p, nc)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) >= p.cfg.maxConns && !p.evictStranger() {
		nc.Close()
		return
	}
	p.conns[c] = struct{}{}
	p.wait.Go(c.serve)
}

func (p *Proxy) evictStranger() bool {
	for c := range p.conns {
		if !c.trusted.Load() {
			c.cut()
			delete(p.conns, c)
			return true
		}
	}
	return false
}

func (p *Proxy) forget(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) eachConn(do func(*conn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		do(c)
	}
}
