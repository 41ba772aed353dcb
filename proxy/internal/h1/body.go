package h1

import (
	"bytes"
	"io"
)

const (
	maxChunkLine    = 4 << 10
	maxTrailerBytes = 16 << 10
	maxTrailers     = 64
)

// Body reads one message's body from a [Reader]. It never reads beyond the body.
type Body struct {
	r        *Reader
	framing  Framing
	left     int64 // of the body, or of the current chunk
	lenient  bool
	begun    bool // a chunk was read before, so its CRLF comes first
	trailing bool // the last chunk was read, and block holds the trailers received so far
	block    []byte
	done     bool
	trailers []Field
}

// Reset sets b to the body of the message whose head was read last from r.
func (b *Body) Reset(r *Reader, h *Head, lenient bool) {
	*b = Body{r: r, framing: h.Framing, lenient: lenient, trailers: b.trailers[:0]}
	switch h.Framing {
	case NoBody:
		b.done = true
	case Length:
		b.left = h.Length
		b.done = b.left == 0
	}
}

// Done reports whether all of the body was read.
func (b *Body) Done() bool { return b.done }

// Trailer returns the fields after a chunked body, once Read has returned io.EOF.
func (b *Body) Trailer() []Field { return b.trailers }

// Ready returns how many bytes of the body can be read without waiting, in one piece; all reports that the body ends
// there.
func (b *Body) Ready() (n int, all bool) {
	if b.done {
		return 0, true
	}
	if b.framing != Length || int64(b.r.Buffered()) < b.left {
		return 0, false
	}
	return int(b.left), true
}

// Available reports whether Read would return without waiting for the sender.
func (b *Body) Available() bool {
	if b.done {
		return true
	}
	unread := b.r.buf[b.r.r:b.r.w]
	if b.framing != Chunked || b.left > 0 {
		return len(unread) > 0
	}
	if b.begun {
		unread = bytes.TrimPrefix(unread, []byte("\r\n"))
	}
	end := bytes.IndexByte(unread, '\n')
	if end < 0 {
		return false
	}
	if unread[0] != '0' {
		return len(unread) > end+1
	}
	return bytes.Contains(unread[max(end-1, 0):], []byte("\r\n\r\n"))
}

// Read implements io.Reader. If the body is truncated, the error is io.ErrUnexpectedEOF. After a temporary error of the
// connection, such as a deadline, reading may continue.
func (b *Body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	if b.framing == Chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, eofIsUnexpected(err)
		}
		if b.done {
			return 0, io.EOF
		}
	}
	if b.framing != UntilClose && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.read(p)
	if b.framing == UntilClose {
		b.done = err == io.EOF
		return n, err
	}
	b.left -= int64(n)
	if b.framing == Length && b.left == 0 {
		b.done = true
		return n, nil
	}
	return n, eofIsUnexpected(err)
}

func eofIsUnexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// nextChunk reads up to the next chunk's data, or to the end of the trailers (RFC 9112 section 7.1).
func (b *Body) nextChunk() error {
	if b.trailing {
		return b.readTrailers()
	}
	if b.begun {
		line, err := b.r.line(maxChunkLine, b.lenient)
		if err != nil {
			return err
		}
		if len(line) > 0 {
			return malformed("chunk is longer than its size")
		}
		b.begun = false
	}
	line, err := b.r.line(maxChunkLine, b.lenient)
	if err != nil {
		return err
	}
	b.begun = true
	if !ValidValue(line) {
		return malformed("control character in a chunk's size")
	}
	size, _, extended := bytes.Cut(line, []byte{';'})
	if extended || b.lenient {
		size = trim(size)
	}
	if b.left, err = parseChunkSize(size); err != nil || b.left > 0 {
		return err
	}
	b.trailing = true
	return b.readTrailers()
}

func (b *Body) readTrailers() error {
	for {
		line, err := b.r.line(maxTrailerBytes, b.lenient)
		if err != nil {
			return err
		}
		if len(line) == 0 && b.block == nil {
			b.done = true
			return nil
		}
		b.block = append(append(b.block, line...), "\r\n"...)
		if len(b.block) > maxTrailerBytes {
			return malformed("trailers are too large")
		}
		if len(line) == 0 {
			break
		}
	}
	h := Head{Fields: b.trailers}
	if err := h.parseFields(b.block, maxTrailers, false); err != nil {
		return err
	}
	b.trailers, b.done = h.Fields, true
	return nil
}
