package control

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/queue"
)

// smallBody is how much of a body, in bytes, costs about as much as its connection does. What goes beyond is taken from a budget.
const smallBody = 64 << 10

// errEncoded: a body that is compressed.
var errEncoded = errors.New("send the body without a Content-Encoding")

// readBody reads the body of a request. release gives back the memory that is counted for it, when nothing of it is needed
// any more.
func (s *Server) readBody(c *gin.Context) (data []byte, release func(), err error) {
	release = func() {}
	if coding := c.GetHeader("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, release, errEncoded
	}
	from := http.MaxBytesReader(c.Writer, c.Request.Body, s.config.MaxBody)
	var read bytes.Buffer
	if _, err := io.CopyN(&read, from, smallBody); errors.Is(err, io.EOF) {
		return read.Bytes(), release, nil
	} else if err != nil {
		return nil, release, err
	}
	size := s.config.MaxBody
	if announced := c.Request.ContentLength; announced >= 0 {
		size = min(announced, size+1) // one more than may be is refused when it is read
	}
	business := cmp.Or(c.GetHeader(headerBusiness), callerOf(c).BusinessID, callerOf(c).Name)
	if !s.bodies.Take(business, size) {
		return nil, release, queue.ErrFull
	}
	release = func() { s.bodies.Give(business, size) }
	read.Grow(max(int(size)-read.Len(), 0) + bytes.MinRead)
	_, err = read.ReadFrom(from)
	return read.Bytes(), release, err
}

// refuseBody answers for a body that was not read.
func (s *Server) refuseBody(c *gin.Context, err error) {
	c.Header("Connection", "close") // what is still to come is not waited for
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errEncoded):
		c.Header("Accept-Encoding", "identity") // RFC 9110, section 12.5.3
		refuse(c, http.StatusUnsupportedMediaType, "encoded", err.Error())
	case errors.As(err, &tooLarge):
		refuse(c, http.StatusRequestEntityTooLarge, "too_large", "the request is larger than "+strconv.FormatInt(s.config.MaxBody, 10)+" bytes")
	case errors.Is(err, queue.ErrFull):
		s.refuseSubmission(c, err)
	default:
		refuse(c, http.StatusRequestTimeout, "too_slow", "the request did not arrive")
	}
}
