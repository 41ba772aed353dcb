package stage

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// step is the main process and everything it starts.
type step struct {
	job      *Job
	listener int
	pid      int
}

// start executes the step's program. The stage then closes the step's descriptors, so that the sidecar sees their end
// when the step closes its copies.
func (s *step) start() error {
	// As PID 1, the stage adopts orphans anyway; otherwise it needs this.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	files := []uintptr{0, 1, 2}
	for i := range s.job.Files {
		files = append(files, uintptr(ControlFD+1+i))
	}
	attr := &syscall.ProcAttr{Env: s.job.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
	if id := s.job.Step; id != nil && !s.job.ForkServer {
		attr.Sys.Credential = &syscall.Credential{Uid: id.UID, Gid: id.GID}
	}
	pid, err := syscall.ForkExec(s.job.Argv[0], s.job.Argv, attr)
	if err != nil {
		return fmt.Errorf("execute %q: %w", s.job.Argv[0], err)
	}
	s.pid = pid
	resetSignals()
	for _, fd := range files[1:] {
		_ = unix.Dup2(0, int(fd))
	}
	routine.Go(s.endWithSidecar)
	return nil
}

// resetSignals removes the Go runtime's signal handlers. The kernel drops every signal from inside the namespace for
// which PID 1 has no handler, even SIGKILL, so the step cannot kill the stage.
func resetSignals() {
	var standard [32]byte // struct sigaction: SIG_DFL, no flags
	for signal := uintptr(1); signal <= 64; signal++ {
		if signal == uintptr(unix.SIGCHLD) {
			continue
		}
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&standard)), 0, 8, 0, 0)
	}
}

// endWithSidecar waits until the sidecar closes its end of the control socket, or dies.
func (s *step) endWithSidecar() {
	var buffer [1]byte
	_, _ = ignoreEINTR(func() (int, error) { return unix.Read(ControlFD, buffer[:]) })
	if !s.job.OwnPIDs {
		s.killAll()
	}
	syscall.Exit(1)
}

// wait reaps until the main process ends, then kills and reaps the rest.
func (s *step) wait() Event {
	event := Event{Kind: Ended}
	for {
		var status unix.WaitStatus
		pid, err := ignoreEINTR(func() (int, error) { return unix.Wait4(-1, &status, 0, nil) })
		if err != nil {
			event.Error = fmt.Sprintf("wait for the step: %v", err)
			break
		}
		if pid == s.pid {
			event.Status = uint32(status)
			break
		}
	}
	event.Unreaped, event.Survivors = s.killAll()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err == nil {
		event.CPU = usage.Utime.Nano() + usage.Stime.Nano()
		event.MaxRSS = usage.Maxrss << 10
	}
	return event
}

// killAll kills and reaps the remaining processes of the step. It counts those that were still alive (killed), and
// those that had already ended, which are not survivors (ended).
func (s *step) killAll() (ended, killed int) {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
			break
		}
		ended++
	}
	for {
		s.killOnce()
		if _, err := ignoreEINTR(func() (int, error) { return unix.Wait4(-1, nil, 0, nil) }); errors.Is(err, unix.ECHILD) {
			return ended, killed
		}
		killed++
	}
}

// killOnce kills everything in the namespace with one call. Without a namespace, it kills all descendants. Their
// orphans then become children of the stage, for the next call.
func (s *step) killOnce() {
	if s.job.OwnPIDs {
		_ = unix.Kill(-1, unix.SIGKILL)
		return
	}
	for _, pid := range freeze() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// maxSweeps limits the sweeps of freeze, because processes may fork and exit faster than freeze finds them.
const maxSweeps = 20

// freeze stops all descendants and lists them. Processes cannot be killed one by one, because a fork bomb grows
// faster. Stopped processes keep counting, so the limit on processes soon prevents new ones.
func freeze() []int {
	self := unix.Getpid()
	stopped := map[int]bool{}
	var pids []int
	for range maxSweeps {
		grown := false
		for _, pid := range descendants(self) {
			if stopped[pid] {
				continue
			}
			stopped[pid], grown = true, true
			pids = append(pids, pid)
			// Stop the whole group at once: no fork escapes a signal to the group.
			if group, err := unix.Getpgid(pid); err == nil && group != unix.Getpgrp() {
				_ = unix.Kill(-group, unix.SIGSTOP)
			}
			_ = unix.Kill(pid, unix.SIGSTOP)
		}
		if !grown {
			break
		}
	}
	return pids
}

// descendants lists the processes below one.
func descendants(root int) []int {
	var found []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		below := children(queue[0])
		found, queue = append(found, below...), append(queue, below...)
	}
	return found
}

// children lists the processes whose parent is pid.
func children(pid int) []int {
	var pids []int
	dir := fmt.Sprintf("/proc/%d/task/", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		list, err := os.ReadFile(dir + task.Name() + "/children")
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
