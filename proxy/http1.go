package proxy

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// http1Exchange is one attempt over an HTTP/1.1 connection, which only this exchange uses. The request's bytes are in
// c.out, as appendRequest wrote them.
type http1Exchange struct {
	*exchange
	a      *apiConn
	upload *upload   // nil if the whole body was sent with the head
	sent   time.Time // when the request was sent, if there is no upload
	unsent bool      // no byte of the request was written
}

// roundTrip implements protocol.
func (w *http1Exchange) roundTrip(_ []byte, whole bool) error {
	c, a := w.c, w.a
	a.wake, a.asked = w.wake, time.Now()
	c.api.Store(a)
	a.SetWriteDeadline(time.Now().Add(c.p.cfg.stallTimeout))
	n, err := a.Write(c.out)
	w.unsent = n == 0 && err != nil && a.reused
	w.sent = time.Now()
	if !whole && err == nil {
		w.startUpload()
	}
	if isTimeout(err) {
		return err
	}
	// A failed write does not mean that there is no response: the API may have refused early and closed.
	return w.readAnswer()
}

// readAnswer delivers the API's responses.
func (w *http1Exchange) readAnswer() error {
	c, rd := w.c, w.a.rd
	for {
		if err := rd.ReadResponse(&c.resp, c.req.Method, maxAnswerHead, maxAnswerFields); err != nil {
			return err
		}
		if !c.resp.Interim() {
			w.responded = true
			c.respBody.Reset(rd, &c.resp.Head, true)
			return w.deliver(&c.respBody)
		}
		if err := w.passInterim(); err != nil {
			return err
		}
	}
}

// finish implements protocol. A connection can be reused only at the end of a request and of its response.
func (w *http1Exchange) finish(err error) {
	c, a := w.c, w.a
	clean := w.finishUpload()
	c.api.Store(nil)
	if err == nil && clean && c.respBody.Done() && !c.resp.Close && a.rd.Buffered() == 0 && a.keepAlive(c.resp.Fields) {
		c.p.pool.put(a)
		return
	}
	a.Close()
}

// failed implements protocol. Over HTTP/1.1, a request is known to be unprocessed only if none of it was sent.
func (w *http1Exchange) failed(err error) repeat {
	switch {
	case w.a.rd.Buffered() > 0 || !connectionDied(err):
		return never
	case w.unsent:
		return unprocessed
	}
	return once
}

// connectionDied reports whether an error means that the connection was closed in the meantime.
func connectionDied(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.As(err, &op) && !op.Timeout()
}

// Every waiting read calls wake. wake assumes that a body that is being sent makes progress, because a stalled write
// fails at its deadline. Over HTTP/2, where exchanges share the connection, progress is measured instead.
func (w *http1Exchange) wake() error {
	sending := w.upload.running()
	moved := time.Now()
	if !sending {
		moved = w.upload.endedAfter(w.sent)
	}
	return w.pointless(sending, moved, w.begun)
}

// upload sends a request's body to the API on its own goroutine, because the API may respond, and the step may read,
// before the body has ended. A nil *upload means that the body was sent with the head.
type upload struct {
	sending
	a     *apiConn
	done  chan struct{}
	ended time.Time
	err   error // of the connection to the API
}

func (w *http1Exchange) startUpload() {
	w.upload = &upload{sending: sending{x: w.exchange}, a: w.a, done: make(chan struct{})}
	w.sending = &w.upload.sending
	routine.Go(w.upload.run)
}

func (u *upload) run() {
	defer close(u.done)
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	u.err = u.copy(buf[:])
	u.ended = time.Now()
	if u.refusal != nil {
		u.a.abort() // the API must not accept half a request as complete
	}
}

// copy returns the error of the connection to the API.
func (u *upload) copy(buf []byte) error {
	c := u.x.c
	chunked := c.req.Framing == h1.Chunked
	for {
		n, err := u.read(buf[chunkPrefix : copySize-chunkSuffix])
		if err != nil && err != io.EOF {
			return nil
		}
		piece := buf[chunkPrefix : chunkPrefix+n]
		switch {
		case n > 0 && chunked:
			piece = frameChunk(buf, n)
		case err == io.EOF && chunked:
			piece = u.lastChunk()
		}
		u.a.SetWriteDeadline(time.Now().Add(c.p.cfg.stallTimeout))
		if _, err := u.a.Write(piece); err != nil {
			return err
		}
		if err == io.EOF || u.x.body.Done() && !chunked {
			return nil
		}
	}
}

// lastChunk ends the body with all trailers of the step, announced or not, unchanged: HTTP/1.1 allows them.
func (u *upload) lastChunk() []byte {
	b := []byte("0\r\n")
	for _, f := range u.x.c.body.Trailer() {
		if requestAction(f.Name) == pass {
			b = appendField(b, f.Name, f.Value)
		}
	}
	return append(b, "\r\n"...)
}

func (u *upload) running() bool {
	if u == nil {
		return false
	}
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// endedAfter returns when the request was sent. Call it only after the upload has ended.
func (u *upload) endedAfter(sent time.Time) time.Time {
	if u == nil {
		return sent
	}
	return u.ended
}

// finishUpload waits for the upload's goroutine, and ends it if the response is already complete. It reports whether
// the connection to the API is at the end of a request.
func (w *http1Exchange) finishUpload() (clean bool) {
	u := w.upload
	if u == nil {
		return true
	}
	if u.running() {
		if !u.taken.Load() {
			w.c.stopReading()
		}
		w.a.SetWriteDeadline(time.Now().Add(tick))
		<-u.done
		w.c.resumeReading()
	}
	return u.err == nil && u.refusal == nil && u.taken.Load()
}
