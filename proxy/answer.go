package proxy

import (
	"context"
	"io"
	"strconv"
	"sync"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// answerBody is the body of a response over either protocol.
type answerBody interface {
	io.Reader
	Done() bool      // all of it was read
	Available() bool // Read would return without waiting for the API
	Trailer() []h1.Field
}

// deliver passes on the final response, whose head is in c.resp.
func (x *exchange) deliver(body answerBody) error {
	c := x.c
	if x.renewKey() {
		return errKeyRenewed
	}
	if err := x.narrow(); err != nil {
		return err
	}
	body, err := x.decode(body)
	if err != nil {
		return err
	}
	if !x.consumed() || c.p.draining.Load() || c.req.Minor == 0 {
		x.closing = true
	}
	if c.p.ctx.Err() != nil {
		return context.Cause(c.p.ctx) // while a refusal can still be sent
	}
	c.out = x.appendAnswer(c.out[:0])
	x.begun, x.call.Status = true, c.resp.Status
	return x.copyBody(body)
}

// appendAnswer writes the head of the step's response.
func (x *exchange) appendAnswer(b []byte) []byte {
	c := x.c
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(c.resp.Status), 10)
	b = append(b, ' ')
	if !x.scanner.Contains(c.resp.Reason) {
		b = append(b, c.resp.Reason...)
	}
	b = append(b, "\r\n"...)

	// A response to HEAD and a 304 have no body, but may have its length (RFC 9110 section 8.6).
	noBody, framed := c.resp.Framing == h1.NoBody && !c.resp.Interim() && c.resp.Status != 204, false
	c.names = connectionNames(c.names, c.resp.Fields)
	for _, f := range c.resp.Fields {
		if x.scanner.Contains(f.Value) || x.scanner.ContainsName(f.Name) {
			continue
		}
		switch responseAction(f.Name) {
		case framing:
			if !framed {
				before := len(b)
				b = c.appendFraming(b, f, &c.resp.Head, noBody)
				framed = len(b) > before
			}
		case location:
			b = appendField(b, f.Name, x.localLocation(f.Value))
		case pass:
			if !named(c.names, f.Name) {
				b = appendField(b, f.Name, f.Value)
			}
		}
	}
	if !c.resp.Interim() {
		if c.resp.Framing == h1.UntilClose && c.req.Minor > 0 {
			b = append(b, "Transfer-Encoding: chunked\r\n"...)
		}
		if x.closing {
			b = append(b, "Connection: close\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

const (
	copySize    = 32 << 10 // larger copies are slower, because they exceed the processor's cache
	chunkPrefix = 16       // room for a chunk's size and its CRLF
	chunkSuffix = 2
	history     = keyscan.MinPending - 1 // sent bytes that may be the beginning of the key; fits into chunkPrefix
	joinSize    = 16 << 10               // maximal size of a piece of the body that is copied after the head to save a write
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// copyBody delivers the response's head, which is in c.out, and its body. It writes everything that has arrived at
// once, and delays only bytes that may be the beginning of our key.
func (x *exchange) copyBody(body answerBody) error {
	c := x.c
	chunked := c.req.Minor > 0 && (c.resp.Framing == h1.Chunked || c.resp.Framing == h1.UntilClose)
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	// held bytes wait at buf[chunkPrefix]; the sent bytes before them have been written, and are only scanned
	// again.
	head, held, sent := c.out, 0, 0
	for {
		if len(head) == 0 && c.p.ctx.Err() != nil {
			return context.Cause(c.p.ctx)
		}
		if len(head) > 0 && !body.Available() {
			if c.write(head) != nil {
				return errClientGone
			}
			head = nil
		}
		n, err := gather(body, buf[chunkPrefix+held:copySize-chunkSuffix])
		x.call.Received += int64(n)
		data := buf[chunkPrefix-sent : chunkPrefix+held+n]
		x.scanner.Mask(data)
		ended := err == io.EOF || err == nil && body.Done()
		fresh, pending := held+n, 0
		if !ended && err == nil {
			pending = x.scanner.Pending(data)
		}
		held = min(pending, fresh)
		sent = max(pending, min(history, len(data))) - held
		var kept [keyscan.MaxForm]byte
		copy(kept[:], data[len(data)-held-sent:])
		if c.writePiece(head, x.frame(buf, fresh-held, chunked, ended, body)) != nil {
			return errClientGone
		}
		head = nil
		if ended {
			return nil
		}
		if err != nil {
			return err
		}
		copy(buf[chunkPrefix-sent:], kept[:sent+held])
	}
}

// gather reads the bytes that have arrived, and waits only if none have.
func gather(body answerBody, p []byte) (n int, err error) {
	for {
		m, err := body.Read(p[n:])
		n += m
		if err != nil || body.Done() || n == len(p) || !body.Available() {
			return n, err
		}
	}
}

// frame returns the bytes to write for n bytes at buf[chunkPrefix].
func (x *exchange) frame(buf *[copySize]byte, n int, chunked, ended bool, body answerBody) []byte {
	if x.trimming {
		n = x.window.trim(buf[chunkPrefix : chunkPrefix+n])
	}
	piece := buf[chunkPrefix : chunkPrefix+n]
	if !chunked {
		return piece
	}
	if n > 0 {
		piece = frameChunk(buf[:], n)
	}
	if ended {
		piece = x.appendLastChunk(piece, body.Trailer()) // the rest of buf is free
	}
	return piece
}

// appendLastChunk ends a chunked body, with the API's trailers.
func (x *exchange) appendLastChunk(b []byte, trailers []h1.Field) []byte {
	b = append(b, "0\r\n"...)
	for _, f := range trailers {
		if responseAction(f.Name) == pass && !x.scanner.Contains(f.Value) && !x.scanner.ContainsName(f.Name) {
			b = appendField(b, f.Name, f.Value)
		}
	}
	return append(b, "\r\n"...)
}

// frameChunk frames n bytes at buf[chunkPrefix] as a chunk, in place.
func frameChunk(buf []byte, n int) []byte {
	var size [chunkPrefix]byte
	head := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	start := chunkPrefix - len(head)
	copy(buf[start:], head)
	copy(buf[chunkPrefix+n:], "\r\n")
	return buf[start : chunkPrefix+n+chunkSuffix]
}
