package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// conn is one connection of the step, served by one goroutine. Only its buffers outlive a request.
type conn struct {
	p  *Proxy
	nc net.Conn
	rd *h1.Reader

	trusted atomic.Bool // has presented the capability
	idle    atomic.Bool // waits between two requests
	halt    atomic.Bool // reading must stop, see stopReading
	api     atomic.Pointer[apiConn]

	phase      phase
	readArmed  time.Time // deadlines that are set
	writeArmed time.Time

	req      h1.Request
	body     h1.Body
	resp     h1.Response
	respBody h1.Body
	names    [][]byte // fields that Connection names
	out      []byte   // bytes to write next
}

// phase decides how long a read may wait for the step.
type phase uint8

const (
	betweenRequests phase = iota
	inHead
	inBody
)

var (
	errHalted     = errors.New("reading was stopped")
	errClientGone = errors.New("the caller closed the connection")
	errTooSlow    = errors.New("no answer in time")

	errTooManyInterims = errors.New("too many interim answers")
	errSwitching       = errors.New("it switches protocols without a request to do so") // RFC 9113 section 8.6
)

func newConn(p *Proxy, nc net.Conn) *conn {
	c := &conn{p: p, nc: nc}
	c.rd = h1.NewReader(c)
	return c
}

// serve answers one request after the other.
func (c *conn) serve() {
	defer c.p.forget(c)
	defer c.nc.Close()
	for c.next() {
		if keep := c.serveOne(); keep {
			continue
		}
		if !c.body.Done() {
			c.linger()
		}
		return
	}
}

// next waits for the first byte of a request. It returns false if the connection must be closed.
func (c *conn) next() bool {
	c.phase = betweenRequests
	if c.rd.Buffered() > 0 {
		return true // its response will announce that it is the last
	}
	c.arm(c.p.cfg.idleTimeout)
	c.idle.Store(true)
	defer c.idle.Store(false)
	// Shutdown sets draining before it reads idle, so one side always notices the other.
	return !c.p.draining.Load() && c.rd.Wait() == nil
}

// endIfIdle wakes a connection that is waiting for a request.
func (c *conn) endIfIdle() {
	if c.idle.Load() {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// cut closes the connection and ends all its waits.
func (c *conn) cut() {
	c.nc.Close()
	c.cutAPI()
}

// cutAPI ends a wait for the API over HTTP/1.1. Over HTTP/2, the exchange watches Proxy.ctx.
func (c *conn) cutAPI() {
	if a := c.api.Load(); a != nil {
		a.Close()
	}
}

// Read implements io.Reader for the parser, with the deadline of the phase.
func (c *conn) Read(p []byte) (int, error) {
	switch c.phase {
	case inHead:
		// One deadline for the whole head, however slowly it arrives.
	case inBody:
		c.arm(c.p.cfg.stallTimeout)
	}
	if c.halt.Load() {
		return 0, errHalted
	}
	n, err := c.nc.Read(p)
	if err != nil && c.halt.Load() {
		err = errHalted
	}
	return n, err
}

// arm sets the read deadline, unless the current one is close enough.
func (c *conn) arm(timeout time.Duration) {
	now := time.Now()
	if left := c.readArmed.Sub(now); left < timeout*3/4 || left > timeout {
		c.readArmed = now.Add(timeout)
		c.nc.SetReadDeadline(c.readArmed)
	}
}

// enterHead starts the clock for a request's head.
func (c *conn) enterHead(now time.Time) {
	c.phase = inHead
	if c.rd.HeadComplete() {
		return
	}
	c.readArmed = now.Add(c.p.cfg.headerTimeout)
	c.nc.SetReadDeadline(c.readArmed)
}

// stopReading makes a blocked Read on another goroutine fail, and every later Read.
func (c *conn) stopReading() {
	c.halt.Store(true)
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// resumeReading undoes stopReading. No other goroutine may be reading.
func (c *conn) resumeReading() {
	c.halt.Store(false)
	c.readArmed = time.Time{}
}

// write sends to the step. An error means that the step has closed the connection or does not read.
func (c *conn) write(p []byte) error {
	c.armWrite()
	_, err := c.nc.Write(p)
	return err
}

// writePiece sends a response's head, if it is still unsent, and a piece of its body.
func (c *conn) writePiece(head, piece []byte) error {
	switch {
	case len(piece) == 0 && len(head) == 0:
		return nil
	case len(head) == 0:
		return c.write(piece)
	case len(piece) <= joinSize:
		c.out = append(head, piece...)
		return c.write(c.out)
	}
	c.armWrite()
	both := net.Buffers{head, piece}
	_, err := both.WriteTo(c.nc)
	return err
}

// responseGrace is how long after the execution's deadline a final response may still be written.
const responseGrace = time.Second

// armWrite sets the write deadline, unless the current one is close enough.
func (c *conn) armWrite() {
	now, timeout := time.Now(), c.p.cfg.stallTimeout
	if end := c.p.cfg.Deadline; !end.IsZero() {
		timeout = min(timeout, max(end.Sub(now), 0)+responseGrace)
	}
	if left := c.writeArmed.Sub(now); left < timeout*3/4 || left > timeout {
		c.writeArmed = now.Add(timeout)
		c.nc.SetWriteDeadline(c.writeArmed)
	}
}

// gone reports whether the step closed its connection.
func (c *conn) gone() bool {
	if c.rd.Buffered() > 0 {
		return false
	}
	n, err := peek(c.nc)
	return n == 0 && (err == nil || !isAgain(err))
}

const (
	lingerBytes = 256 << 10
	lingerTime  = time.Second
)

// linger briefly reads what the step still sends, because closing with unread bytes would reset the connection, and the
// step might lose the response.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	io.Copy(io.Discard, io.LimitReader(c.nc, lingerBytes))
}
