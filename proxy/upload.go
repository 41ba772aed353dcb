package proxy

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/proxy/internal/h1"
)

// upload sends a request's body to the API on a goroutine of its own, since the API may answer, and the step may
// read, before the body has ended. A nil *upload is a body that went with the head.
type upload struct {
	x       *exchange
	a       *apiConn
	done    chan struct{}
	taken   atomic.Bool // all of the body was read from the step
	sent    int64
	ended   time.Time
	refusal *refusal // the step's fault
	err     error    // the connection's to the API
}

func startUpload(x *exchange, a *apiConn) *upload {
	u := &upload{x: x, a: a, done: make(chan struct{})}
	routine.Go(u.run)
	return u
}

func (u *upload) run() {
	defer close(u.done)
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	u.refusal, u.err = u.copy(buf[:])
	u.ended = time.Now()
	if u.refusal != nil {
		u.a.abort() // the API must not take half a request for a whole one
	}
}

func (u *upload) copy(buf []byte) (*refusal, error) {
	c := u.x.c
	limit := c.p.cfg.MaxBody
	chunked := c.req.Framing == h1.Chunked
	for {
		n, err := u.x.body.Read(buf[chunkPrefix : copySize-chunkSuffix])
		u.sent += int64(n)
		if limit > 0 && u.sent > limit {
			return tooLarge(limit), nil
		}
		if err != nil && err != io.EOF {
			return brokenBody(err), nil
		}
		if c.body.Done() {
			u.taken.Store(true)
		}
		piece := buf[chunkPrefix : chunkPrefix+n]
		switch {
		case n > 0 && chunked:
			piece = frameChunk(buf, n)
		case err == io.EOF && chunked:
			piece = u.lastChunk()
		}
		u.a.SetWriteDeadline(time.Now().Add(c.p.cfg.StallTimeout))
		if _, err := u.a.Write(piece); err != nil {
			return nil, err
		}
		if err == io.EOF || u.x.body.Done() && !chunked {
			return nil, nil
		}
	}
}

func (u *upload) lastChunk() []byte {
	b := []byte("0\r\n")
	for _, f := range u.x.c.body.Trailer() {
		if requestAction(f.Name) == pass {
			b = appendField(b, f.Name, f.Value)
		}
	}
	return append(b, "\r\n"...)
}

// brokenBody is the answer to a body that could not be read to its end.
func brokenBody(err error) *refusal {
	var refused refusedBody
	switch {
	case errors.As(err, &refused):
		return refused.refusal
	case errors.Is(err, h1.ErrMalformed), errors.Is(err, h1.ErrTooLarge), errors.Is(err, h1.ErrTooManyFields):
		return refuse(BadRequest, "request body: "+err.Error())
	case errors.Is(err, errHalted):
		return nil
	case isTimeout(err):
		return refuse(ClientTooSlow, "the request's body did not arrive in time")
	}
	return refuse(ClientGone, errClientGone.Error())
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

// consumed reports whether nothing of the request's body is left on the step's connection.
func (x *exchange) consumed() bool {
	switch {
	case x.upload != nil:
		return x.upload.taken.Load()
	case x.h2 != nil && x.h2.body != nil:
		return x.h2.body.taken.Load()
	}
	return true
}

// endedAfter is when the request had left. Not to be called while it runs.
func (u *upload) endedAfter(sent time.Time) time.Time {
	if u == nil {
		return sent
	}
	return u.ended
}

// finishUpload waits for the upload's goroutine, ending it if the answer is complete without it, and reports whether
// the connection to the API is at the end of a request.
func (x *exchange) finishUpload(a *apiConn) (clean bool) {
	u := x.upload
	if u == nil {
		return true
	}
	if u.running() {
		if !u.taken.Load() {
			x.c.stopReading()
		}
		a.SetWriteDeadline(time.Now().Add(tick))
		<-u.done
		x.c.resumeReading()
	}
	x.call.Sent = u.sent
	return u.err == nil && u.refusal == nil && u.taken.Load()
}

// uploadFault is what the step did wrong while sending, if that is what ended the exchange.
func (x *exchange) uploadFault() *refusal {
	if x.upload == nil {
		return nil
	}
	return x.upload.refusal
}
