package runner

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lateLimit is how long past a deadline a frame is read that has come by then: the harness writes a large one while it is read.
const lateLimit = time.Second

// lateReader reads from a file, and past the file's read deadline what has come by then. A sidecar that stood still, stopped or on a
// machine that slept, finds its deadline over when it goes on, and beside it the result of a step that was in time.
type lateReader struct {
	ctx  context.Context // at its end nothing more is read
	file *os.File
	end  time.Time // of reading past the deadline, once it has passed
}

// extend forgets that a deadline has passed, for another one.
func (r *lateReader) extend() { r.end = time.Time{} }

// Read implements io.Reader.
func (r *lateReader) Read(p []byte) (int, error) {
	for {
		n, err := r.file.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || r.ctx.Err() != nil {
			return n, err
		}
		now := time.Now()
		if r.end.IsZero() {
			r.end = now.Add(lateLimit)
		}
		if !now.Before(r.end) || !readable(r.file) {
			return n, err
		}
		_ = r.file.SetReadDeadline(r.end)
	}
}

// readable reports whether a read would return at once: there is something, or the end.
func readable(file *os.File) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	ready := false
	_ = raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ready = n > 0 && err == nil
	})
	return ready
}
