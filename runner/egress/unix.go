package egress

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// All processes of a machine share one namespace of abstract Unix sockets. The supervisor adds a prefix to the names
// of each execution, so that a step reaches only its own sockets. A name that already has the prefix came from
// getsockname(2) and is not changed.

// newPrefix returns a prefix that no other execution uses.
func newPrefix() (string, error) {
	var unique [8]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return "", fmt.Errorf("name the sockets of a step: %w", err)
	}
	return "kizen-" + hex.EncodeToString(unique[:]) + ":", nil
}

// maxPath is the size of sun_path.
const maxPath = 108

func unixAddress(path string) []byte {
	return append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), path...)
}

// abstract returns the address of the execution's abstract socket with that name.
func (s *Supervisor) abstract(name string) ([]byte, error) {
	if !strings.HasPrefix(name, s.prefix) {
		name = s.prefix + name
	}
	if len(name) >= maxPath {
		return nil, unix.EINVAL
	}
	return unixAddress("\x00" + name), nil
}

// errContinue makes the kernel execute the call itself.
var errContinue = errors.New("the kernel makes the call")

// bindUnix binds a Unix socket. For a path, the kernel executes the step's own call and creates the file as the step.
// If the step swaps the descriptor meanwhile, it binds an Internet socket, but cannot listen on it.
func (c *call) bindUnix(address []byte) (int64, error) {
	of, ok := family(address)
	switch {
	case !ok || of != unix.AF_UNIX || c.socket.domain != unix.AF_UNIX:
		return 0, unix.EINVAL
	case len(address) == 2: // autobind: the kernel would choose an abstract name
		var unique [5]byte
		_, _ = rand.Read(unique[:]) // never fails
		address = unixAddress("\x00" + hex.EncodeToString(unique[:]))
		fallthrough
	case address[2] == 0:
		own, err := c.supervisor.abstract(string(address[3:]))
		if err != nil {
			return 0, err
		}
		return 0, raw(unix.SYS_BIND, c.socket.fd, own)
	}
	return 0, errContinue
}

func (c *call) connectUnix(address []byte) (int64, error) {
	if of, _ := family(address); of == unix.AF_UNSPEC {
		return 0, connectRaw(c.socket.fd, address[:2])
	}
	if len(address) == 2 {
		return 0, unix.EINVAL
	}
	to, opened, err := c.unixDestination(address)
	if err != nil {
		return 0, err
	}
	if !c.socket.blocking() || c.socket.kind == unix.SOCK_DGRAM {
		defer closeAll(opened)
		return 0, connectRaw(c.socket.fd, to)
	}
	return c.later(func() (int64, error) { // the queue of the listener may be full
		defer closeAll(opened)
		return 0, connectRaw(c.socket.fd, to)
	})
}

// unixDestination returns the address under which the supervisor reaches a socket of the step, and the descriptors
// that it has opened for it. to is nil if address is empty.
func (c *call) unixDestination(address []byte) (to []byte, opened []int, err error) {
	if len(address) == 0 {
		return nil, nil, nil
	}
	of, ok := family(address)
	if !ok || of != unix.AF_UNIX || c.socket.domain != unix.AF_UNIX || len(address) == 2 {
		return nil, nil, unix.EINVAL
	}
	if address[2] == 0 {
		to, err = c.supervisor.abstract(string(address[3:]))
		return to, nil, err
	}
	name := string(address[2:])
	if end := strings.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	fd, err := c.ownSocket(name)
	if err != nil {
		return nil, nil, err
	}
	return unixAddress("/proc/self/fd/" + strconv.Itoa(fd) + "\x00"), []int{fd}, nil
}

// ownSocket opens a socket below the step's own directories. All other sockets are outside the sandbox.
func (c *call) ownSocket(name string) (int, error) {
	process := fmt.Sprintf("/proc/%d/", c.tid)
	if !path.IsAbs(name) {
		here, err := os.Readlink(process + "cwd")
		if err != nil {
			return -1, unix.EACCES
		}
		name = path.Join(here, name)
	}
	name = path.Clean(name)
	root, err := unix.Open(process+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, unix.EACCES
	}
	defer unix.Close(root)
	if !c.valid() {
		return -1, unix.ESRCH
	}
	for _, writable := range c.supervisor.config.Writable {
		below, ok := strings.CutPrefix(name, writable+"/")
		if !ok {
			continue
		}
		dir, err := unix.Openat2(root, writable[1:], &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return -1, err
		}
		defer unix.Close(dir)
		return unix.Openat2(dir, below, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
	}
	return -1, unix.EACCES
}

// rights are the control messages of a message, with the supervisor's own copies of the step's descriptors.
type rights struct {
	control []byte
	opened  []int
}

func (r *rights) close() { closeAll(r.opened) }

func closeAll(descriptors []int) {
	for _, fd := range descriptors {
		_ = unix.Close(fd)
	}
}

// datagramOptions are the control messages that do not change the destination of a datagram.
var datagramOptions = map[[2]int32]bool{
	{unix.IPPROTO_IP, unix.IP_TOS}: true, {unix.IPPROTO_IP, unix.IP_TTL}: true,
	{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}:   true,
	{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT}: true, {unix.SOL_UDP, unix.UDP_SEGMENT}: true,
}

// maxRights is the kernel's SCM_MAX_FD.
const maxRights = 253

// rights translates control messages. Descriptors pass only over Unix sockets, and only between processes of the step.
func (c *call) rights(control []byte) (*rights, error) {
	r := &rights{}
	if len(control) == 0 {
		return r, nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, unix.EINVAL
	}
	for _, m := range messages {
		switch {
		case c.socket.domain == unix.AF_UNIX && m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS:
			if len(m.Data)%4 != 0 || len(m.Data)/4 > maxRights { // ParseUnixRights requires complete numbers
				r.close()
				return nil, unix.EINVAL
			}
			passed, err := unix.ParseUnixRights(&m)
			if err != nil {
				r.close()
				return nil, unix.EINVAL
			}
			copies := make([]int, 0, len(passed))
			for _, fd := range passed {
				own, err := c.supervisor.take(c.tid, fd)
				if err != nil {
					r.close()
					return nil, err
				}
				copies, r.opened = append(copies, own), append(r.opened, own)
			}
			r.control = append(r.control, unix.UnixRights(copies...)...)
		case c.socket.internet() && datagramOptions[[2]int32{m.Header.Level, m.Header.Type}]:
			r.control = append(r.control, encodeControl(m)...)
		default:
			r.close()
			return nil, unix.EPERM
		}
	}
	return r, nil
}

func encodeControl(m unix.SocketControlMessage) []byte {
	encoded := make([]byte, unix.CmsgSpace(len(m.Data)))
	binary.NativeEndian.PutUint64(encoded, uint64(unix.CmsgLen(len(m.Data))))
	binary.NativeEndian.PutUint32(encoded[8:], uint32(m.Header.Level))
	binary.NativeEndian.PutUint32(encoded[12:], uint32(m.Header.Type))
	copy(encoded[unix.CmsgLen(0):], m.Data)
	return encoded
}

// processOf returns the ID of the process to which a thread belongs.
func processOf(tid uint32) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, unix.ESRCH
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Tgid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, unix.ESRCH
}
