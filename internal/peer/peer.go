// Package peer finds the owner of the other end of a local TCP connection. The kernel knows the user of a loopback
// socket, which its address does not show (sock_diag(7)).
package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrNotLocal is the error for a connection whose other end is not a socket of this network namespace.
var ErrNotLocal = errors.New("the other end is not a socket of this machine")

// ErrClosed is the error for a connection whose other end has been closed: the kernel no longer knows its owner.
var ErrClosed = errors.New("the other end is closed")

// Owner is the owner of the other end of a connection.
type Owner struct {
	UserID uint32 // the user that created the socket
	Inode  uint32 // of the socket, as /proc/PID/fd shows it
}

// Of returns the owner of the other end of a connection.
func Of(connection net.Conn) (Owner, error) {
	local, remote := address(connection.LocalAddr()), address(connection.RemoteAddr())
	if !local.IsValid() || !remote.IsValid() {
		return Owner{}, ErrNotLocal
	}
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return Owner{}, fmt.Errorf("open a socket to ask the kernel for sockets: %w", err)
	}
	defer unix.Close(socket)
	if err := unix.Sendto(socket, question(remote, local), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Owner{}, fmt.Errorf("ask the kernel for a socket: %w", err)
	}
	var answer [4096]byte
	n, _, err := unix.Recvfrom(socket, answer[:], 0)
	if err != nil {
		return Owner{}, fmt.Errorf("ask the kernel for a socket: %w", err)
	}
	return parse(answer[:n])
}

func address(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

const (
	headerBytes   = unix.SizeofNlMsghdr
	questionBytes = headerBytes + 56 // struct inet_diag_req_v2
	answerBytes   = headerBytes + 72 // struct inet_diag_msg
)

// question returns a request for the socket whose own address is local.
func question(local, remote netip.AddrPort) []byte {
	message := make([]byte, questionBytes)
	native := binary.NativeEndian
	native.PutUint32(message, questionBytes)
	native.PutUint16(message[4:], unix.SOCK_DIAG_BY_FAMILY)
	native.PutUint16(message[6:], unix.NLM_F_REQUEST)
	body := message[headerBytes:]
	body[0], body[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		body[0] = unix.AF_INET
	}
	native.PutUint32(body[4:], ^uint32(0)) // sockets in every state
	id := body[8:]                         // struct inet_diag_sockid, its ports and addresses in network order
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	native.PutUint64(id[40:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	return message
}

func parse(message []byte) (Owner, error) {
	if len(message) < headerBytes+4 {
		return Owner{}, fmt.Errorf("the kernel's answer about a socket has %d bytes", len(message))
	}
	native := binary.NativeEndian
	if native.Uint16(message[4:]) == unix.NLMSG_ERROR {
		errno := unix.Errno(-int32(native.Uint32(message[headerBytes:])))
		if errno == unix.ENOENT {
			return Owner{}, ErrNotLocal
		}
		return Owner{}, fmt.Errorf("ask the kernel for a socket: %w", errno)
	}
	if len(message) < answerBytes {
		return Owner{}, fmt.Errorf("the kernel's answer about a socket has %d bytes", len(message))
	}
	body := message[headerBytes:]
	owner := Owner{UserID: native.Uint32(body[64:]), Inode: native.Uint32(body[68:])}
	switch state := body[1]; {
	case state == unix.BPF_TCP_LISTEN:
		return Owner{}, ErrNotLocal // the kernel returns the listener on that port if the connection does not exist
	case owner.Inode == 0:
		return Owner{}, ErrClosed
	}
	return owner, nil
}
