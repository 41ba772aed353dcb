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

// protocol takes one attempt of an exchange to the API and back, over one connection, in the version of HTTP that the
// connection speaks. exchange decides what the API gets to see, what the step gets back and whether another attempt
// follows, once for all versions.
type protocol interface {
	// roundTrip sends the request, and has each answer delivered as it arrives: by exchange.passInterim, and the final
	// one by exchange.deliver. body is the part of the body that is in memory; unless whole, exchange.sending reads the
	// rest.
	roundTrip(body []byte, whole bool) error
	// finish returns once the step's body is no longer read, and gives the connection back or closes it. err is the
	// error of roundTrip.
	finish(err error)
	// failed says whether a request that failed with err, and about which the API has not said a byte, may be sent
	// again.
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

// attempt uses one connection. It says whether another may be tried.
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

// mayRepeat says whether a request that failed may be sent again although the API may have processed it: it was on a
// connection that had been idle, and means the same twice whatever method the API takes it for.
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

// pointless says why waiting for the API has become pointless; it is nil while waiting makes sense. A body that is
// being sent is not waited for, unless the API takes nothing of it; moved is when something of the request left last.
func (x *exchange) pointless(sending bool, moved time.Time, answered bool) error {
	c := x.c
	switch still := time.Since(moved); {
	case c.p.ctx.Err() != nil:
		return context.Cause(c.p.ctx)
	case sending && still > c.p.cfg.StallTimeout:
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

// passInterim passes on an answer that a final one follows, whose head is in c.resp.
func (x *exchange) passInterim() error {
	c := x.c
	x.responded = true
	switch x.interims++; {
	case x.interims > maxInterim:
		return errTooManyInterims
	case c.resp.Status == 101:
		return errSwitching
	case c.req.Minor == 0: // HTTP/1.0 knows no interim answers
		return nil
	}
	x.interim = true
	if c.write(x.appendAnswer(nil)) != nil { // c.out may still be read from
		return errClientGone
	}
	return nil
}

// sending is the part of the step's body that did not go with the head, on its way to the API.
type sending struct {
	x       *exchange
	taken   atomic.Bool // all of it was read from the step
	sent    int64
	refusal *refusal // what the step did wrong
}

// read reads a piece of the body. After an error that is not io.EOF, refusal says whether it is the step's fault.
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

// brokenBody is the answer to a body that could not be read to its end.
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

// consumed reports whether nothing of the request's body is left on the step's connection.
func (x *exchange) consumed() bool { return x.sending == nil || x.sending.taken.Load() }
