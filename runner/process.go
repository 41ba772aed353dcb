package runner

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// socketPair returns the runner's end, whose reads and writes honour deadlines, and the child's; kind is SOCK_STREAM or
// SOCK_SEQPACKET.
func socketPair(kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the job's socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make the job's socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "job"), os.NewFile(uintptr(fds[1]), "job"), nil
}

// maxEvent is the maximal size of an event, in bytes: twice the requested size of its socket's buffer, because the
// kernel doubles the value for its bookkeeping.
const maxEvent = 256 << 10

// sockets connect the runner to a step's processes, which get them in this order. stream carries the harness, the job
// and its result; events the messages of all processes of the step; stacks the stacks of its threads.
type sockets struct{ stream, events, stacks *os.File }

func newSockets() (ours, theirs sockets, err error) {
	for _, link := range []struct {
		kind         int
		ours, theirs **os.File
	}{
		{unix.SOCK_STREAM, &ours.stream, &theirs.stream},
		{unix.SOCK_SEQPACKET, &ours.events, &theirs.events},
		{unix.SOCK_STREAM, &ours.stacks, &theirs.stacks},
	} {
		if *link.ours, *link.theirs, err = socketPair(link.kind); err != nil {
			ours.close()
			theirs.close()
			return sockets{}, sockets{}, err
		}
	}
	// Best effort: the harness sends oversized events without their large parts.
	_ = unix.SetsockoptInt(int(theirs.events.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, maxEvent/2)
	return ours, theirs, nil
}

func (s sockets) files() []*os.File { return []*os.File{s.stream, s.events, s.stacks} }

func (s sockets) close() {
	for _, file := range s.files() {
		_ = file.Close() // closing nil only returns an error
	}
}

// hungUp reports whether the other end of a socket is closed. Reading does not show it, because an empty message looks
// like the end.
func hungUp(socket *os.File) bool {
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	closed := true
	_ = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(look, 0)
		closed = err != nil || n > 0 && look[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return closed
}

// drain reads a pipe to its end and keeps the last keptTail bytes, so that a step's output fills neither the pipe nor
// memory.
type drain struct {
	write *os.File
	read  *os.File
	tail  []byte
	done  chan struct{}
}

const (
	// maxTail is how many bytes of a step's output are shown.
	maxTail = 8 << 10
	// keptTail is how many bytes are kept for redaction, because the first secret in them may be truncated.
	keptTail = 2 * maxTail
)

func newDrain() (*drain, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the step's output: %w", err)
	}
	d := &drain{read: read, write: write, done: make(chan struct{})}
	routine.Go(d.run)
	return d, nil
}

func (d *drain) run() {
	defer close(d.done)
	buffer := make([]byte, 32<<10)
	for {
		n, err := d.read.Read(buffer)
		d.tail = append(d.tail, buffer[max(0, n-keptTail):n]...)
		d.tail = d.tail[max(0, len(d.tail)-keptTail):]
		if err != nil {
			return
		}
	}
}

// finish returns the tail once all writers have closed the pipe.
func (d *drain) finish() string {
	_ = d.write.Close()
	_ = d.read.SetReadDeadline(time.Now().Add(time.Second))
	<-d.done
	_ = d.read.Close()
	return string(d.tail)
}
