package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif.
type notification struct {
	id     uint64
	tid    uint32
	flags  uint32
	number int32
	arch   uint32
	at     uint64
	args   [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// The ioctls of a listener, see seccomp_unotify(2).
const (
	ioctlReceive  = 0xc0502100
	ioctlSend     = 0xc0182101
	ioctlIsValid  = 0x40082102
	ioctlSetFlags = 0x40082104

	flagSyncWakeUp = 1 // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: the step and the supervisor take turns on one processor
)

func ioctl(fd uintptr, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}

// pending reports whether a notification is waiting, and whether no more can come.
func pending(listener uintptr) (waits, over bool) {
	poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err != nil || n == 0 {
		return false, err != nil && !errors.Is(err, unix.EINTR)
	}
	return poll[0].Revents&unix.POLLIN != 0, poll[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// readMemory reads the memory of a stopped process, up to the end of the readable range.
func readMemory(pid uint32, address uint64, into []byte) error {
	if len(into) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: unsafe.SliceData(into)}}
	local[0].SetLen(len(into))
	n, err := unix.ProcessVMReadv(int(pid), local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(into)}}, 0)
	if err == nil && n != len(into) {
		err = unix.EFAULT
	}
	return err
}

func writeMemory(pid uint32, address uint64, from []byte) error {
	local := []unix.Iovec{{Base: unsafe.SliceData(from)}}
	local[0].SetLen(len(from))
	n, err := unix.ProcessVMWritev(int(pid), local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(from)}}, 0)
	if err == nil && n != len(from) {
		err = unix.EFAULT
	}
	return err
}

// message is the content of a struct msghdr and of the memory to which it points.
type message struct {
	address []byte
	data    []byte
	control []byte
}

const (
	messageBytes   = 56 // struct msghdr
	vectorBytes    = 16 // struct iovec
	maxAddress     = 128
	maxVectors     = 1024 // IOV_MAX
	maxControl     = 4096
	maxStreamWrite = 256 << 10
	maxDatagram    = 64 << 10
)

// readMessage reads a struct msghdr. It reads only the beginning of a stream's data; the kernel may also send only a
// part.
func readMessage(pid uint32, at uint64, stream bool) (m message, err error) {
	var header [messageBytes]byte
	if err := readMemory(pid, at, header[:]); err != nil {
		return m, err
	}
	word := func(offset int) uint64 { return binary.NativeEndian.Uint64(header[offset:]) }
	name, nameBytes := word(0), binary.NativeEndian.Uint32(header[8:])
	vectors, count := word(16), word(24)
	control, controlBytes := word(32), word(40)
	if name != 0 && nameBytes > 0 {
		if nameBytes > maxAddress {
			return m, unix.EINVAL
		}
		m.address = make([]byte, nameBytes)
		if err := readMemory(pid, name, m.address); err != nil {
			return m, err
		}
	}
	if count > maxVectors {
		return m, unix.EMSGSIZE
	}
	if controlBytes > maxControl {
		return m, unix.ENOBUFS
	}
	if control != 0 && controlBytes > 0 {
		m.control = make([]byte, controlBytes)
		if err := readMemory(pid, control, m.control); err != nil {
			return m, err
		}
	}
	m.data, err = gather(pid, vectors, int(count), stream)
	return m, err
}

func gather(pid uint32, at uint64, count int, stream bool) ([]byte, error) {
	list := make([]byte, count*vectorBytes)
	if err := readMemory(pid, at, list); err != nil {
		return nil, err
	}
	limit := maxDatagram
	if stream {
		limit = maxStreamWrite
	}
	var data []byte
	for ; len(list) > 0; list = list[vectorBytes:] {
		base, size := binary.NativeEndian.Uint64(list), binary.NativeEndian.Uint64(list[8:])
		if size > uint64(limit-len(data)) {
			if !stream {
				return nil, unix.EMSGSIZE
			}
			size = uint64(limit - len(data))
		}
		part := make([]byte, size)
		if err := readMemory(pid, base, part); err != nil {
			return nil, err
		}
		data = append(data, part...)
	}
	return data, nil
}

// errnoOf returns the errno of an error, or EACCES for any other error: a call that cannot be decided is refused.
func errnoOf(err error) unix.Errno {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return unix.EACCES
}

// Supported returns why this kernel cannot supervise connections, or nil.
func Supported() error {
	if _, err := Filter(); err != nil {
		return err
	}
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return fmt.Errorf("the kernel has no seccomp user notification: %w", errno)
	}
	pidfd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("the kernel has no pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, pidfd, 0)
	if err != nil {
		return fmt.Errorf("the kernel has no pidfd_getfd: %w", err)
	}
	return unix.Close(own)
}
