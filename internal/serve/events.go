package serve

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gin-contrib/sse"
	"github.com/gin-gonic/gin"
)

// keepAlive is the interval of keep-alive comments on an idle stream, so that proxies on the way do not close it.
const keepAlive = 15 * time.Second

// events is GET /executions/{id}/events: server-sent events until the execution has finished. It begins with the first
// event, or after the event that Last-Event-ID names. If no events are left, the response is 204, at which an
// EventSource stops reconnecting.
func (s *Server) events(c *gin.Context) {
	e, ok := s.find(c)
	if !ok {
		return
	}
	after, err := strconv.Atoi(c.GetHeader("Last-Event-ID"))
	if err != nil || after < 0 {
		after = 0
	}
	if events, _ := e.Events(after); len(events) == 0 && e.Snapshot().State == Finished {
		c.Status(http.StatusNoContent)
		return
	}
	var lost atomic.Bool
	controller := http.NewResponseController(c.Writer)
	defer s.config.Executions.Reading(e, func() {
		lost.Store(true)
		_ = controller.SetWriteDeadline(time.Unix(1, 0)) // ends a blocked write
	})()
	s.waiting(c)
	c.Header("Content-Type", sse.ContentType)
	c.Header("Cache-Control", "no-store")
	c.Header("X-Accel-Buffering", "no")
	c.Writer.WriteHeader(http.StatusOK)
	if c.Request.Method == http.MethodHead {
		return // HEAD must not wait for the end of the stream
	}
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	for {
		events, more := e.Events(after)
		for _, event := range events {
			after = event.Number
			s.answering(c)
			if lost.Load() || send(c, event) != nil || event.Type == "finished" {
				return
			}
		}
		c.Writer.Flush()
		s.waiting(c)
		select {
		case <-more:
		case <-ticker.C:
			s.answering(c)
			if _, err := c.Writer.WriteString(": still here\n\n"); err != nil {
				return
			}
		case <-c.Request.Context().Done():
			return
		}
	}
}

// send writes one event. The data is JSON without line breaks.
func send(c *gin.Context, event Event) error {
	data := struct {
		Time time.Time `json:"time"`
		Data any       `json:"data"`
	}{event.Time, event.Data}
	return sse.Encode(c.Writer, sse.Event{Id: strconv.Itoa(event.Number), Event: event.Type, Data: data})
}
