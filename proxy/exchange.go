package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// The limits of a response's head. The API is trusted, but must not exhaust our memory.
const (
	maxAnswerHead   = 256 << 10
	maxAnswerFields = 512
	maxInterim      = 16
)

// exchange is one request and its response.
type exchange struct {
	c    *conn
	call Call
	key  string
	span Span

	scanner  *keyscan.Scanner // finds key in the API's responses
	window   *window          // the requested range of bytes; nil without one
	ranged   bool             // the request's Range goes to the API
	trimming bool             // the response's body is larger than the window

	path, query []byte        // relative to the API root, as sent; query with its "?"
	body        stepBody      // the part of the body that was not sent with the head
	sending     *sending      // nil if the whole body was sent with the head
	http1       http1Exchange // used over HTTP/1.1; here it needs no allocation
	interims    int           // the number of interim responses
	responded   bool          // the API has sent a response, at least an interim one
	begun       bool          // the final response's head was sent to the step
	closing     bool          // the step's connection ends with this response
	whole       bool          // the body was sent with the head
	interim     bool          // an interim response was passed on
	renewed     bool          // a new key was requested
}

// serveOne serves one request and reports whether another may follow on the connection.
func (c *conn) serveOne() (keep bool) {
	x := exchange{c: c, call: Call{Start: time.Now()}}
	c.enterHead(x.call.Start)
	c.body.Reset(c.rd, &h1.Head{Framing: h1.UntilClose}, false)
	err := c.rd.ReadRequest(&c.req, c.p.cfg.maxHeaderBytes, c.p.cfg.maxHeaders)
	if err != nil {
		r := unreadable(err)
		if r == nil {
			return false
		}
		c.req.Method, x.closing = nil, true
		x.end(r)
		return false
	}
	c.phase = inBody
	c.body.Reset(c.rd, &c.req.Head, false)
	x.closing = c.req.Close || c.req.Minor == 0
	x.end(x.serve())
	return !x.closing
}

// unreadable returns the response to a head that could not be read, or nil if the connection is closed.
func unreadable(err error) *refusal {
	switch {
	case errors.Is(err, h1.ErrTooLarge), errors.Is(err, h1.ErrTooManyFields):
		return refuse(HeaderTooLarge, err.Error())
	case errors.Is(err, h1.ErrMalformed):
		return refuse(BadRequest, err.Error())
	case isTimeout(err):
		return refuse(ClientTooSlow, "the request's headers did not arrive in time")
	}
	return nil
}

// serve checks a request and forwards it to the API. It returns nil if the API's response was delivered.
func (x *exchange) serve() *refusal {
	p := x.c.p
	if r := x.identify(); r != nil {
		return r
	}
	x.beginSpan()
	defer p.inFlight.Add(-1)
	if p.inFlight.Add(1) > int64(p.cfg.MaxInFlight) {
		return refuse(TooMany, "too many concurrent requests in this execution; wait for one to finish")
	}
	if p.ctx.Err() != nil {
		return x.ended(context.Cause(p.ctx))
	}
	if p.cfg.Audit != nil {
		if err := p.journal.ready(); err != nil {
			return refuse(NoAudit, err.Error())
		}
	}
	if r := x.authorize(); r != nil {
		return r
	}
	if p.cfg.MaxBody > 0 && x.c.req.Framing == h1.Length && x.c.req.Length > p.cfg.MaxBody {
		return tooLarge(p.cfg.MaxBody)
	}
	if r := x.fetchKey(); r != nil {
		return r
	}
	return x.forward()
}

// beginSpan gets the call's trace context. It ignores one that cannot be sent as a header.
func (x *exchange) beginSpan() {
	trace, fields := x.c.p.cfg.Trace, x.c.req.Fields
	if trace == nil {
		return
	}
	span := trace(x.call.Method, x.call.Path,
		string(headerValue(fields, "traceparent")), string(headerValue(fields, "tracestate")))
	x.call.Span = span.Data
	if h1.ValidValue([]byte(span.Traceparent)) && h1.ValidValue([]byte(span.Tracestate)) {
		x.span = span
	}
}

func tooLarge(limit int64) *refusal {
	return refuse(BodyTooLarge, "request body is larger than "+strconv.FormatInt(limit, 10)+" bytes")
}

// identify checks that the request is addressed to this proxy, comes from this execution and stays inside the API root.
func (x *exchange) identify() *refusal {
	c, p := x.c, x.c.p
	target := c.req.Target
	switch {
	case target[0] != '/' || h1.EqualFold(c.req.Method, "connect"):
		return refuse(BadRequest, "request target must be a path")
	case h1.EqualFold(c.req.Method, "trace") || h1.EqualFold(c.req.Method, "track"):
		return refuse(BadRequest, "the method would make the api send our credentials back")
	}
	if c.req.Minor > 0 && !p.hostIsOurs(c.req.Host) {
		return refuse(BadHost, "host is not this proxy")
	}
	path := target
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, x.query = target[:i], target[i:]
	}
	path, ok := p.stripCapability(path)
	if !ok {
		return refuse(Forbidden, "forbidden")
	}
	c.trusted.Store(true)
	x.path = path
	x.call.Method, x.call.Path = methodString(c.req.Method), string(path)
	if len(x.query) > 0 {
		x.call.Query = string(x.query[1:])
	}
	if len(path) == 0 {
		return nil
	}
	if _, err := canonicalPath(path); err != nil {
		return refuse(BadPath, err.Error())
	}
	return nil
}

// methodString avoids an allocation for common methods.
func methodString(method []byte) string {
	switch string(method) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "PATCH":
		return "PATCH"
	case "PUT":
		return "PUT"
	case "DELETE":
		return "DELETE"
	case "HEAD":
		return "HEAD"
	case "OPTIONS":
		return "OPTIONS"
	}
	return string(method)
}

// fetchKey gets the key from the key source, with a timeout.
func (x *exchange) fetchKey() *refusal {
	p := x.c.p
	ctx := newLazyDeadline(p.ctx, p.cfg.keyTimeout)
	defer ctx.release()
	key, err := p.cfg.Keys.Key(ctx)
	switch {
	case err != nil:
		return refuse(NoKey, "no key for the api: "+err.Error())
	case key == "" || !h1.ValidValue([]byte(key)):
		return refuse(NoKey, "no key for the api: the key source returned one that cannot be sent")
	}
	x.key, x.scanner = key, p.scannerOf(key)
	return nil
}

// forward sends the request and delivers the response. It retries if that is safe: once if an idle connection turned
// out dead, and several times while the API reports that it did not process the request.
func (x *exchange) forward() *refusal {
	c, p := x.c, x.c.p
	x.window, x.ranged = windowOf(c.req.Fields)
	c.out = x.appendRequest(c.out[:0])
	head := len(c.out)
	n, whole := c.body.Ready()
	if whole && n > 0 {
		c.out = append(c.out, make([]byte, n)...)
		io.ReadFull(&c.body, c.out[head:]) // it is in memory
		if r := x.body.check(c.out[head:]); r != nil {
			return r
		}
		x.call.Sent = int64(n)
	}
	x.body.source, x.whole = &c.body, whole
	for attempt, repeated := 1, false; ; attempt++ {
		// A request that repeatedly lost the race for a stream gets its own connection.
		a, err := p.pool.get(p.ctx, repeated || attempt > sharedAttempts)
		if err != nil {
			return x.noConnection(err)
		}
		again, r := x.attempt(a, c.out[head:], whole)
		if again == withNewKey {
			if head, r = x.rewrite(head); r != nil {
				return r
			}
			x.body.rewind()
			x.responded = false
			continue
		}
		if again == never || again == once && repeated || attempt == maxAttempts || !x.body.rewind() || !x.pause(attempt) {
			return r
		}
		repeated = repeated || again == once
		x.call.Retried = true
	}
}

func (x *exchange) noConnection(err error) *refusal {
	switch ctx := x.c.p.ctx; {
	case ctx.Err() != nil:
		return x.ended(context.Cause(ctx))
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		return refuse(APITooSlow, "the api could not be connected to in time: "+err.Error())
	}
	return refuse(APIUnreachable, "the api could not be reached: "+err.Error())
}

// ended returns the response after p.ctx has ended.
func (x *exchange) ended(cause error) *refusal {
	if errors.Is(cause, errShutdown) {
		return refuse(ShuttingDown, cause.Error())
	}
	return refuse(PastDeadline, errDeadline.Error())
}

// fault returns the response to a request that failed on the way to the API or back. Errors of net/http quote neither
// headers nor bodies.
func (x *exchange) fault(err error) *refusal {
	switch {
	case errors.Is(err, errClientGone):
		return refuse(ClientGone, err.Error())
	case errors.Is(err, errShutdown), errors.Is(err, errDeadline), x.c.p.ctx.Err() != nil:
		return x.ended(context.Cause(x.c.p.ctx))
	case errors.Is(err, errTooSlow):
		return refuse(APITooSlow, "the api did not answer in time")
	case errors.Is(err, h1.ErrMalformed), errors.Is(err, h1.ErrTooLarge), errors.Is(err, h1.ErrTooManyFields),
		errors.Is(err, errTooManyInterims), errors.Is(err, errSwitching), unscannable(err):
		return refuse(BadAnswer, "the api's answer could not be read: "+err.Error())
	case x.begun:
		return refuse(APIBroke, "the api ended its answer early: "+err.Error())
	case isTimeout(err):
		return refuse(APITooSlow, "the api did not answer in time")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(APIUnreachable, "the api closed the connection without an answer")
	}
	return refuse(APIUnreachable, "the request to the api failed: "+err.Error())
}

// unscannable reports whether a response was refused because it could not be searched for the key.
func unscannable(err error) bool {
	return errors.Is(err, errPartial) || errors.Is(err, errCoding) || errors.Is(err, errCorrupt)
}

// end delivers the refusal, if that is still possible, and records the call.
func (x *exchange) end(r *refusal) {
	c := x.c
	x.call.Outcome = Answered
	if !c.body.Done() || c.p.draining.Load() {
		x.closing = true
	}
	if r != nil {
		x.call.Outcome, x.call.Detail, x.call.Policy = r.outcome, r.detail, r.policy
		switch {
		case x.begun || r.outcome == ClientGone || r.outcome == APIBroke:
			x.closing = true
		default:
			x.call.Status = r.status()
			c.out = r.append(c.out[:0], c.req.Method, x.closing)
			if c.write(c.out) != nil {
				x.closing = true
			}
		}
	}
	if cap(c.out) > 64<<10 {
		c.out = nil
	}
	x.call.Duration = time.Since(x.call.Start)
	c.p.record(x.call)
}

// appendTarget writes the request target: the API root, and the step's path and query byte for byte.
func (x *exchange) appendTarget(b []byte) []byte {
	b = append(append(b, x.c.p.prefix...), x.path...)
	if len(x.c.p.prefix)+len(x.path) == 0 {
		b = append(b, '/')
	}
	return append(b, x.query...)
}

// appendRequest writes the head of the API's request: the step's bytes, except for the fields that the proxy sets.
func (x *exchange) appendRequest(b []byte) []byte {
	c, p := x.c, x.c.p
	b = append(append(b, c.req.Method...), ' ')
	b = append(x.appendTarget(b), " HTTP/1.1\r\n"...)

	c.names = connectionNames(c.names, c.req.Fields)
	for _, f := range c.req.Fields {
		switch requestAction(f.Name) {
		case hostField:
			b = append(append(append(b, f.Name...), ": "...), p.cfg.APIRoot.Host...)
			b = append(b, "\r\n"...)
		case framing:
			b = c.appendFraming(b, f, &c.req.Head, false)
		case coding:
			if h1.HasToken(f.Value, "trailers") {
				b = append(append(b, f.Name...), ": trailers\r\n"...)
			}
		case byteRange:
			if x.ranged {
				b = appendField(b, f.Name, x.rangeValue(f))
			}
		default:
			if x.passes(f) {
				b = appendField(b, f.Name, f.Value)
			}
		}
	}
	if c.req.Host == nil { // HTTP/1.0
		b = append(append(append(b, "Host: "...), p.cfg.APIRoot.Host...), "\r\n"...)
	}
	if x.span.Traceparent != "" {
		b = append(append(append(b, "traceparent: "...), x.span.Traceparent...), "\r\n"...)
		if x.span.Tracestate != "" {
			b = append(append(append(b, "tracestate: "...), x.span.Tracestate...), "\r\n"...)
		}
	}
	b = append(append(b, "Accept-Encoding: identity\r\nX-API-KEY: "...), x.key...)
	b = append(append(b, "\r\nX-BUSINESS-ID: "...), p.cfg.BusinessID...)
	b = append(append(b, "\r\nX-USER-ID: "...), p.cfg.UserID...)
	return append(b, "\r\n\r\n"...)
}

// rangeValue returns the value of a Range that goes to the API.
func (x *exchange) rangeValue(f h1.Field) []byte {
	if x.window == nil {
		return f.Value
	}
	return x.window.appendTo(nil)
}

// passes reports whether a field of the request goes to the API unchanged. It needs c.names.
func (x *exchange) passes(f h1.Field) bool {
	switch requestAction(f.Name) {
	case pass, override:
		return !named(x.c.names, f.Name)
	case trace:
		return x.span.Traceparent == "" && !named(x.c.names, f.Name)
	}
	return false
}

// appendFraming writes a message's framing field as it was parsed.
func (c *conn) appendFraming(b []byte, f h1.Field, h *h1.Head, noBody bool) []byte {
	switch {
	case len(f.Name) == len("content-length") && (h.Framing == h1.Length || noBody):
		return appendField(b, f.Name, f.Value)
	case len(f.Name) == len("transfer-encoding") && h.Framing == h1.Chunked && c.req.Minor > 0:
		return appendField(b, f.Name, []byte("chunked"))
	}
	return b
}

func headerValue(fields []h1.Field, name string) []byte {
	for _, f := range fields {
		if h1.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return nil
}
