package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spec is what an execution needs of a process.
type spec struct {
	argv, env      []string
	socket         *os.File // the child's descriptor 3
	stdout, stderr *os.File
	readable       []string // what the interpreter reads beside the system's own directories
	limits         Limits
}

// exit is how a process tree ended.
type exit struct {
	code             int // -1 when signalled
	signal           syscall.Signal
	outOfMemory      bool
	cpuExceeded      bool
	processesRefused bool
	cpu              time.Duration
	peakMemory       int64
	err              error // the sandbox's own failure
}

// process is a running tree of processes. Kill ends all of it and does not wait; Done is closed when nothing of it is
// left, after which Wait answers at once.
type process interface {
	Kill()
	Done() <-chan struct{}
	Wait() exit
}

// starter starts processes.
type starter interface {
	start(ctx context.Context, s spec) (process, error)
}

// socketPair returns the runner's end, whose reads and writes honour deadlines, and the child's.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the job's socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make the job's socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "job"), os.NewFile(uintptr(fds[1]), "job"), nil
}

// drain reads a pipe to its end and keeps the last maxTail bytes: what a step prints never fills a pipe nor memory.
type drain struct {
	write *os.File
	read  *os.File
	tail  []byte
	done  chan struct{}
}

// maxTail is how much of what a step prints is kept.
const maxTail = 8 << 10

func newDrain() (*drain, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the step's output: %w", err)
	}
	d := &drain{read: read, write: write, done: make(chan struct{})}
	go d.run()
	return d, nil
}

func (d *drain) run() {
	defer close(d.done)
	buffer := make([]byte, 32<<10)
	for {
		n, err := d.read.Read(buffer)
		d.tail = append(d.tail, buffer[max(0, n-maxTail):n]...)
		d.tail = d.tail[max(0, len(d.tail)-maxTail):]
		if err != nil {
			return
		}
	}
}

// finish returns the tail once every writer is gone.
func (d *drain) finish() string {
	_ = d.write.Close()
	_ = d.read.SetReadDeadline(time.Now().Add(time.Second))
	<-d.done
	_ = d.read.Close()
	return string(d.tail)
}

// plainStarter starts an interpreter as a child in its own process group, with resource limits and nothing else around
// it.
type plainStarter struct{}

type plainProcess struct {
	pid  int
	exit exit
	done chan struct{}
}

func (plainStarter) start(_ context.Context, s spec) (process, error) {
	command := exec.Command(s.argv[0], s.argv[1:]...)
	command.Env = s.env
	command.Dir = "/tmp"
	command.ExtraFiles = []*os.File{s.socket}
	command.Stdout, command.Stderr = s.stdout, s.stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &plainProcess{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The parent-death signal is sent when the thread that forked ends, so the thread stays until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		if err == nil {
			p.pid = command.Process.Pid
			limitResources(p.pid, s.limits)
		}
		started <- err
		if err != nil {
			return
		}
		_ = command.Wait()
		p.Kill()
		p.exit = readExit(command.ProcessState)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func limitResources(pid int, limits Limits) {
	for resource, value := range map[int]uint64{
		unix.RLIMIT_CPU:    uint64((limits.CPU + time.Second - 1) / time.Second),
		unix.RLIMIT_NOFILE: uint64(limits.OpenFiles),
		unix.RLIMIT_FSIZE:  uint64(limits.FileSize),
		unix.RLIMIT_CORE:   0,
	} {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil)
	}
}

func readExit(state *os.ProcessState) exit {
	e := exit{code: state.ExitCode(), cpu: state.SystemTime() + state.UserTime()}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.code, e.signal = -1, status.Signal()
		e.cpuExceeded = e.signal == syscall.SIGXCPU
	}
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		e.peakMemory = usage.Maxrss << 10
	}
	return e
}

func (p *plainProcess) Kill()                 { _ = syscall.Kill(-p.pid, syscall.SIGKILL) }
func (p *plainProcess) Done() <-chan struct{} { return p.done }
func (p *plainProcess) Wait() exit            { <-p.done; return p.exit }
