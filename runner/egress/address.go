package egress

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// socket describes a socket, as the kernel reports it.
type socket struct {
	fd     int
	domain int
	kind   int // SOCK_STREAM, SOCK_DGRAM or another
}

func describe(fd int) (s socket, err error) {
	s.fd = fd
	if s.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return s, err
	}
	s.kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return s, err
}

func (s socket) internet() bool { return s.domain == unix.AF_INET || s.domain == unix.AF_INET6 }

func (s socket) stream() bool { return s.kind == unix.SOCK_STREAM }

// blocking reports whether calls on the socket may block.
func (s socket) blocking() bool {
	flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK == 0
}

// transport returns the name of the socket's transport in rules.
func (s socket) transport() string {
	if s.stream() {
		return "tcp"
	}
	return "udp"
}

// family returns the family of an address as the kernel reads it.
func family(address []byte) (int, bool) {
	if len(address) < 2 {
		return 0, false
	}
	return int(binary.NativeEndian.Uint16(address)), true
}

// The sizes of struct sockaddr_in, of the part of sockaddr_in6 that is required (RFC 2133), and of all of it.
const (
	inetBytes      = 16
	inet6LeastSize = 24
	inet6Bytes     = 28
)

// parse reads an Internet address for a socket. In the address of a datagram, the kernel treats AF_UNSPEC as AF_INET;
// if loose is true, so does parse.
func (s socket) parse(address []byte, loose bool) (netip.AddrPort, unix.Errno) {
	of, ok := family(address)
	if loose && of == unix.AF_UNSPEC {
		of = unix.AF_INET
	}
	switch {
	case !ok:
		return netip.AddrPort{}, unix.EINVAL
	case of == unix.AF_INET && len(address) < inetBytes, of == unix.AF_INET6 && len(address) < inet6LeastSize:
		return netip.AddrPort{}, unix.EINVAL
	case of == unix.AF_INET && (s.domain == unix.AF_INET || s.kind == unix.SOCK_DGRAM):
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(address[4:8])), binary.BigEndian.Uint16(address[2:])), 0
	case of == unix.AF_INET6 && s.domain == unix.AF_INET6:
		// The zone is dropped: it only matters for link-local addresses, which are refused.
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(address[8:24])), binary.BigEndian.Uint16(address[2:])), 0
	}
	return netip.AddrPort{}, unix.EAFNOSUPPORT
}

// build returns the kernel's form of an address for a socket of this family.
func (s socket) build(to netip.AddrPort) []byte {
	if s.domain == unix.AF_INET {
		address := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
		address = binary.BigEndian.AppendUint16(address, to.Port())
		bytes := to.Addr().Unmap().As4()
		return append(append(address, bytes[:]...), make([]byte, 8)...)
	}
	address := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
	address = binary.BigEndian.AppendUint16(address, to.Port())
	bytes := to.Addr().As16()
	address = append(append(address, 0, 0, 0, 0), bytes[:]...)
	return append(address, 0, 0, 0, 0)
}
