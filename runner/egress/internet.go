package egress

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectRaw calls connect(2) with an address in the kernel's form.
func connectRaw(fd int, address []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(address))),
			uintptr(len(address)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR: // the kernel keeps connecting
			continue
		}
		return errno
	}
}

// connectAtOnce starts to connect a blocking socket, without waiting for the peer. After EINPROGRESS, connectRaw
// waits.
func connectAtOnce(fd int, address []byte) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NONBLOCK); err != nil {
		return err
	}
	err = connectRaw(fd, address)
	_, restoring := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return errors.Join(err, restoring)
}

// address reads an address from the caller's memory.
func (c *call) address(at uint64, size uint64) ([]byte, error) {
	if uint32(size) > maxAddress || int32(size) < 0 {
		return nil, unix.EINVAL
	}
	address := make([]byte, uint32(size))
	if err := readMemory(c.tid, at, address); err != nil {
		return nil, err
	}
	if !c.valid() {
		return nil, unix.ESRCH
	}
	return address, nil
}

func (c *call) connect() (int64, error) {
	address, err := c.address(c.args[1], c.args[2])
	if err != nil {
		return 0, err
	}
	switch of, ok := family(address); {
	case !ok:
		return 0, unix.EINVAL
	case !c.socket.internet():
		return c.connectUnix(address)
	case of == unix.AF_UNSPEC: // dissolves the association
		return 0, connectRaw(c.socket.fd, make([]byte, inetBytes))
	}
	to, errno := c.socket.parse(address, false)
	if errno != 0 {
		return 0, errno
	}
	return c.dial(to)
}

// dial decides on a connection, and makes it if it is permitted.
func (c *call) dial(to netip.AddrPort) (int64, error) {
	s := c.supervisor
	began := time.Now()
	own := netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	s.mu.Lock()
	proxy := s.job.Proxy
	s.mu.Unlock()
	if own == proxy && proxy.IsValid() && c.socket.stream() {
		return c.finish(to, nil)
	}
	if c.socket.stream() && s.asksNameServer(own) {
		return c.redirect(own)
	}
	decision := s.decide(own, c.socket.transport())
	made := Connection{
		Host: decision.Host, Address: own.Addr(), Port: own.Port(), Transport: c.socket.transport(),
		Allowed: decision.Allowed,
		Policy:  decision.Policy, Code: decision.Code, Reason: decision.Reason, Began: began,
	}
	if !decision.Allowed {
		s.add(made, unix.EACCES)
		return 0, unix.EACCES
	}
	return c.finish(to, func(err error) { s.add(made, err) })
}

// finish connects the socket. If the peer does not answer at once, a blocking connect waits on another goroutine.
func (c *call) finish(to netip.AddrPort, ended func(error)) (int64, error) {
	s, fd, address := c.supervisor, c.socket.fd, c.socket.build(to)
	if ended == nil {
		ended = func(error) {}
	}
	blocking := c.socket.stream() && c.socket.blocking()
	connect := connectRaw
	if blocking {
		connect = connectAtOnce
	}
	if err := connect(fd, address); !blocking || !errors.Is(err, unix.EINPROGRESS) {
		ended(err)
		return 0, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, unix.EACCES
	}
	s.dialling[fd] = struct{}{}
	s.mu.Unlock()
	return c.later(func() (int64, error) {
		err := connectRaw(fd, address)
		s.mu.Lock()
		delete(s.dialling, fd)
		s.mu.Unlock()
		ended(err)
		return 0, err
	})
}

// decide asks the policy, with the names under which the step has found the address.
func (s *Supervisor) decide(to netip.AddrPort, transport string) Decision {
	s.mu.Lock()
	job, names, full := s.job, s.names.of(to.Addr()), s.job.MaxConnections > 0 &&
		s.record.Count >= int64(s.job.MaxConnections)
	s.mu.Unlock()
	switch {
	case job.Policy == nil:
		return Decision{Code: CodeNotStarted, Reason: "no execution has begun"}
	case full:
		return Decision{Code: CodeTooMany, Reason: "the execution has made too many connections; see --max-connections"}
	}
	return job.Policy.Connect(names, to, transport)
}

// bind allows only a port of the kernel's choice, because a step must not serve other machines.
func (c *call) bind() (int64, error) {
	address, err := c.address(c.args[1], c.args[2])
	if err != nil {
		return 0, err
	}
	if !c.socket.internet() {
		return c.bindUnix(address)
	}
	of, ok := family(address)
	if !ok || len(address) < inetBytes {
		return 0, unix.EINVAL
	}
	to, errno := c.socket.parse(address, of == unix.AF_UNSPEC)
	if errno != 0 {
		return 0, errno
	}
	if to.Port() != 0 {
		return 0, unix.EACCES
	}
	return 0, raw(unix.SYS_BIND, c.socket.fd, c.socket.build(to))
}

// raw calls bind(2), or another call that takes an address, with an address in the kernel's form.
func raw(number uintptr, fd int, address []byte) error {
	_, _, errno := unix.Syscall(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(address))),
		uintptr(len(address)))
	if errno != 0 {
		return errno
	}
	return nil
}

// listen allows only the step's own Unix sockets.
func (c *call) listen() (int64, error) {
	if c.socket.domain != unix.AF_UNIX {
		return 0, unix.EACCES
	}
	return 0, unix.Listen(c.socket.fd, int(int32(c.args[1])))
}

func (c *call) sendto() (int64, error) {
	address, err := c.address(c.args[4], c.args[5])
	if err != nil {
		return 0, err
	}
	size, limit := c.args[2], uint64(maxDatagram)
	if c.socket.stream() {
		limit = maxStreamWrite
		size = min(size, limit)
	}
	if size > limit {
		return 0, unix.EMSGSIZE
	}
	m := message{address: address, data: make([]byte, size)}
	if err := readMemory(c.tid, c.args[1], m.data); err != nil {
		return 0, err
	}
	return c.send(m, int(int32(c.args[3])))
}

func (c *call) sendmsg(at uint64, flags int) (int64, error) {
	m, err := readMessage(c.tid, at, c.socket.stream())
	if err != nil {
		return 0, err
	}
	if !c.valid() {
		return 0, unix.ESRCH
	}
	return c.send(m, flags)
}

// sendmmsg sends only the first message and returns 1. The caller then sends the others itself, as it must after a
// signal.
func (c *call) sendmmsg() (int64, error) {
	if uint32(c.args[2]) == 0 {
		return 0, nil
	}
	n, err := c.sendmsg(c.args[1], int(int32(c.args[3])))
	if err != nil {
		return 0, err // a blocking send also returns 1 for several messages, see send
	}
	var sent [4]byte
	binary.NativeEndian.PutUint32(sent[:], uint32(n))
	if err := writeMemory(c.tid, c.args[1]+messageBytes, sent[:]); err != nil {
		return 0, err
	}
	return 1, nil
}

// send decides on the destination of a message and sends it.
func (c *call) send(m message, flags int) (int64, error) {
	switch {
	case flags&unix.MSG_FASTOPEN != 0:
		return 0, unix.EOPNOTSUPP // a step must connect first
	case flags&unix.MSG_ZEROCOPY != 0:
		return 0, unix.ENOBUFS // the data is in the supervisor's memory, not in the step's
	}
	var to []byte
	var opened []int
	switch {
	case !c.socket.internet():
		var err error
		if to, opened, err = c.unixDestination(m.address); err != nil {
			return 0, err
		}
	case c.socket.stream(): // the kernel sends to the connected peer and ignores the address
	case len(m.address) > 0:
		address, errno := c.socket.parse(m.address, c.socket.domain == unix.AF_INET)
		if errno != 0 {
			return 0, errno
		}
		if err := c.decideDatagram(address); err != nil {
			return 0, err
		}
		to = c.socket.build(address)
	}
	rights, err := c.rights(m.control)
	if err != nil {
		closeAll(opened)
		return 0, err
	}
	rights.opened = append(rights.opened, opened...)
	n, err := transmit(c.socket.fd, to, m.data, rights.control, flags|unix.MSG_DONTWAIT)
	if !errors.Is(err, unix.EAGAIN) || flags&unix.MSG_DONTWAIT != 0 || !c.socket.blocking() {
		rights.close()
		return int64(n), err
	}
	return c.sendLater(m.data, to, rights, flags)
}

// decideDatagram decides on one destination of a datagram socket.
func (c *call) decideDatagram(address netip.AddrPort) error {
	own := netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	decision := c.supervisor.decide(own, c.socket.transport())
	made := Connection{
		Host: decision.Host, Address: own.Addr(), Port: own.Port(), Transport: c.socket.transport(),
		Allowed: decision.Allowed,
		Policy:  decision.Policy, Code: decision.Code, Reason: decision.Reason, Began: time.Now(),
	}
	if !decision.Allowed {
		c.supervisor.add(made, unix.EACCES)
		return unix.EACCES
	}
	c.supervisor.addDatagram(made)
	return nil
}

// transmit calls sendmsg(2) with an address in the kernel's form.
func transmit(fd int, to, data, control []byte, flags int) (int, error) {
	var header unix.Msghdr
	if len(to) > 0 {
		header.Name, header.Namelen = unsafe.SliceData(to), uint32(len(to))
	}
	vector := unix.Iovec{Base: unsafe.SliceData(data)}
	vector.SetLen(len(data))
	header.Iov, header.Iovlen = &vector, 1
	if len(control) > 0 {
		header.Control = unsafe.SliceData(control)
		header.SetControllen(len(control))
	}
	for {
		n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&header)),
			uintptr(flags|unix.MSG_NOSIGNAL))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// waitInterval is how often a waiting send checks whether its caller is still alive.
const waitInterval = 100 // milliseconds

// sendLater waits until the socket accepts the message.
func (c *call) sendLater(data, to []byte, rights *rights, flags int) (int64, error) {
	several, destination := c.number == unix.SYS_SENDMMSG, c.args[1]+messageBytes
	return c.later(func() (int64, error) {
		defer rights.close()
		for {
			poll := []unix.PollFd{{Fd: int32(c.socket.fd), Events: unix.POLLOUT}}
			if n, err := unix.Poll(poll, waitInterval); n == 0 && err == nil && !c.valid() {
				return 0, unix.ESRCH
			}
			n, err := transmit(c.socket.fd, to, data, rights.control, flags|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				continue
			case err != nil || !several:
				return int64(n), err
			}
			var sent [4]byte
			binary.NativeEndian.PutUint32(sent[:], uint32(n))
			return 1, writeMemory(c.tid, destination, sent[:])
		}
	})
}
