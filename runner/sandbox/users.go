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

// If the sidecar runs as root, programs get user and group IDs of the host from the range that systemd reserves for
// transient users. No account of a person or service uses them.
const (
	firstUser = 61184
	users     = 65520 - firstUser
)

// userTries limits the search for a free ID.
const userTries = 64

// userLocks is the lock file: byte N is locked while a program has user N. Its directory belongs to root and is
// invisible to steps. Abstract sockets are unsuitable as locks, because a step could bind all their names.
const userLocks = "/run/kizen-sidecar/users"

// user is a user ID of the host. Programs with different IDs cannot signal each other, and the kernel counts their
// processes separately. Only one program has an ID at a time: a lock in userLocks (F_OFD_SETLK, fcntl(2)) reserves it
// among all sidecars with the same /run, until the program ends or its sidecar dies.
type user struct {
	id   int
	held *os.File // holds the lock; nil without one
}

// userCounter assigns IDs in turn, so that an ID is not reused soon.
type userCounter struct {
	next  atomic.Uint32
	locks string // the lock file; default userLocks
}

// start begins at a random ID, because sidecars with another /run cannot be seen.
func (c *userCounter) start() { c.next.Store(rand.Uint32N(users)) }

// take takes an ID that no other known program has. If locking fails, it takes any ID.
func (c *userCounter) take() user {
	taken := user{}
	file, err := c.openLocks()
	for range userTries {
		taken.id = firstUser + int(c.next.Add(1)%users)
		if err != nil {
			return taken
		}
		// The lock belongs to the open file, so each program opens its own.
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

// openLocks opens the lock file, and creates it if it does not exist.
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

// release frees the ID.
func (u *user) release() {
	if u.held != nil {
		_ = u.held.Close()
	}
	u.held = nil
}

// takeUser takes an ID for a program, if programs get one.
func (s *Sandbox) takeUser() user {
	if !rooted() || !s.holds(stage.LayerIdentity) {
		return user{}
	}
	return s.users.take()
}
