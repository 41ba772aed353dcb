package h1

import (
	"bytes"
	"errors"
	"io"
)

// Reader reads the messages of one connection, one after the other. A returned head stays valid until the next one is
// read, even while its body is read.
type Reader struct {
	src  io.Reader
	buf  []byte
	r, w int // unread bytes are buf[r:w]
	min  int // buf[:min] is the head in use
}

const bufferSize = 4 << 10

// NewReader returns a Reader of src. It allocates its buffer at the first read.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Buffered returns the number of received bytes that have not been read.
func (r *Reader) Buffered() int { return r.w - r.r }

// Wait returns when at least one byte can be read.
func (r *Reader) Wait() error {
	if r.Buffered() > 0 {
		return nil
	}
	r.r, r.w, r.min = 0, 0, 0
	if len(r.buf) > 4*bufferSize {
		r.buf = nil
	}
	return r.fill(bufferSize)
}

// HeadComplete reports whether a whole head has been received, so that reading it will not block.
func (r *Reader) HeadComplete() bool {
	return bytes.Contains(r.buf[r.r:r.w], []byte("\r\n\r\n"))
}

// fill reads once, growing the buffer to at most limit bytes beyond r.min.
func (r *Reader) fill(limit int) error {
	if r.r == r.w {
		r.r, r.w = r.min, r.min
	}
	if r.w == len(r.buf) && r.r > r.min {
		r.w = r.min + copy(r.buf[r.min:], r.buf[r.r:r.w])
		r.r = r.min
	}
	if r.w == len(r.buf) {
		if r.w-r.min >= limit {
			return ErrTooLarge
		}
		// A new array, because heads point into the old one.
		grown := make([]byte, max(bufferSize, 2*len(r.buf)))
		copy(grown, r.buf[:r.w])
		r.buf = grown
	}
	for {
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ReadRequest reads the head of the next request. io.EOF means that the connection ended between two messages.
func (r *Reader) ReadRequest(req *Request, maxBytes, maxFields int) error {
	head, err := r.readHead(maxBytes, false)
	if err != nil {
		return err
	}
	return req.parse(head, maxFields)
}

// ReadResponse reads the head of the next response to a request of that method.
func (r *Reader) ReadResponse(resp *Response, method []byte, maxBytes, maxFields int) error {
	head, err := r.readHead(maxBytes, true)
	if err != nil {
		return err
	}
	return resp.parse(head, maxFields, method)
}

// readHead reads a head, including the empty line, from the stream.
func (r *Reader) readHead(maxBytes int, lenient bool) ([]byte, error) {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	r.min = 0
	line := 0 // start of the line being scanned
	for seen := 0; ; {
		for {
			i := bytes.IndexByte(r.buf[seen:r.w], '\n')
			if i < 0 {
				seen = r.w
				break
			}
			end := seen + i + 1
			content := end - 1 - line
			crlf := content > 0 && r.buf[end-2] == '\r'
			if !crlf && !lenient {
				return nil, malformed("line does not end with CRLF")
			}
			if content == 0 || crlf && content == 1 {
				if end > maxBytes {
					return nil, ErrTooLarge
				}
				r.r, r.min = end, end
				return r.buf[:end:end], nil
			}
			line, seen = end, end
		}
		if r.w > maxBytes {
			return nil, ErrTooLarge
		}
		if err := r.fill(maxBytes + bufferSize); err != nil {
			if errors.Is(err, io.EOF) && r.Buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// line reads one line from the stream, within a body.
func (r *Reader) line(limit int, lenient bool) ([]byte, error) {
	for seen := 0; ; {
		if i := bytes.IndexByte(r.buf[r.r+seen:r.w], '\n'); i >= 0 {
			line, _, err := cutLine(r.buf[r.r:r.r+seen+i+1], lenient)
			r.r += seen + i + 1
			return line, err
		}
		seen = r.w - r.r
		if seen > limit {
			return nil, malformed("line in a chunked body is too long")
		}
		if err := r.fill(limit + 2*bufferSize); err != nil {
			return nil, err
		}
	}
}

// read fills p from the buffer, or else from the source directly.
func (r *Reader) read(p []byte) (int, error) {
	if r.r < r.w {
		n := copy(p, r.buf[r.r:r.w])
		r.r += n
		return n, nil
	}
	if len(p) >= bufferSize {
		return r.src.Read(p)
	}
	if err := r.fill(2 * bufferSize); err != nil {
		return 0, err
	}
	return r.read(p)
}
