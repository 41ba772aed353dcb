package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// takeShared returns an HTTP/2 connection on which another request can begin, reserved for it. Connections that have
// ended are forgotten.
func (p *pool) takeShared() *http.ClientConn {
	if p.tls == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared = slices.DeleteFunc(p.shared, func(cc *http.ClientConn) bool { return cc.Err() != nil })
	for _, cc := range p.shared {
		if cc.Reserve() == nil {
			return cc
		}
	}
	return nil
}

// share makes a connection that negotiated HTTP/2 available to every exchange, and returns it reserved for one.
func (p *pool) share(ctx context.Context, conn *tls.Conn) (*apiConn, error) {
	transport := &http.Transport{
		DialTLSContext:         func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:              new(http.Protocols),
		DisableCompression:     true, // bodies pass as they are
		MaxResponseHeaderBytes: maxAnswerHead,
		IdleConnTimeout:        p.cfg.APIIdleTimeout,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: p.cfg.APIIdleTimeout / 2, PingTimeout: p.cfg.DialTimeout, WriteByteTimeout: p.cfg.StallTimeout,
			MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 16 << 20,
		},
	}
	transport.Protocols.SetHTTP2(true)
	cc, err := transport.NewClientConn(ctx, "https", hostPort(p.cfg.APIRoot))
	if err == nil {
		err = cc.Reserve()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.shared = append(p.shared, cc)
	}
	p.mu.Unlock()
	if closed {
		cc.Close()
		return nil, errShutdown
	}
	return &apiConn{h2: cc}, nil
}

// h2Exchange is what an exchange over HTTP/2 has beside the exchange itself.
type h2Exchange struct {
	*exchange
	body     *h2Body // nil when it was in memory
	began    time.Time
	answered atomic.Bool // the final answer has begun

	mu       sync.Mutex // held by interim, which runs on the connection's goroutine
	settled  bool       // no interim answer may be passed on any more
	interims int
	unfit    error // what was wrong with an interim answer: net/http hides it in an error of its own
}

// exchangeOverHTTP2 is exchangeOn for a connection of HTTP/2. The body is what went into memory, when whole.
func (x *exchange) exchangeOverHTTP2(a *apiConn, body []byte, whole bool) (again repeat, r *refusal) {
	ctx, cancel := context.WithCancelCause(x.c.p.ctx)
	h := &h2Exchange{exchange: x, began: time.Now()}
	x.h2 = h
	req := h.request(ctx, body, whole)
	watching := make(chan struct{})
	routine.Go(func() {
		defer close(watching)
		h.watch(ctx, cancel)
	})
	err := h.roundTrip(a, req)
	if h.body != nil {
		h.body.stop()
		x.call.Sent = h.body.sent
	}
	cause := context.Cause(ctx)
	cancel(nil)
	<-watching
	switch {
	case err == nil:
		return never, nil
	case h.body != nil && h.body.refusal != nil:
		return never, h.body.refusal
	case errors.Is(err, errKeyRenewed):
		return withNewKey, nil
	case cause != nil:
		return never, x.fault(cause)
	case !x.heard && unprocessedOverHTTP2(err):
		return unprocessed, x.faultOverHTTP2(err)
	}
	return x.mayRepeat(a), x.faultOverHTTP2(err)
}

// faultOverHTTP2 words an error of net/http, which quotes neither headers nor bodies.
func (x *exchange) faultOverHTTP2(err error) *refusal {
	switch {
	case errors.Is(err, errClientGone):
		return refuse(ClientGone, err.Error())
	case errors.Is(err, errTooManyInterims), errors.Is(err, errSwitching), unscannable(err):
		return refuse(BadAnswer, "the api's answer could not be read: "+err.Error())
	case x.begun:
		return refuse(APIBroke, "the api ended its answer early: "+err.Error())
	case isTimeout(err):
		return refuse(APITooSlow, "the api did not answer in time")
	}
	return refuse(APIUnreachable, "the request to the api failed: "+err.Error())
}

func (h *h2Exchange) roundTrip(a *apiConn, req *http.Request) error {
	resp, err := a.h2.RoundTrip(req)
	unfit := h.settle()
	if err != nil {
		return cmp.Or(unfit, err)
	}
	defer resp.Body.Close()
	h.heard = true
	h.answered.Store(true)
	h.fillAnswer(resp.StatusCode, resp.Header)
	c := h.c
	switch {
	case string(c.req.Method) == "HEAD" || resp.StatusCode == 204 || resp.StatusCode == 304:
		c.resp.Framing = h1.NoBody
	case resp.ContentLength >= 0:
		c.resp.Framing, c.resp.Length = h1.Length, resp.ContentLength
	default:
		c.resp.Framing = h1.UntilClose
	}
	done := c.resp.Framing == h1.NoBody || resp.ContentLength == 0
	return h.deliver(&h2Answer{resp: resp, left: resp.ContentLength, done: done})
}

// fillAnswer makes c.resp the head of an HTTP/2 answer. Its fields are in the order of their names, since theirs is
// not known.
func (x *exchange) fillAnswer(status int, header http.Header) {
	c := x.c
	c.resp = h1.Response{Status: status, Reason: []byte(http.StatusText(status)), Head: h1.Head{Fields: c.resp.Fields[:0]}}
	c.resp.Fields = appendFields(c.resp.Fields, header)
}

func appendFields(fields []h1.Field, header http.Header) []h1.Field {
	start := len(fields)
	for name, values := range header {
		for _, value := range values {
			fields = append(fields, h1.Field{Name: []byte(name), Value: []byte(value)})
		}
	}
	slices.SortStableFunc(fields[start:], func(a, b h1.Field) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return fields
}

// request is the request with the fields that appendRequest would write.
func (h *h2Exchange) request(ctx context.Context, body []byte, whole bool) *http.Request {
	c, root := h.c, h.c.p.cfg.APIRoot
	trace := &httptrace.ClientTrace{Got1xxResponse: h.interim}
	req := &http.Request{
		Method: h.call.Method,
		URL:    &url.URL{Scheme: "https", Host: root.Host, Opaque: string(h.appendTarget(nil))},
		Host:   root.Host,
		Header: h.header(),
	}
	switch {
	case whole && len(body) > 0:
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(string(body))), int64(len(body))
	case !whole:
		req.Trailer = c.announcedTrailers()
		req.ContentLength = -1
		if c.req.Framing == h1.Length {
			req.ContentLength = c.req.Length
		}
		h.body = &h2Body{x: h.exchange, trailer: req.Trailer, moved: h.began}
		req.Body = h.body
	}
	return req.WithContext(httptrace.WithClientTrace(ctx, trace))
}

func (h *h2Exchange) header() http.Header {
	c, p := h.c, h.c.p
	header := make(http.Header, len(c.req.Fields)+4)
	for _, f := range c.req.Fields {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		switch {
		case requestAction(f.Name) == coding && h1.HasToken(f.Value, "trailers"):
			header[name] = []string{"trailers"}
		case requestAction(f.Name) == byteRange && h.ranged:
			header[name] = []string{string(h.rangeValue(f))}
		case name != "Trailer" && h.passes(f):
			header[name] = append(header[name], string(f.Value))
		}
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // or net/http would send its own
	}
	if h.span.Traceparent != "" {
		header.Set("Traceparent", h.span.Traceparent)
		if h.span.Tracestate != "" {
			header.Set("Tracestate", h.span.Tracestate)
		}
	}
	header.Set("Accept-Encoding", "identity")
	header.Set("X-Api-Key", h.key)
	header.Set("X-Business-Id", p.cfg.BusinessID)
	header.Set("X-User-Id", p.cfg.UserID)
	return header
}

// announcedTrailers are the trailers that the request promises: over HTTP/2, net/http sends no others.
func (c *conn) announcedTrailers() http.Header {
	var trailers http.Header
	for _, f := range c.req.Fields {
		if !h1.EqualFold(f.Name, "trailer") {
			continue
		}
		for name := range h1.Tokens(f.Value) {
			if h1.ValidName(name) && requestAction(name) == pass {
				if trailers == nil {
					trailers = http.Header{}
				}
				trailers[textproto.CanonicalMIMEHeaderKey(string(name))] = nil
			}
		}
	}
	return trailers
}

// interim passes on an answer that a final one follows.
func (h *h2Exchange) interim(status int, header textproto.MIMEHeader) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = true
	switch h.interims++; {
	case h.interims > maxInterim:
		h.unfit = errTooManyInterims
	case status == http.StatusSwitchingProtocols:
		h.unfit = errSwitching
	}
	if h.unfit != nil {
		return h.unfit
	}
	if h.settled || h.c.req.Minor == 0 {
		return nil
	}
	h.fillAnswer(status, http.Header(header))
	h.exchange.interim = true
	if h.c.write(h.appendAnswer(nil)) != nil {
		h.unfit = errClientGone
	}
	return h.unfit
}

// settle waits for an interim answer that is being passed on, and returns what was wrong with one.
func (h *h2Exchange) settle() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled = true
	return h.unfit
}

// watch ends an exchange that has become pointless, as exchange.wake does over HTTP/1.1.
func (h *h2Exchange) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	cfg := &h.c.p.cfg
	look := time.NewTicker(tick)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		uploading, moved := h.body.progress(h.began)
		switch still := time.Since(moved); {
		case uploading && still > cfg.StallTimeout: // the API takes nothing
			cancel(errTooSlow)
		case uploading:
		case !h.answered.Load() && still > cfg.ResponseTimeout:
			cancel(errTooSlow)
		case h.c.gone():
			cancel(errClientGone)
		}
	}
}

// h2Body is the step's body on its way into an HTTP/2 stream, read by net/http on a goroutine of its own.
type h2Body struct {
	x       *exchange
	trailer http.Header
	taken   atomic.Bool // all of it was read from the step

	reading sync.Mutex // held while reading from the step
	stopped bool
	sent    int64
	refusal *refusal

	mu    sync.Mutex
	over  bool // the step's connection is no longer ours
	ended bool
	busy  bool      // the step is waited for
	moved time.Time // when the API took something last
}

// progress reports whether the body is still being sent, and since when nothing has moved.
func (b *h2Body) progress(began time.Time) (uploading bool, moved time.Time) {
	if b == nil {
		return false, began
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy {
		return true, time.Now()
	}
	return !b.ended, b.moved
}

func (b *h2Body) note(busy, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy, b.ended, b.moved = busy, b.ended || ended, time.Now()
}

// Read implements io.Reader for net/http.
func (b *h2Body) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.stopped {
		return 0, errHalted
	}
	c := b.x.c
	b.note(true, false)
	n, err := b.x.body.Read(p)
	b.sent += int64(n)
	limit := c.p.cfg.MaxBody
	switch {
	case limit > 0 && b.sent > limit:
		b.refusal = tooLarge(limit)
		n, err = 0, errHalted
	case err == io.EOF:
		b.fillTrailer()
	case err != nil:
		b.refusal = brokenBody(err)
	}
	if c.body.Done() {
		b.taken.Store(true)
	}
	b.note(false, err != nil || b.x.body.Done())
	return n, err
}

func (b *h2Body) fillTrailer() {
	for _, f := range b.x.c.body.Trailer() {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		if _, announced := b.trailer[name]; announced {
			b.trailer[name] = append(b.trailer[name], string(f.Value))
		}
	}
}

// Close implements io.Closer for net/http, which needs no more of the body, and waits for a Read that is under way.
func (b *h2Body) Close() error {
	b.note(false, true)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.taken.Load() {
		b.x.c.stopReading()
	}
	return nil
}

// stop ends reading from the step, and returns when the reader has ended. What was not read is left on the connection.
func (b *h2Body) stop() {
	c := b.x.c
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	if !b.taken.Load() {
		c.stopReading()
	}
	b.reading.Lock()
	defer b.reading.Unlock()
	b.stopped = true
	c.resumeReading()
}

// h2Answer is the body of an HTTP/2 answer.
type h2Answer struct {
	resp *http.Response
	left int64 // negative where the length is not known
	done bool
}

func (b *h2Answer) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	n, err := b.resp.Body.Read(p)
	b.left -= int64(n)
	b.done = err == io.EOF || b.left == 0
	return n, err
}

func (b *h2Answer) Done() bool      { return b.done }
func (b *h2Answer) Available() bool { return b.done }

func (b *h2Answer) Trailer() []h1.Field { return appendFields(nil, b.resp.Trailer) }
