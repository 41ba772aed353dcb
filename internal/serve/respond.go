package serve

import (
	"encoding/json"
	"net/http"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

// pieceSize is the size in bytes of the pieces in which a large document is written. So while a caller reads slowly,
// its response holds one piece of the document, not a copy of the whole.
const pieceSize = 32 << 10

// member is a member of a JSON object: a string, or a json.RawMessage, which is omitted if it is nil.
type member struct {
	name  string
	value any
}

// respond sends a JSON object in response to a request of a business. The object has the members of small, at least
// one, and the large members, which respond does not copy.
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

// pieces writes a JSON document in pieces, until a write fails.
type pieces struct {
	to  http.ResponseWriter
	err error
}

func (w *pieces) write(data []byte) {
	if w.err == nil {
		_, w.err = w.to.Write(data)
	}
}

// text writes a text as a JSON string.
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

// pieceEnd returns the length of the first piece of a text. The piece ends at the end of a character.
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
