package proxy

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// The errors of a response in which the key could not be recognised.
var (
	errPartial = errors.New("it has a range of bytes that was not requested")
	errCoding  = errors.New("its content coding is not gzip or deflate, and none was requested")
	errCorrupt = errors.New("its body is not in its content coding")
)

// maxSilent is how many bytes of a body may be read without producing output. Legitimate content codings need less
// than a hundredth of it. Without the limit, an API could send empty blocks, or data after the end, forever.
const maxSilent = 1 << 20

// coded is a body in its content coding.
type coded struct {
	answerBody
	silent int // bytes read since the last output
}

// Read implements io.Reader.
func (c *coded) Read(p []byte) (int, error) {
	n, err := c.answerBody.Read(p)
	if c.silent += n; c.silent > maxSilent {
		return 0, fmt.Errorf("%w: %d bytes of it decode to nothing", errCorrupt, maxSilent)
	}
	return n, err
}

// decoded is the body of a response without its content coding. The proxy requests none, but decodes the few responses
// that are stored compressed, so that it can search them for the key.
type decoded struct {
	coded
	open func(*bufio.Reader) (io.Reader, error)
	from io.Reader // nil before the first Read
	done bool
}

// decode removes the content coding of the response in c.resp.
func (x *exchange) decode(body answerBody) (answerBody, error) {
	resp := &x.c.resp
	coding := ""
	for _, f := range resp.Fields {
		if !h1.EqualFold(f.Name, "content-encoding") {
			continue
		}
		for token := range h1.Tokens(f.Value) {
			if !h1.EqualFold(token, "identity") {
				coding += strings.ToLower(string(token)) + ","
			}
		}
	}
	if coding == "" || resp.Framing == h1.NoBody || body.Done() {
		return body, nil
	}
	d := &decoded{coded: coded{answerBody: body}}
	switch strings.TrimSuffix(coding, ",") {
	case "gzip", "x-gzip":
		d.open = func(r *bufio.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	case "deflate":
		d.open = openDeflate
	default:
		return nil, errCoding
	}
	if x.trimming {
		return nil, errPartial // part of a compressed body
	}
	kept := resp.Fields[:0]
	for _, f := range resp.Fields {
		if !h1.EqualFold(f.Name, "content-encoding") && !h1.EqualFold(f.Name, "content-length") {
			kept = append(kept, f)
		}
	}
	resp.Fields, resp.Framing = kept, h1.UntilClose
	return d, nil
}

// openDeflate reads the zlib format, as "deflate" is specified, or raw deflate, which some servers send.
func openDeflate(r *bufio.Reader) (io.Reader, error) {
	head, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	if head[0]&15 == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
		return zlib.NewReader(r)
	}
	return flate.NewReader(r), nil
}

// Read implements io.Reader.
func (d *decoded) Read(p []byte) (n int, err error) {
	if d.done {
		return 0, io.EOF
	}
	if d.from == nil {
		d.from, err = d.open(bufio.NewReader(&d.coded))
	}
	if err == nil {
		n, err = d.from.Read(p)
	}
	if n > 0 {
		d.silent = 0
	}
	switch {
	case err == io.EOF:
		d.done = true
		_, err := io.Copy(io.Discard, &d.coded) // the end of its framing, so that the connection can be used again
		if err != nil {
			return n, err
		}
		return n, io.EOF
	case isCorrupt(err):
		return n, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return n, err
}

// isCorrupt reports whether an error concerns the coding and not the connection.
func isCorrupt(err error) bool {
	var input flate.CorruptInputError
	for _, known := range []error{gzip.ErrHeader, gzip.ErrChecksum, zlib.ErrHeader, zlib.ErrChecksum, zlib.ErrDictionary} {
		if errors.Is(err, known) {
			return true
		}
	}
	return errors.As(err, &input)
}

// Done implements answerBody.
func (d *decoded) Done() bool { return d.done }

// Available implements answerBody. It cannot know of data beyond one Read.
func (d *decoded) Available() bool { return d.done }
