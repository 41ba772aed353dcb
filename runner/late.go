package runner

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lateLimit is how long after a deadline a frame that has arrived is still read. The harness writes a large frame
// while it is read.
const lateLimit = time.Second

// lateReader reads from a file. After the file's read deadline it still reads the data that has arrived. A sidecar
// that was suspended, or a machine that slept, resumes after the deadline and may find the result of a step that
// finished in time.
type lateReader struct {
	ctx  context.Context // ends all reading
	file *os.File
	end  time.Time // when reading after the deadline ends; zero before the deadline
}

// extend resets the reader for a new deadline.
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

// readable reports whether a read would return at once, with data or at the end of the file.
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
