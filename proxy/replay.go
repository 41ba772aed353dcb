package proxy

import (
	"errors"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

const (
	// maxReplay is how many bytes of a body are kept until the API responds: the 64 KiB of HTTP/2's initial window
	// (RFC 9113 section 6.9.2), and as much for net/http's read-ahead. A refused stream has rarely consumed more.
	maxReplay = 128 << 10
	// maxAttempts limits the attempts for a request whose streams the API keeps refusing.
	maxAttempts = 8
	// sharedAttempts is how many attempts may use a connection shared with other requests.
	sharedAttempts = 3
	// firstPause is the wait before the third attempt; each later one takes twice as long.
	firstPause = 5 * time.Millisecond
)

// repeat says whether a failed request may be sent again.
type repeat uint8

const (
	never       repeat = iota
	once               // it may have had an effect, but is idempotent
	unprocessed        // it had no effect: the API said so, or nothing was sent
	withNewKey         // it had no effect: the API did not know the key
)

// stepBody is the body of the step's request. It keeps the beginning for another attempt.
type stepBody struct {
	source *h1.Body
	scanned
	kept []byte // the bytes read from source, unless lost
	next int    // how many bytes of kept this attempt has read
	lost bool   // source returned more than is kept
}

// Read implements io.Reader.
func (b *stepBody) Read(p []byte) (int, error) {
	if b.next < len(b.kept) {
		n := copy(p, b.kept[b.next:])
		b.next += n
		return n, nil
	}
	n, err := b.source.Read(p)
	if r := b.check(p[:n]); r != nil {
		return 0, refusedBody{r}
	}
	switch {
	case b.lost:
	case len(b.kept)+n > maxReplay:
		b.kept, b.next, b.lost = nil, 0, true
	default:
		b.kept = append(b.kept, p[:n]...)
		b.next = len(b.kept)
	}
	return n, err
}

// Done reports whether this attempt has read the whole body.
func (b *stepBody) Done() bool { return b.next == len(b.kept) && b.source.Done() }

// rewind begins another attempt. It reports whether everything that was read can be read again.
func (b *stepBody) rewind() bool {
	b.next = 0
	return !b.lost
}

// refusedStream has the fields of net/http's unexported error for a reset stream, so that errors.As converts one to
// it.
type refusedStream struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (refusedStream) Error() string { return "the api reset the stream" }

// codeRefusedStream is RFC 9113's REFUSED_STREAM.
const codeRefusedStream = 7

// net/http's errors for a stream above the last one of a GOAWAY, and for a request for which the connection opened no
// stream. net/http does not export them; TestUnprocessedRequestsAreSentAgain detects a changed text.
const (
	goneAway       = "http2: Transport received " // followed by the frame
	unusable       = "http2: client conn not usable"
	notEstablished = "http2: client conn could not be established"
)

// unprocessedOverHTTP2 reports whether err says that the API did not process the request (RFC 9113 section 8.7).
func unprocessedOverHTTP2(err error) bool {
	var reset refusedStream
	if errors.As(err, &reset) {
		return reset.Code == codeRefusedStream
	}
	said := err.Error()
	return strings.HasPrefix(said, goneAway) || said == unusable || said == notEstablished
}

// pause waits before another attempt. It returns false if the proxy's time ended.
func (x *exchange) pause(attempt int) bool {
	if attempt < 2 {
		return x.c.p.ctx.Err() == nil
	}
	wait := time.NewTimer(firstPause << (attempt - 2))
	defer wait.Stop()
	select {
	case <-wait.C:
		return true
	case <-x.c.p.ctx.Done():
		return false
	}
}
