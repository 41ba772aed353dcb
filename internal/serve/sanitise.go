package serve

import (
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/internal/shown"
)

// sanitise escapes characters in JSON responses and events that a terminal would interpret, because clients may print
// responses unchanged. Decoding the JSON restores the original text.
func sanitise(c *gin.Context) { c.Writer = sanitised{c.Writer} }

// sanitised is a writer of whole JSON documents, or of anything else.
type sanitised struct{ gin.ResponseWriter }

// Unwrap is for http.ResponseController.
func (w sanitised) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements io.Writer. It returns the length of p, not of the written bytes.
func (w sanitised) Write(p []byte) (int, error) {
	content := w.Header().Get("Content-Type")
	if !strings.HasPrefix(content, "application/json") && !strings.HasPrefix(content, "text/event-stream") {
		return w.ResponseWriter.Write(p)
	}
	if len(p) > pieceSize {
		w.Header().Del("Content-Length") // gin sets it for some documents, and escaping changes it
	}
	for rest := p; len(rest) > 0; {
		piece := rest[:pieceEnd(rest)]
		escaped := shown.JSON(piece)
		if len(escaped) != len(piece) {
			w.Header().Del("Content-Length")
		}
		if _, err := w.ResponseWriter.Write(escaped); err != nil {
			return 0, err
		}
		rest = rest[len(piece):]
	}
	return len(p), nil
}
