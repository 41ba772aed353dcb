package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// Exit says how a program ended and which resources it used.
type Exit struct {
	// Code is the main process's exit code, or -1 if a signal ended it.
	Code int
	// Signal is the signal that ended the main process, or 0.
	Signal syscall.Signal
	// OOMKilled reports that processes of the program were killed because it exceeded the memory limit.
	OOMKilled bool
	// Starved reports that the kernel killed processes of the program because the memory of a cgroup around the sidecar,
	// or that of the machine, ran out, although the program had not reached its own limit.
	Starved bool
	// CPUExceeded reports that the program was killed because it exceeded the limit on CPU time.
	CPUExceeded bool
	// Killed reports that Kill was called or the context ended.
	Killed bool
	// ProcessesRefused reports that the program tried to exceed the limit on processes. Without a cgroup it is
	// inferred from the sampled number of processes and the number at the end.
	ProcessesRefused bool
	// PeakMemory is the peak of the cgroup's memory in bytes. Without a cgroup, it is the peak of the sampled resident
	// memory of all processes, with shared memory counted once, and at least the peak of the largest process.
	PeakMemory int64
	// PeakProcesses is the peak of the sampled number of processes and threads.
	PeakProcesses int
	// CPU is the CPU time of all processes together.
	CPU time.Duration
	// Survivors is how many processes outlived the main process and were killed.
	Survivors int
	// Err is set if the sandbox itself failed; the other fields are then unreliable.
	Err error
}

// A Process is a program in the sandbox.
type Process struct {
	job     *stage.Job
	user    user
	ns      namespaces
	group   *group
	scratch *scratch // nil with a private file system
	// sourceDir is an empty directory of the program's, see SourceDir.
	sourceDir string
	inherits  []*os.File // the first process's descriptors, until it has been started
	leader    leader     // set before Start returns
	control   *net.UnixConn
	listener  net.Listener
	monitor   *monitor

	// supervised reports that a policy decides on connections; supervisor is then set before Start returns.
	supervised  bool
	supervisor  *egress.Supervisor
	writable    []string
	nameServers []netip.Addr
	upstream    netip.AddrPort

	// handedOver is closed once the reader of events has stopped.
	handedOver chan struct{}
	done       chan struct{}
	exit       Exit

	leaderKilled bool // SIGKILL ended the first process; set before done is closed

	killed  sync.Once
	ordered bool // the caller requested the kill; guarded by killed
}

// Listener returns the listener on the loopback address of the program's own network with NetworkKizenOnly, otherwise
// nil. It is open when Start returns; the caller closes it.
func (p *Process) Listener() net.Listener { return p.listener }

// Connections returns the supervisor of the program's connections with NetworkPolicy, otherwise nil. It refuses all
// connections until its Begin is called.
func (p *Process) Connections() *egress.Supervisor { return p.supervisor }

// SourceDir returns an empty directory of the program, into which the program can write the source of the code that it
// runs.
func (p *Process) SourceDir() string { return p.sourceDir }

// Done returns a channel that is closed when all processes of the program are gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when the program's processes, mounts and cgroups are all gone.
func (p *Process) Wait() Exit {
	<-p.done
	return p.exit
}

// Kill ends the program and everything it started immediately. It does not wait.
func (p *Process) Kill() { p.end(true) }

// end kills the program; the first call determines the reason.
func (p *Process) end(ordered bool) {
	p.killed.Do(func() { p.ordered = ordered })
	if p.job.OwnPIDs {
		p.leader.kill()
		return
	}
	// The stage kills the other processes when it sees the end of the socket.
	_ = p.control.CloseWrite()
}

// LimitCPU replaces the limit on CPU time (0 means none). The limit and Exit.CPU count from now on. An idle program is
// monitored from now on.
func (p *Process) LimitCPU(limit time.Duration) { p.monitor.limitCPU(limit) }

// ChargeCPU adds CPU time that the caller has spent on the program to its limit. Exit.CPU does not include it.
func (p *Process) ChargeCPU(used time.Duration) { p.monitor.chargeCPU(used) }

// Start runs a program. When it returns, the program has been executed; when ctx ends, it is killed. An error means
// that the sandbox failed or the program cannot be executed, and that nothing has run.
func (s *Sandbox) Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	process, err := s.attempt(ctx, spec)
	if _, ok := errors.AsType[*layerError](err); ok && s.probe() {
		// Retry without the layer that this machine turned out not to support.
		if missing := s.Report().Missing(); s.config.Mode == ModeRequired && len(missing) > 0 {
			return nil, &MissingError{missing}
		}
		process, err = s.attempt(ctx, spec)
	}
	if err != nil {
		return nil, err
	}
	// This start replaces the probe with an empty sandbox.
	s.probed.Store(true)
	return process, nil
}

// attempt starts a program with the layers that are believed to work. Without Argv, it only sets up the sandbox.
func (s *Sandbox) attempt(ctx context.Context, spec Spec) (*Process, error) {
	p, err := s.prepare(spec)
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	routine.Go(func() { p.launch(ctx, started) })
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	err = p.handOver()
	close(p.handedOver)
	if err != nil {
		p.abandon()
		return nil, errors.Join(ctx.Err(), p.whyNotExecuted(err))
	}
	return p, nil
}

// whyNotExecuted returns the error of a program that was not executed because of err, after its end. If the kernel
// killed the first process, no layer is to blame: memory had run out, and the next program gets every layer again.
func (p *Process) whyNotExecuted(err error) error {
	gone := errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
	switch {
	case !gone:
		return err
	case p.exit.OOMKilled:
		return errors.New("start the sandbox: the kernel killed its first process at the program's limit of memory")
	case p.exit.Starved, p.leaderKilled && !p.exit.Killed:
		return errors.New("start the sandbox: the kernel killed its first process because the memory of this machine, or of the cgroup that the sidecar runs in, ran out")
	}
	return err
}

// abandon cleans up after a program that was not executed.
func (p *Process) abandon() {
	p.end(false)
	<-p.done
	if p.listener != nil {
		_ = p.listener.Close()
	}
}

// launch runs for the whole life of the stage, on one OS thread, because the kernel sends the parent-death signal when
// the thread that started the stage ends, and not when its process ends.
func (p *Process) launch(ctx context.Context, started chan<- error) {
	defer close(p.done)
	thread := lockThread()
	err := p.spawn(thread)
	started <- err
	if err != nil {
		p.clean()
		return
	}
	p.supervise(ctx)
	thread.unlock()
}

// supervise monitors a program until all its processes are gone.
func (p *Process) supervise(ctx context.Context) {
	defer context.AfterFunc(ctx, routine.Safe(p.Kill))()
	watching := make(chan struct{})
	var watcher routine.Group
	p.monitor.follow(p.leader.pid())
	watcher.Go(func() {
		p.monitor.watch(watching, func() {
			// The caller must learn that a program runs before it learns that the program exceeded a limit.
			<-p.handedOver
			p.end(false)
		})
	})
	cpu, killed, err := p.leader.wait()
	p.leaderKilled = killed
	// A program may end before its start event has been read.
	<-p.handedOver
	close(watching)
	watcher.Wait()
	p.exit = p.outcome(cpu, err)
	p.clean()
}

// outcome combines the stage's last event, the monitor's samples and the kernel's counters.
func (p *Process) outcome(cpu time.Duration, err error) Exit {
	m := p.monitor
	used, memoryOver, cpuOver := m.seen()
	own, above := p.group.outOfMemory()
	exit := Exit{Code: -1, OOMKilled: memoryOver || own, Starved: above && !memoryOver, CPUExceeded: cpuOver,
		PeakMemory: used.peakMemory, PeakProcesses: used.peakProcesses, CPU: used.cpu, Err: err}
	p.killed.Do(func() {})
	exit.Killed = p.ordered
	peak := p.group.peak()
	if exit.OOMKilled && m.counted {
		peak = max(peak, m.limits.Memory)
	}
	event, err := p.receive()
	switch {
	case err == nil && event.Kind == stage.Ended && event.Error == "":
		status := syscall.WaitStatus(event.Status)
		if status.Signaled() {
			exit.Signal = status.Signal()
		} else {
			exit.Code = status.ExitStatus()
		}
		exit.Survivors = event.Survivors
		exit.CPU = max(exit.CPU, time.Duration(event.CPU))
		exit.PeakMemory = max(exit.PeakMemory, event.MaxRSS)
	case exit.Killed || exit.OOMKilled || exit.Starved || exit.CPUExceeded:
		exit.Signal = syscall.SIGKILL
		exit.CPU = max(exit.CPU, cpu)
	case exit.Err == nil:
		exit.Err = errors.New("the sandbox's first process died")
		if event.Error != "" {
			exit.Err = errors.New(event.Error)
		}
	}
	exit.CPU = m.counts(exit.CPU)
	if peak > 0 {
		exit.PeakMemory = peak
	}
	// The last sample may be older than the last processes. The main process and the processes left at its end existed
	// at the same time.
	most := max(exit.PeakProcesses, exit.Survivors+event.Unreaped+1)
	exit.ProcessesRefused = p.group.refused() || p.group.pids == "" && most >= m.limits.Processes
	return exit
}

// clean removes the resources that the kernel does not remove by itself.
func (p *Process) clean() {
	p.closeInherited()
	if p.control != nil {
		_ = p.control.Close()
	}
	if p.supervisor != nil {
		p.supervisor.Close()
	}
	p.group.remove()
	if p.scratch != nil {
		p.scratch.remove()
	}
	p.user.release()
}

// ownPIDs reports whether the flags create a PID namespace.
func (ns namespaces) ownPIDs() bool { return ns.attr.Cloneflags&unix.CLONE_NEWPID != 0 }
