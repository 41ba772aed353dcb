package proxy

import (
	"io"
	"strconv"
	"sync"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// readAnswer delivers everything that the API answers, as it arrives.
func (x *exchange) readAnswer(a *apiConn) error {
	c := x.c
	for range maxInterim {
		if err := a.rd.ReadResponse(&c.resp, c.req.Method, maxAnswerHead, maxAnswerFields); err != nil {
			return err
		}
		if !c.resp.Interim() {
			return x.deliver(a)
		}
		if c.resp.Status == 101 {
			return h1.ErrMalformed // nobody asked to switch protocols
		}
		if c.req.Minor == 0 {
			continue
		}
		if c.write(x.appendAnswer(c.out[:0])) != nil {
			return errClientGone
		}
	}
	return h1.ErrMalformed
}

// deliver passes on the final answer.
func (x *exchange) deliver(a *apiConn) error {
	c := x.c
	c.respBody.Reset(a.rd, &c.resp.Head, true)
	if !x.upload.consumed() || c.p.draining.Load() {
		x.closing = true
	}
	if c.req.Minor == 0 {
		x.closing = true
	}
	c.out = x.appendAnswer(c.out[:0])
	x.begun, x.call.Status = true, c.resp.Status
	return x.copyBody()
}

// appendAnswer writes the head that the step gets.
func (x *exchange) appendAnswer(b []byte) []byte {
	c := x.c
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(c.resp.Status), 10)
	b = append(append(append(b, ' '), c.resp.Reason...), "\r\n"...)

	noBody := c.resp.Framing == h1.NoBody
	c.names = connectionNames(c.names, c.resp.Fields)
	for _, f := range c.resp.Fields {
		if x.echoes(f.Value) {
			continue
		}
		switch responseFate(f.Name) {
		case framing:
			b = c.appendFraming(b, f, &c.resp.Head, noBody)
		case location:
			b = appendField(b, f.Name, c.p.localLocation(f.Value))
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
	copySize    = 64 << 10
	chunkPrefix = 16 // room for a chunk's size and its CRLF
	chunkSuffix = 2
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// copyBody delivers the answer's head, which is in c.out, and its body. What has arrived goes out in one write, and
// nothing that has arrived waits for more.
func (x *exchange) copyBody() error {
	c := x.c
	chunked := c.req.Minor > 0 && (c.resp.Framing == h1.Chunked || c.resp.Framing == h1.UntilClose)
	if c.respBody.Available() {
		if done, err := x.copySmall(chunked); done || err != nil {
			return err
		}
	} else if c.write(c.out) != nil {
		return errClientGone
	}
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := c.respBody.Read(buf[chunkPrefix : copySize-chunkSuffix])
		if n > 0 {
			x.call.Received += int64(n)
			piece := buf[chunkPrefix : chunkPrefix+n]
			if chunked {
				piece = frameChunk(buf[:], n)
			}
			if c.write(piece) != nil {
				return errClientGone
			}
		}
		if err == io.EOF {
			return x.finishBody(chunked)
		}
		if err != nil {
			return err
		}
		if c.respBody.Done() && !chunked {
			return nil
		}
	}
}

// copySmall appends to the head what is there of the body, and sends both. It is done when that was all.
func (x *exchange) copySmall(chunked bool) (done bool, err error) {
	c := x.c
	var piece [2 << 10]byte
	for len(c.out) < 32<<10 && c.respBody.Available() && !c.respBody.Done() {
		n, err := c.respBody.Read(piece[:])
		x.call.Received += int64(n)
		if n > 0 && chunked {
			c.out = strconv.AppendInt(c.out, int64(n), 16)
			c.out = append(append(append(c.out, "\r\n"...), piece[:n]...), "\r\n"...)
		} else {
			c.out = append(c.out, piece[:n]...)
		}
		if err != nil && err != io.EOF {
			c.write(c.out)
			return false, err
		}
	}
	if c.respBody.Done() && chunked {
		c.out = x.appendLastChunk(c.out)
	}
	if c.write(c.out) != nil {
		return false, errClientGone
	}
	return c.respBody.Done(), nil
}

// finishBody ends a chunked body, with the trailers that the API sent.
func (x *exchange) finishBody(chunked bool) error {
	if chunked && x.c.write(x.appendLastChunk(x.c.out[:0])) != nil {
		return errClientGone
	}
	return nil
}

func (x *exchange) appendLastChunk(b []byte) []byte {
	b = append(b, "0\r\n"...)
	for _, f := range x.c.respBody.Trailers {
		if responseFate(f.Name) == pass && !x.echoes(f.Value) {
			b = appendField(b, f.Name, f.Value)
		}
	}
	return append(b, "\r\n"...)
}

// frameChunk makes n bytes at buf[chunkPrefix] a chunk, in place.
func frameChunk(buf []byte, n int) []byte {
	var size [chunkPrefix]byte
	head := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	start := chunkPrefix - len(head)
	copy(buf[start:], head)
	copy(buf[chunkPrefix+n:], "\r\n")
	return buf[start : chunkPrefix+n+chunkSuffix]
}
