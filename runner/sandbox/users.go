package sandbox

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// Where the sidecar runs as root, programs get user and group ids of the host from the range that systemd reserves for
// transient users, which no account of a person or service has.
const (
	firstUser = 61184
	users     = 65520 - firstUser
)

// userTries bounds the search for an id that is free.
const userTries = 64

// userLocks is the file of which byte N is locked while a program has user N. Its directory is root's, and no step sees it: a
// step could hold the names of sockets, as many as there are.
const userLocks = "/run/kizen-sidecar/users"

// user is an id of the host: programs of different ones cannot signal each other, and the kernel counts their processes
// apart. One program holds it at a time: a lock of userLocks (F_OFD_SETLK, fcntl(2)) says so to every sidecar that has the same
// /run, until the program has ended or its sidecar died.
type user struct {
	id   int
	held *os.File // has the lock; nil is none
}

// userCounter hands out ids in turn, so that one is not used again soon.
type userCounter struct {
	next  atomic.Uint32
	locks string // the file of the locks; empty is userLocks
}

// start begins anywhere: sidecars with another /run are not seen.
func (c *userCounter) start() { c.next.Store(rand.Uint32N(users)) }

// take takes an id that no other program holds, as far as is known: where locks cannot be had, any.
func (c *userCounter) take() user {
	taken := user{}
	file, err := c.openLocks()
	for range userTries {
		taken.id = firstUser + int(c.next.Add(1)%users)
		if err != nil {
			return taken
		}
		// The lock is the open file's: each program has a file of its own.
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(taken.id), Len: 1}
		locked := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
		if locked == nil {
			taken.held = file
			return taken
		}
		if !errors.Is(locked, unix.EAGAIN) && !errors.Is(locked, unix.EACCES) {
			break
		}
	}
	if file != nil {
		_ = file.Close()
	}
	return taken
}

// openLocks opens the file of the locks, and makes it where it does not exist.
func (c *userCounter) openLocks() (*os.File, error) {
	path := c.locks
	if path == "" {
		path = userLocks
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// release lets others have the id.
func (u *user) release() {
	if u.held != nil {
		_ = u.held.Close()
	}
	u.held = nil
}

// takeUser takes an id for a program, where programs get one.
func (s *Sandbox) takeUser() user {
	if !rooted() || !s.holds(stage.LayerIdentity) {
		return user{}
	}
	return s.users.take()
}
