package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// leader is the first process of a program's sandbox. In a PID namespace, all other processes end with it.
type leader interface {
	// pid returns its ID in the sidecar's PID namespace.
	pid() int
	kill()
	// wait returns when it has ended, with the known CPU time of itself and of the children that it has waited for.
	// killed reports that SIGKILL ended it, as far as it is known.
	wait() (cpu time.Duration, killed bool, err error)
}

// spawned is a leader that is a child of the sidecar.
type spawned struct{ process *os.Process }

func (s spawned) pid() int { return s.process.Pid }

func (s spawned) kill() { _ = s.process.Kill() }

func (s spawned) wait() (cpu time.Duration, killed bool, err error) {
	state, err := s.process.Wait()
	if state == nil {
		return 0, false, err
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	return state.UserTime() + state.SystemTime(), ok && status.Signaled() && status.Signal() == syscall.SIGKILL, err
}

// forked is a leader that a fork server has forked.
type forked struct {
	pidfd *os.File
	id    int
}

// newForked takes ownership of a pidfd.
func newForked(fd int) (forked, error) {
	// Non-blocking, so that waiting for it needs no thread.
	err := unix.SetNonblock(fd, true)
	file := os.NewFile(uintptr(fd), "pidfd")
	if err != nil {
		return forked{}, errors.Join(fmt.Errorf("watch a fork: %w", err), file.Close())
	}
	id, err := pidOf(fd)
	if err != nil {
		return forked{}, errors.Join(err, file.Close())
	}
	return forked{file, id}, nil
}

// pidOf returns the process ID of a pidfd.
func pidOf(fd int) (int, error) {
	info, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, fmt.Errorf("find a fork's process: %w", err)
	}
	defer func() { _ = info.Close() }()
	for lines := bufio.NewScanner(info); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("find a fork's process: it is not in /proc")
}

func (f forked) pid() int { return f.id }

func (f forked) kill() {
	connection, err := f.pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = connection.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
}

func (f forked) wait() (cpu time.Duration, killed bool, err error) {
	defer func() { _ = f.pidfd.Close() }()
	connection, err := f.pidfd.SyscallConn()
	if err != nil {
		return 0, false, fmt.Errorf("wait for a fork: %w", err)
	}
	var ended bool
	err = connection.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ended = err == nil && n == 1
		return ended || err != nil && !errors.Is(err, unix.EINTR)
	})
	if err == nil && !ended {
		err = errors.New("it cannot be waited for")
	}
	if err != nil {
		return 0, false, fmt.Errorf("wait for a fork: %w", err)
	}
	return 0, false, nil
}
