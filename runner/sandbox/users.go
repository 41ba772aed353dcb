package sandbox

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
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

// userTries bounds the search for an id that is free. A step of the host's network could hold all their names.
const userTries = 64

// user is an id of the host: programs of different ones cannot signal each other, and the kernel counts their processes
// apart. One program holds it at a time: that is what the name of a socket in the abstract namespace (unix(7)) says to every sidecar of this
// network namespace, until the program has ended or its sidecar died.
type user struct {
	id   int
	held int // the socket; -1 is none
}

// userCounter hands out ids in turn, so that one is not used again soon.
type userCounter struct{ next atomic.Uint32 }

// start begins anywhere: the sidecars of other network namespaces are not seen.
func (c *userCounter) start() { c.next.Store(rand.Uint32N(users)) }

// take takes an id that nobody holds, as far as can be known.
func (c *userCounter) take() user {
	taken := user{held: -1}
	for range userTries {
		taken.id = firstUser + int(c.next.Add(1)%users)
		socket, err := hold("@kizen-sidecar/user/" + strconv.Itoa(taken.id))
		if err == nil {
			taken.held = socket
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return taken
}

// hold binds a socket to a name that nobody else has.
func hold(name string) (int, error) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(socket)
		return -1, err
	}
	return socket, nil
}

// release lets others have the id.
func (u *user) release() {
	if u.held >= 0 {
		_ = unix.Close(u.held)
	}
	u.held = -1
}

// takeUser takes an id for a program, where programs get one.
func (s *Sandbox) takeUser() user {
	if os.Geteuid() != 0 || !s.holds(stage.LayerIdentity) {
		return user{held: -1}
	}
	return s.users.take()
}
