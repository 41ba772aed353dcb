package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// Decision is the answer of a [Policy].
type Decision struct {
	Allowed bool
	Host    string // the name that it was decided with; empty for a literal address
	Policy  string // the ID of the deciding rule; may be empty
	Code    string // why it was refused, for programs
	Reason  string // for people
}

// Policy decides on the connections of one execution. Its methods are called by several goroutines.
type Policy interface {
	// Connect decides on a connection, or a datagram, to an address that the step has found under these names. "" stands
	// for a literal address. The first name is the most likely one.
	Connect(names []string, to netip.AddrPort, transport string) Decision
	// Resolve decides whether a name may be sent to a name server.
	Resolve(name string) Decision
}

// Job is what a supervisor needs to know of the execution that it supervises.
type Job struct {
	Policy Policy
	// Proxy is the address of the execution's own proxy, which is always permitted and not recorded.
	Proxy netip.AddrPort
	// Observe, if not nil, is called for each connection once it has been made or refused.
	Observe func(Connection)
	// MaxConnections is the number of connections and datagrams' destinations of an execution; more are refused.
	MaxConnections int
	// MaxQuestions is the number of questions to name servers in a second; more are refused.
	MaxQuestions int
}

// Config configures a Supervisor.
type Config struct {
	// Listener is the notification descriptor of the filter. The supervisor closes it.
	Listener *os.File
	// Writable are the directories, as the step sees them, whose Unix sockets are the step's own.
	Writable []string
	// NameServers are the servers in the step's resolv.conf.
	NameServers []netip.Addr
	// Upstream, if valid, is asked instead of the server that the step has asked.
	Upstream netip.AddrPort
	// Charge, if not nil, counts time that the supervisor has spent on the step.
	Charge func(time.Duration)
}

// Supervisor decides on and makes the connections of one sandbox. Until [Supervisor.Begin] it refuses all that would
// leave the machine.
type Supervisor struct {
	config Config
	raw    syscall.RawConn
	prefix string // of the execution's abstract Unix sockets
	done   chan struct{}
	work   routine.Group
	slots  chan struct{}

	mu       sync.Mutex
	job      Job
	record   record
	names    names
	dialling map[int]struct{} // sockets whose connect blocks
	closed   bool

	// Only the serving goroutine uses it.
	processes map[uint32]int // pidfds, by thread

	resolver resolver
}

// maxWaiting limits the calls of one execution that wait for their peer at the same time. Others wait in the kernel.
const maxWaiting = 64

// Start begins to answer. The caller must call Close.
func Start(config Config) (*Supervisor, error) {
	prefix, err := newPrefix()
	if err != nil {
		return nil, errors.Join(err, config.Listener.Close())
	}
	s := &Supervisor{
		config: config, prefix: prefix, done: make(chan struct{}), slots: make(chan struct{}, maxWaiting),
		dialling: map[int]struct{}{}, processes: map[uint32]int{}, names: newNames(),
	}
	s.resolver.supervisor = s
	if s.raw, err = config.Listener.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the connections of a step: %w", err), config.Listener.Close())
	}
	// Best effort: an older kernel answers a little later.
	_ = s.raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, fd, ioctlSetFlags, flagSyncWakeUp)
	})
	routine.Go(s.serve)
	return s, nil
}

// Begin permits what the job's policy permits.
func (s *Supervisor) Begin(job Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.job = job
}

// Record returns the connections so far.
func (s *Supervisor) Record() Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.copy()
}

// Close stops answering: the kernel refuses every call from now on. It returns when nothing of the supervisor is left.
func (s *Supervisor) Close() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	for fd := range s.dialling {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // ends its connect
	}
	s.mu.Unlock()
	if !closed {
		_ = s.config.Listener.Close()
	}
	<-s.done
	s.resolver.close()
	s.work.Wait()
}

// serve answers until the sandbox has no process left, or the listener is closed.
func (s *Supervisor) serve() {
	defer close(s.done)
	defer s.forgetProcesses()
	for {
		var n notification
		var err error
		over := false
		reading := s.raw.Read(func(fd uintptr) bool {
			var waits bool
			if waits, over = pending(fd); !waits {
				return over
			}
			n = notification{}
			err = ioctl(fd, ioctlReceive, unsafe.Pointer(&n))
			return true
		})
		switch {
		case reading != nil, over && n.id == 0:
			return
		case err != nil:
			continue // the caller has died, or was interrupted
		}
		s.handle(n)
	}
}

// call is one stopped system call.
type call struct {
	notification
	supervisor *Supervisor
	socket     socket
}

// errWaits says that a goroutine answers the call later.
var errWaits = errors.New("answered later")

// handle answers one call, or leaves it to a goroutine if it has to wait.
func (s *Supervisor) handle(n notification) {
	began := time.Now()
	c := &call{notification: n, supervisor: s}
	value, err := c.run()
	if !errors.Is(err, errWaits) {
		c.answer(value, err)
	}
	if s.config.Charge != nil {
		s.config.Charge(time.Since(began))
	}
}

// run makes the call.
func (c *call) run() (int64, error) {
	if err := c.open(); err != nil {
		return 0, err
	}
	value, err := c.act()
	if !errors.Is(err, errWaits) {
		_ = unix.Close(c.socket.fd)
	}
	return value, err
}

func (c *call) act() (int64, error) {
	switch c.number {
	case unix.SYS_CONNECT:
		return c.connect()
	case unix.SYS_BIND:
		return c.bind()
	case unix.SYS_LISTEN:
		return c.listen()
	case unix.SYS_SENDTO:
		return c.sendto()
	case unix.SYS_SENDMSG:
		return c.sendmsg(c.args[1], int(int32(c.args[2])))
	case unix.SYS_SENDMMSG:
		return c.sendmmsg()
	}
	return 0, unix.EPERM
}

// open takes the call's socket from the step. All that follows uses this one, whatever the step does to its descriptor.
func (c *call) open() error {
	fd, err := c.supervisor.take(c.tid, int(int32(c.args[0])))
	if err != nil {
		return err
	}
	// Only while the call is stopped is it certain that the process is the one that made it.
	if !c.valid() {
		return errors.Join(unix.ESRCH, unix.Close(fd))
	}
	c.socket, err = describe(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return err
}

// valid reports whether the call is still stopped.
func (c *call) valid() bool {
	valid := false
	_ = c.supervisor.raw.Control(func(fd uintptr) {
		valid = ioctl(fd, ioctlIsValid, unsafe.Pointer(&c.id)) == nil
	})
	return valid
}

// answer ends the call in the step. If the step has died, nothing happens.
func (c *call) answer(value int64, err error) {
	r := response{id: c.id, value: value}
	switch {
	case errors.Is(err, errContinue):
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	case err != nil:
		r.value, r.errno = 0, -int32(errnoOf(err))
	}
	_ = c.supervisor.raw.Control(func(fd uintptr) { _ = ioctl(fd, ioctlSend, unsafe.Pointer(&r)) })
}

// later runs the rest of a call on another goroutine, which answers it.
func (c *call) later(rest func() (int64, error)) (int64, error) {
	s := c.supervisor
	s.slots <- struct{}{}
	s.work.Go(func() {
		defer func() { <-s.slots }()
		value, err := rest()
		_ = unix.Close(c.socket.fd)
		c.answer(value, err)
	})
	return 0, errWaits
}

// pidfdThread is PIDFD_THREAD, since Linux 6.9.
const pidfdThread = unix.O_EXCL

// maxProcesses limits the descriptors that are kept open for processes.
const maxProcesses = 64

// take duplicates a descriptor of a stopped thread.
func (s *Supervisor) take(tid uint32, fd int) (int, error) {
	if known, ok := s.processes[tid]; ok {
		taken, err := unix.PidfdGetfd(known, fd, 0)
		if !errors.Is(err, unix.ESRCH) {
			return taken, err
		}
		_ = unix.Close(known) // its number belongs to another thread now
		delete(s.processes, tid)
	}
	opened, err := openThread(tid)
	if err != nil {
		return -1, err
	}
	if len(s.processes) >= maxProcesses {
		s.forgetProcesses()
	}
	s.processes[tid] = opened
	return unix.PidfdGetfd(opened, fd, 0)
}

func (s *Supervisor) forgetProcesses() {
	for tid, pidfd := range s.processes {
		_ = unix.Close(pidfd)
		delete(s.processes, tid)
	}
}

func openThread(tid uint32) (int, error) {
	pidfd, err := unix.PidfdOpen(int(tid), pidfdThread)
	if !errors.Is(err, unix.EINVAL) {
		return pidfd, err
	}
	process, err := processOf(tid)
	if err != nil {
		return -1, err
	}
	return unix.PidfdOpen(process, 0)
}
