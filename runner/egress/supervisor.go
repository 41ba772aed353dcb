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
	Host    string // the name that the policy decided on; empty for a literal address
	Policy  string // the ID of the deciding rule; may be empty
	Code    string // why it was refused, for programs
	Reason  string // for people
}

// Policy decides on the connections of one execution. Several goroutines may call its methods at the same time.
type Policy interface {
	// Connect decides on a connection or a datagram to an address. names are the names under which the step has found
	// the address, the most likely one first; "" stands for a literal address.
	Connect(names []string, to netip.AddrPort, transport string) Decision
	// Resolve decides whether a name server may be asked for a name.
	Resolve(name string) Decision
}

// Job describes the execution to supervise.
type Job struct {
	Policy Policy
	// Proxy is the address of the execution's own proxy, which is always permitted and not recorded.
	Proxy netip.AddrPort
	// Observe, if not nil, is called for each connection once it has been made or refused.
	Observe func(Connection)
	// MaxConnections is the maximal number of connections, and of destinations of datagrams, of an execution.
	MaxConnections int
	// MaxQuestions is the maximal number of DNS queries per second.
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
	// Upstream, if valid, is asked instead of the name server that the step has chosen.
	Upstream netip.AddrPort
	// Charge, if not nil, is called with the CPU time that the supervisor has spent on the step.
	Charge func(time.Duration)
}

// Supervisor decides on and makes the connections of one sandbox. Until [Supervisor.Begin], it refuses every
// connection that would leave the machine.
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

	// Used only by the serving goroutine.
	processes map[uint32]int // pidfds, by thread

	resolver resolver
}

// maxWaiting limits how many calls of one execution wait for their peer at the same time. Further calls wait in the
// kernel.
const maxWaiting = 64

// Start starts answering calls. The caller must call Close.
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
	// Best effort: on an older kernel, answers take a little longer.
	_ = s.raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, fd, ioctlSetFlags, flagSyncWakeUp)
	})
	routine.Go(s.serve)
	return s, nil
}

// Begin allows the connections that the job's policy permits.
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

// Close stops answering, so the kernel refuses every further call. It returns when all goroutines of the supervisor
// have ended.
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

// serve answers calls until the sandbox has no process left, or the listener is closed.
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
			continue // the caller died, or was interrupted
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

// errWaits means that a goroutine will answer the call.
var errWaits = errors.New("answered later")

// handle answers a call, or starts a goroutine for it if the call has to wait.
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

// run performs the call.
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

// open duplicates the call's socket from the step. All later operations use the duplicate, so the step cannot swap the
// socket.
func (c *call) open() error {
	fd, err := c.supervisor.take(c.tid, int(int32(c.args[0])))
	if err != nil {
		return err
	}
	// Only while the call is stopped is it certain that this process made it.
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

// answer ends the call in the step. If the step has died, it does nothing.
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

// later runs the rest of a call on another goroutine, which then answers it.
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

// maxProcesses limits how many pidfds are kept open.
const maxProcesses = 64

// take duplicates a descriptor of a stopped thread.
func (s *Supervisor) take(tid uint32, fd int) (int, error) {
	if known, ok := s.processes[tid]; ok {
		taken, err := unix.PidfdGetfd(known, fd, 0)
		if !errors.Is(err, unix.ESRCH) {
			return taken, err
		}
		_ = unix.Close(known) // the ID now belongs to another thread
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
