package serve

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/queue"
)

// smallBody is the size in bytes up to which a body costs about as much memory as its connection. Larger bodies use a
// budget.
const smallBody = 64 << 10

var (
	// errEncoded is the error for a compressed body.
	errEncoded = errors.New("send the body without a Content-Encoding")
	// errNotJSON is the error for a body of another type. Without a CORS preflight, a page of another site can send
	// text/plain and form types, but not JSON.
	errNotJSON = errors.New("send the body as Content-Type: application/json")
)

// readBody reads the body of a request. release returns its memory to the budget; call it once the body is no longer
// needed.
func (s *Server) readBody(c *gin.Context) (data []byte, release func(), err error) {
	release = func() {}
	if coding := c.GetHeader("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, release, errEncoded
	}
	if !isJSON(c.GetHeader("Content-Type")) {
		return nil, release, errNotJSON
	}
	id, err := callerOf(c).identity(c.Request.Header, execution.Body{})
	if err != nil {
		return nil, release, err
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
		size = min(announced, size+1) // reading fails if the body is larger than allowed
	}
	// A trusted caller may name the business in the body, which has not been read yet. Until then, charge the caller
	// itself. No business ID begins with a space.
	charged := cmp.Or(id.BusinessID, " "+callerOf(c).Name)
	if !s.bodies.Take(charged, size) {
		return nil, release, queue.ErrFull
	}
	release = func() { s.bodies.Give(charged, size) }
	read.Grow(max(int(size)-read.Len(), 0) + bytes.MinRead)
	_, err = read.ReadFrom(from)
	return read.Bytes(), release, err
}

// isJSON reports whether a Content-Type is application/json, or a type with the +json suffix (RFC 6839), in UTF-8 (RFC
// 8259).
func isJSON(contentType string) bool {
	media, parameters, err := mime.ParseMediaType(contentType)
	if charset, given := parameters["charset"]; given && !strings.EqualFold(charset, "utf-8") &&
		!strings.EqualFold(charset, "us-ascii") {
		return false
	}
	return err == nil && (media == "application/json" || strings.HasPrefix(media, "application/") &&
		strings.HasSuffix(media, "+json"))
}

// refuseBody responds to a body that was not read.
func (s *Server) refuseBody(c *gin.Context, err error) {
	c.Header("Connection", "close") // the rest of the body stays unread
	var tooLarge *http.MaxBytesError
	var forbidden forbiddenError
	switch {
	case errors.As(err, &forbidden):
		refuseRequest(c, err)
	case errors.Is(err, errNotJSON):
		c.Header("Accept", "application/json") // RFC 9110, section 12.5.1
		refuse(c, http.StatusUnsupportedMediaType, "not_json", err.Error())
	case errors.Is(err, errEncoded):
		c.Header("Accept-Encoding", "identity") // RFC 9110, section 12.5.3
		refuse(c, http.StatusUnsupportedMediaType, "encoded", err.Error())
	case errors.As(err, &tooLarge):
		refuse(c, http.StatusRequestEntityTooLarge, "too_large",
			"the request is larger than "+strconv.FormatInt(s.config.MaxBody, 10)+" bytes")
	case errors.Is(err, queue.ErrFull):
		s.refuseSubmission(c, err)
	default:
		refuse(c, http.StatusRequestTimeout, "too_slow", "the request did not arrive")
	}
}
