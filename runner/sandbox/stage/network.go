package stage

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// listen opens the only address that a step without a network can reach: a listener on the loopback interface of its
// own network namespace, which the sidecar serves from outside.
func (s *step) listen(job *Job) error {
	s.listener = -1
	if !job.Listen {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, loopback); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 512); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.listener = fd
	return nil
}
