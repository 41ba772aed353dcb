package proxy

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// protocol makes one attempt of an exchange with the API, over one connection, in that connection's version of HTTP.
// exchange decides what the API receives, what the step gets back and whether another attempt follows, for all
// versions alike.
type protocol interface {
	// roundTrip sends the request, and delivers each response as it arrives: interim ones through
	// exchange.passInterim, the final one through exchange.deliver. body is the part of the body that is in memory;
	// unless whole is set, exchange.sending reads the rest.
	roundTrip(body []byte, whole bool) error
	// finish waits until the step's body is no longer read, and then returns the connection to the pool or closes it.
	// err is the error of roundTrip.
	finish(err error)
	// failed reports whether a request may be sent again after it failed with err before the API sent any byte of a
	// response.
	failed(err error) repeat
}

// protocolOf returns the protocol of a connection, for one attempt.
func (x *exchange) protocolOf(a *apiConn) protocol {
	if a.h2 != nil {
		x.call.Protocol = "2"
		return &http2Exchange{exchange: x, a: a, began: time.Now()}
	}
	x.call.Protocol = "1.1"
	x.http1 = http1Exchange{exchange: x, a: a}
	return &x.http1
}

// attempt uses one connection. It reports whether another may be tried.
func (x *exchange) attempt(a *apiConn, body []byte, whole bool) (again repeat, r *refusal) {
	x.sending = nil
	over := x.protocolOf(a)
	err := over.roundTrip(body, whole)
	over.finish(err)
	if x.sending != nil {
		x.call.Sent = x.sending.sent
	}
	switch {
	case err == nil:
		return never, nil
	case x.sending != nil && x.sending.refusal != nil:
		return never, x.sending.refusal
	case errors.Is(err, errKeyRenewed):
		return withNewKey, nil
	case !x.responded:
		again = over.failed(err)
	}
	if again == once && !x.mayRepeat(a) {
		again = never
	}
	return again, x.fault(err)
}

// mayRepeat reports whether a failed request may be sent again although the API may have processed it: the connection
// had been idle, and the request is idempotent by every method that the API may use for it.
func (x *exchange) mayRepeat(a *apiConn) bool {
	return a.reused && !slices.ContainsFunc(x.methods(), func(m string) bool { return !idempotent(m) })
}

// idempotent lists the methods of RFC 9110 section 9.2.2.
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// pointless returns why waiting for the API has become pointless, or nil. It does not limit the time of a body that is
// being sent, unless the API reads none of it; moved is when the last part of the request was sent.
func (x *exchange) pointless(sending bool, moved time.Time, answered bool) error {
	c := x.c
	switch still := time.Since(moved); {
	case c.p.ctx.Err() != nil:
		return context.Cause(c.p.ctx)
	case sending && still > c.p.cfg.stallTimeout:
		return errTooSlow
	case sending:
		return nil
	case !answered && still > c.p.cfg.ResponseTimeout:
		return errTooSlow
	case c.gone():
		return errClientGone
	}
	return nil
}

// passInterim passes on an interim response, whose head is in c.resp.
func (x *exchange) passInterim() error {
	c := x.c
	x.responded = true
	switch x.interims++; {
	case x.interims > maxInterim:
		return errTooManyInterims
	case c.resp.Status == 101:
		return errSwitching
	case c.req.Minor == 0: // HTTP/1.0 has no interim responses
		return nil
	}
	x.interim = true
	if c.write(x.appendAnswer(nil)) != nil { // c.out may still be read from
		return errClientGone
	}
	return nil
}

// sending is the part of the step's body that was not sent with the head.
type sending struct {
	x       *exchange
	taken   atomic.Bool // all of it was read from the step
	sent    int64
	refusal *refusal // the step's error
}

// read reads a piece of the body. After an error other than io.EOF, refusal says whether the step caused it.
func (s *sending) read(p []byte) (n int, err error) {
	c := s.x.c
	n, err = s.x.body.Read(p)
	s.sent += int64(n)
	switch limit := c.p.cfg.MaxBody; {
	case limit > 0 && s.sent > limit:
		s.refusal = tooLarge(limit)
		return 0, errHalted
	case err != nil && err != io.EOF:
		s.refusal = brokenBody(err)
		return n, err
	}
	if c.body.Done() {
		s.taken.Store(true)
	}
	return n, err
}

// brokenBody returns the response to a body that could not be read to its end.
func brokenBody(err error) *refusal {
	var refused refusedBody
	switch {
	case errors.As(err, &refused):
		return refused.refusal
	case errors.Is(err, h1.ErrMalformed), errors.Is(err, h1.ErrTooLarge), errors.Is(err, h1.ErrTooManyFields):
		return refuse(BadRequest, "request body: "+err.Error())
	case errors.Is(err, errHalted):
		return nil
	case isTimeout(err):
		return refuse(ClientTooSlow, "the request's body did not arrive in time")
	}
	return refuse(ClientGone, errClientGone.Error())
}

// consumed reports whether the request's body has been read completely from the step's connection.
func (x *exchange) consumed() bool { return x.sending == nil || x.sending.taken.Load() }
