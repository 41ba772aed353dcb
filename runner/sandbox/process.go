package sandbox

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// Exit is how a program ended and what it used.
type Exit struct {
	// Code is the main process's exit code; -1 when a signal ended it.
	Code int
	// Signal is what ended the main process, or 0.
	Signal syscall.Signal
	// OOMKilled: the memory limit was exceeded, and the program was killed for it, in whole or in part.
	OOMKilled bool
	// CPUExceeded: the processor time limit was exceeded, and the program was killed for it.
	CPUExceeded bool
	// Killed: Kill was called, or the context ended.
	Killed bool
	// ProcessesRefused: the limit on processes was reached, and more were asked for. Without a cgroup it is inferred from
	// how many have been seen, and how many were left at the end.
	ProcessesRefused bool
	// PeakMemory is the most resident memory in bytes seen of all processes together, at least that of the largest.
	PeakMemory int64
	// PeakProcesses is the most processes and threads seen at one time.
	PeakProcesses int
	// CPU is the processor time of all processes together.
	CPU time.Duration
	// Survivors is how many processes were still alive when the main process ended. They were killed.
	Survivors int
	// Err is set when the sandbox itself failed, and the rest means little.
	Err error
}

// A Process is a program in the sandbox.
type Process struct {
	job     *stage.Job
	user    user
	ns      namespaces
	group   *group
	scratch *scratch // nil where there is a private file system
	// sourceDir is an empty directory of the program's, see SourceDir.
	sourceDir string
	inherits  []*os.File // the first process's descriptors, until it has been started
	leader    leader     // set before Start returns
	control   *net.UnixConn
	listener  net.Listener
	monitor   *monitor

	// handedOver is closed once the reader of events has stopped.
	handedOver chan struct{}
	done       chan struct{}
	exit       Exit

	killed  sync.Once
	ordered bool // Kill was called; guarded by killed
}

// Listener is bound to the loopback address of the program's own network, with NetworkKizenOnly; nil otherwise. It is
// open when Start returns; the caller closes it.
func (p *Process) Listener() net.Listener { return p.listener }

// SourceDir is a directory that is empty when the program starts and to which it can write once: the place for the source of what
// it runs.
func (p *Process) SourceDir() string { return p.sourceDir }

// Done is closed when nothing of the program is left.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when nothing of the program is left: no process, no mount, no cgroup.
func (p *Process) Wait() Exit {
	<-p.done
	return p.exit
}

// Kill ends the program and everything it started, at once. It does not wait.
func (p *Process) Kill() { p.end(true) }

// end kills the program; only the first call says why.
func (p *Process) end(ordered bool) {
	p.killed.Do(func() { p.ordered = ordered })
	if p.job.OwnPIDs {
		p.leader.kill()
		return
	}
	// The stage kills the rest when it sees the end of the socket.
	_ = p.control.CloseWrite()
}

// LimitCPU replaces the limit on processor time, 0 is none, and counts from now on, as Exit.CPU does. From now on an idle program
// is watched.
func (p *Process) LimitCPU(limit time.Duration) { p.monitor.limitCPU(limit) }

// ChargeCPU counts processor time that the caller has spent on the program towards its limit. Exit.CPU does not include it.
func (p *Process) ChargeCPU(used time.Duration) { p.monitor.chargeCPU(used) }

// Start runs a program. When it returns, the program has been executed; when ctx ends, it is killed. An error is the
// sandbox's or that of a program that cannot be executed, and nothing has run.
func (s *Sandbox) Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	process, err := s.attempt(ctx, spec)
	if _, ok := errors.AsType[*layerError](err); ok && s.probe() {
		// Now that it is known what this machine withholds, once more without that.
		if missing := s.Report().Missing(); s.config.Mode == ModeRequired && len(missing) > 0 {
			return nil, &MissingError{missing}
		}
		process, err = s.attempt(ctx, spec)
	}
	if err != nil {
		return nil, err
	}
	// This was as good a probe as an empty sandbox.
	s.probed.Do(func() {})
	return process, nil
}

// attempt starts a program with the layers that are believed to hold; without Argv, it builds the sandbox and no more.
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
		return nil, errors.Join(ctx.Err(), err)
	}
	return p, nil
}

// abandon ends a program that did not get as far as being executed.
func (p *Process) abandon() {
	p.end(false)
	<-p.done
	if p.listener != nil {
		_ = p.listener.Close()
	}
}

// launch is the whole life of the stage, on one thread of the operating system: the parent-death signal is sent when the
// thread that started the stage ends, not when the process does.
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

// supervise watches a program until nothing of it is left.
func (p *Process) supervise(ctx context.Context) {
	defer context.AfterFunc(ctx, routine.Safe(p.Kill))()
	watching := make(chan struct{})
	var watcher routine.Group
	p.monitor.follow(p.leader.pid())
	watcher.Go(func() {
		p.monitor.watch(watching, func() {
			// The caller hears that a program runs before it hears that the program ran too long.
			<-p.handedOver
			p.end(false)
		})
	})
	cpu, err := p.leader.wait()
	// A program may be quicker to end than the events that it began are read.
	<-p.handedOver
	close(watching)
	watcher.Wait()
	p.exit = p.outcome(cpu, err)
	p.clean()
}

// outcome puts together what the stage said at its end, what the monitor saw and what the kernel counted.
func (p *Process) outcome(cpu time.Duration, err error) Exit {
	m := p.monitor
	used, memoryOver, cpuOver := m.seen()
	exit := Exit{Code: -1, OOMKilled: memoryOver || p.group.outOfMemory(), CPUExceeded: cpuOver,
		PeakMemory: used.peakMemory, PeakProcesses: used.peakProcesses, CPU: used.cpu, Err: err}
	p.killed.Do(func() {})
	exit.Killed = p.ordered
	if exit.OOMKilled && m.counted {
		exit.PeakMemory = max(exit.PeakMemory, m.limits.Memory)
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
	case exit.Killed || exit.OOMKilled || exit.CPUExceeded:
		exit.Signal = syscall.SIGKILL
		exit.CPU = max(exit.CPU, cpu)
	case exit.Err == nil:
		exit.Err = errors.New("the sandbox's first process died")
		if event.Error != "" {
			exit.Err = errors.New(event.Error)
		}
	}
	exit.CPU = m.counts(exit.CPU)
	// The last of the looks may have come before the last of the processes; what was left of them and the main process were
	// there together.
	most := max(exit.PeakProcesses, exit.Survivors+event.Unreaped+1)
	exit.ProcessesRefused = p.group.refused() || p.group.pids == "" && most >= m.limits.Processes
	return exit
}

// clean removes what the kernel does not remove by itself.
func (p *Process) clean() {
	p.closeInherited()
	if p.control != nil {
		_ = p.control.Close()
	}
	p.group.remove()
	if p.scratch != nil {
		p.scratch.remove()
	}
	p.user.release()
}

// ownPIDs reports whether the flags make a PID namespace.
func (ns namespaces) ownPIDs() bool { return ns.attr.Cloneflags&unix.CLONE_NEWPID != 0 }
