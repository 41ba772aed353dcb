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

// takeShared reserves a stream for another request on a shared HTTP/2 connection. It removes connections that have
// ended.
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

// share makes a connection that negotiated HTTP/2 available to all exchanges, and reserves one stream for the caller.
func (p *pool) share(ctx context.Context, conn *tls.Conn) (*apiConn, error) {
	transport := &http.Transport{
		DialTLSContext:         func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:              new(http.Protocols),
		DisableCompression:     true, // bodies pass unchanged
		MaxResponseHeaderBytes: maxAnswerHead,
		IdleConnTimeout:        p.cfg.apiIdleTimeout,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: p.cfg.apiIdleTimeout / 2, PingTimeout: p.cfg.dialTimeout, WriteByteTimeout: p.cfg.stallTimeout,
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

// http2Exchange is one attempt over an HTTP/2 connection, which exchanges share. net/http speaks HTTP/2: it takes the
// request as an http.Request, reads the body by itself and returns once the final response has begun. So waiting
// differs from HTTP/1.1; the decisions are the same.
type http2Exchange struct {
	*exchange
	a        *apiConn
	body     *h2Body // nil if the body was in memory
	began    time.Time
	answered atomic.Bool // the final response has begun; begun is not for watch, which runs on another goroutine

	ctx      context.Context // ends what net/http waits for
	cancel   context.CancelCauseFunc
	watching chan struct{} // closed when watch has ended

	mu    sync.Mutex // held by interim, which runs on the connection's goroutine
	final bool       // no interim response may be passed on any more
	unfit error      // the error of an interim response, which net/http hides in its own error
}

// roundTrip implements protocol.
func (w *http2Exchange) roundTrip(body []byte, whole bool) error {
	w.ctx, w.cancel = context.WithCancelCause(w.c.p.ctx)
	w.watching = make(chan struct{})
	req := w.request(body, whole)
	routine.Go(func() {
		defer close(w.watching)
		w.watch()
	})
	err := w.answer(req)
	if cause := context.Cause(w.ctx); err != nil && cause != nil && !errors.Is(err, errKeyRenewed) {
		return cause // net/http says "canceled"
	}
	return err
}

// finish implements protocol. The connection stays shared, and net/http manages it.
func (w *http2Exchange) finish(error) {
	if w.body != nil {
		w.body.stop()
	}
	w.cancel(nil)
	<-w.watching
}

// failed implements protocol. Over HTTP/2 the API can say that it did not process a request; HTTP/1.1 has no means for
// that.
func (w *http2Exchange) failed(err error) repeat {
	switch {
	case err == context.Cause(w.ctx): // we gave up
		return never
	case unprocessedOverHTTP2(err):
		return unprocessed
	}
	return once
}

func (w *http2Exchange) answer(req *http.Request) error {
	resp, err := w.a.h2.RoundTrip(req)
	unfit := w.finishInterims()
	if err != nil {
		return cmp.Or(unfit, err)
	}
	defer resp.Body.Close()
	w.responded = true
	w.answered.Store(true)
	w.fillAnswer(resp.StatusCode, resp.Header)
	c := w.c
	switch {
	case string(c.req.Method) == "HEAD" || resp.StatusCode == 204 || resp.StatusCode == 304:
		c.resp.Framing = h1.NoBody
	case resp.ContentLength >= 0:
		c.resp.Framing, c.resp.Length = h1.Length, resp.ContentLength
	default:
		c.resp.Framing = h1.UntilClose
	}
	done := c.resp.Framing == h1.NoBody || resp.ContentLength == 0
	return w.deliver(&h2Answer{resp: resp, left: resp.ContentLength, done: done})
}

// fillAnswer fills c.resp with the head of an HTTP/2 response. Its fields are sorted by name, because their original
// order is unknown.
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
	slices.SortStableFunc(fields[start:], func(a,
		b h1.Field) int {
		return strings.Compare(string(a.Name), string(b.Name))
	})
	return fields
}

// request returns the request with the fields that appendRequest would write, in the form of net/http: by name,
// without their order.
func (w *http2Exchange) request(body []byte, whole bool) *http.Request {
	c, root := w.c, w.c.p.cfg.APIRoot
	trace := &httptrace.ClientTrace{Got1xxResponse: w.interim}
	req := &http.Request{
		Method: w.call.Method,
		URL:    &url.URL{Scheme: "https", Host: root.Host, Opaque: string(w.appendTarget(nil))},
		Host:   root.Host,
		Header: w.header(),
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
		w.body = &h2Body{sending: sending{x: w.exchange}, trailer: req.Trailer, moved: w.began}
		w.sending, req.Body = &w.body.sending, w.body
	}
	return req.WithContext(httptrace.WithClientTrace(w.ctx, trace))
}

func (w *http2Exchange) header() http.Header {
	c, p := w.c, w.c.p
	header := make(http.Header, len(c.req.Fields)+4)
	for _, f := range c.req.Fields {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		switch {
		case requestAction(f.Name) == coding && h1.HasToken(f.Value, "trailers"):
			header[name] = []string{"trailers"}
		case requestAction(f.Name) == byteRange && w.ranged:
			header[name] = []string{string(w.rangeValue(f))}
		case name != "Trailer" && w.passes(f):
			header[name] = append(header[name], string(f.Value))
		}
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // or net/http would send its own
	}
	if w.span.Traceparent != "" {
		header.Set("Traceparent", w.span.Traceparent)
		if w.span.Tracestate != "" {
			header.Set("Tracestate", w.span.Tracestate)
		}
	}
	header.Set("Accept-Encoding", "identity")
	header.Set("X-Api-Key", w.key)
	header.Set("X-Business-Id", p.cfg.BusinessID)
	header.Set("X-User-Id", p.cfg.UserID)
	return header
}

// announcedTrailers returns the trailers that the request announces; over HTTP/2, net/http sends no others.
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

// interim is called by net/http for each interim response.
func (w *http2Exchange) interim(status int, header textproto.MIMEHeader) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.final && w.unfit == nil {
		w.fillAnswer(status, http.Header(header))
		w.unfit = w.passInterim()
	}
	return w.unfit
}

// finishInterims waits until an interim response has been passed on, and returns the error of an invalid one.
func (w *http2Exchange) finishInterims() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.final = true
	return w.unfit
}

// watch ends an exchange that has become pointless. Unlike http1Exchange, it has no waiting read that could call wake.
func (w *http2Exchange) watch() {
	look := time.NewTicker(tick)
	defer look.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-look.C:
		}
		sending, moved := w.body.progress(w.began)
		if err := w.pointless(sending, moved, w.answered.Load()); err != nil {
			w.cancel(err)
		}
	}
}

// h2Body is the step's body for an HTTP/2 stream. net/http reads it on its own goroutine.
type h2Body struct {
	sending
	trailer http.Header

	reading sync.Mutex // held while reading from the step, by sending.read too
	stopped bool

	mu    sync.Mutex
	over  bool // the body may no longer use the step's connection
	ended bool
	busy  bool      // a read from the step is in progress
	moved time.Time // when the API last read some of the body
}

// progress reports whether the body is still being sent, and the time of the last progress.
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
	b.note(true, false)
	n, err := b.read(p)
	if err == io.EOF {
		b.fillTrailer()
	}
	b.note(false, err != nil || b.x.body.Done())
	return n, err
}

// fillTrailer leaves out trailers that were not announced: net/http has sent their names with the head.
func (b *h2Body) fillTrailer() {
	for _, f := range b.x.c.body.Trailer() {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		if _, announced := b.trailer[name]; announced {
			b.trailer[name] = append(b.trailer[name], string(f.Value))
		}
	}
}

// Close implements io.Closer for net/http. It ends the body and waits for a Read in progress.
func (b *h2Body) Close() error {
	b.note(false, true)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.taken.Load() {
		b.x.c.stopReading()
	}
	return nil
}

// stop ends reading from the step, and returns when the reader has ended. The unread rest stays on the connection.
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

// h2Answer is the body of an HTTP/2 response.
type h2Answer struct {
	resp *http.Response
	left int64 // negative if the length is unknown
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
