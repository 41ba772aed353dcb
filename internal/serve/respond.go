package serve

import (
	"encoding/json"
	"net/http"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

// pieceSize is the size in bytes of the pieces in which a large document is written. A response that its caller reads
// slowly holds a piece of the document, not a copy of all of it.
const pieceSize = 32 << 10

// member is a member of a JSON object: a json.RawMessage, which is left out if nil, or a string.
type member struct {
	name  string
	value any
}

// respond responds to a request of a business with the JSON object of small, which has at least one member, and with
// large members, of which it makes no copy.
func (s *Server) respond(c *gin.Context, business string, small any, large ...member) {
	head, err := json.Marshal(small)
	if err != nil {
		s.recovered(c, err)
		return
	}
	if size := int64(len(head)); size > smallBody {
		if !s.bodies.Take(business, size) {
			c.Header("Retry-After", "1")
			refuse(c, http.StatusTooManyRequests, "busy", "too many responses to this business are still being read")
			return
		}
		defer s.bodies.Give(business, size)
	}
	c.Header("Content-Type", "application/json; charset=utf-8")
	c.Status(http.StatusOK)
	w := &pieces{c.Writer, nil}
	w.write(head[:len(head)-1])
	for _, m := range large {
		value, raw := m.value.(json.RawMessage)
		if raw && value == nil {
			continue
		}
		w.write([]byte(","))
		w.write(encoded(m.name))
		w.write([]byte(":"))
		if raw {
			w.write(value)
		} else {
			w.text(m.value.(string))
		}
	}
	w.write([]byte("}"))
}

// pieces writes a JSON document until a write fails.
type pieces struct {
	to  http.ResponseWriter
	err error
}

func (w *pieces) write(data []byte) {
	if w.err == nil {
		_, w.err = w.to.Write(data)
	}
}

// text writes a JSON string.
func (w *pieces) text(text string) {
	w.write([]byte{'"'})
	for len(text) > 0 && w.err == nil {
		end := pieceEnd(text)
		quoted := encoded(text[:end])
		w.write(quoted[1 : len(quoted)-1])
		text = text[end:]
	}
	w.write([]byte{'"'})
}

// pieceEnd returns the length of the first piece of a text, which does not end within a character.
func pieceEnd[T string | []byte](text T) int {
	end := min(len(text), pieceSize)
	for range utf8.UTFMax {
		if end == len(text) || utf8.RuneStart(text[end]) {
			break
		}
		end--
	}
	return end
}
