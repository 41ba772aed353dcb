package stage

import (
	"fmt"
	"runtime"
	"unsafe"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// The Landlock accesses by purpose. No path allows creating devices.
const (
	readFile  = landlock.AccessFSExecute | landlock.AccessFSReadFile
	readDir   = readFile | landlock.AccessFSReadDir
	writeFile = readFile | landlock.AccessFSWriteFile | landlock.AccessFSTruncate | landlock.AccessFSIoctlDev
	writeDir  = readDir | landlock.AccessFSWriteFile | landlock.AccessFSTruncate | landlock.AccessFSRefer |
		landlock.AccessFSRemoveDir | landlock.AccessFSRemoveFile | landlock.AccessFSMakeDir | landlock.AccessFSMakeReg |
		landlock.AccessFSMakeSock | landlock.AccessFSMakeFifo | landlock.AccessFSMakeSym
)

// handled returns the accesses that a kernel's Landlock version must refuse unless a rule allows them.
func handled(version int) landlock.RulesetAttr {
	attr := landlock.RulesetAttr{HandledAccessFS: landlock.AccessFSMakeSym<<1 - 1}
	if version >= 2 {
		attr.HandledAccessFS |= landlock.AccessFSRefer
	}
	if version >= 3 {
		attr.HandledAccessFS |= landlock.AccessFSTruncate
	}
	if version >= 5 {
		attr.HandledAccessFS |= landlock.AccessFSIoctlDev
	}
	if version >= 6 {
		attr.Scoped = landlock.ScopeAbstractUnixSocket | landlock.ScopeSignal
	}
	return attr
}

// restrictPaths applies Landlock to this thread, from which the step inherits it. The step can then read and write
// only the listed paths, and cannot signal, trace or reach by abstract socket any process outside. The stage's other
// threads can still kill processes inside. Landlock does not restrict networks, because a list of ports would have to
// include those of every database; network namespaces do.
func restrictPaths(job *Job) error {
	if job.Landlock == nil {
		return nil
	}
	version, err := landlock.LandlockGetABIVersion()
	if err != nil {
		return err
	}
	attr := handled(version)
	ruleset, err := landlock.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return fmt.Errorf("create a ruleset: %w", err)
	}
	defer unix.Close(ruleset)
	for _, rule := range job.Landlock.rules() {
		for _, path := range rule.paths {
			if err := allow(ruleset, path, rule.access&attr.HandledAccessFS); err != nil {
				return fmt.Errorf("allow %q: %w", path, err)
			}
		}
	}
	return landlock.LandlockRestrictSelf(ruleset, 0)
}

// landlockRule allows the same accesses below several paths.
type landlockRule struct {
	paths  []string
	access uint64
}

func (l *Landlock) rules() []landlockRule {
	return []landlockRule{
		{l.ReadDirs, readDir}, {l.ReadFiles, readFile}, {l.WriteDirs, writeDir}, {l.WriteFiles, writeFile},
	}
}

// allow adds a rule for everything below a path. It ignores a path that does not exist.
func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return landlock.LandlockAddPathBeneathRule(ruleset, &landlock.PathBeneathAttr{AllowedAccess: access, ParentFd: fd}, 0)
}

// superviseConnections installs the filter for connections on this thread and passes its listener to the sidecar.
// Another thread, without the filter, sends the listener: until the sidecar has it, the kernel would block the call
// that sends it.
func superviseConnections(job *Job) error {
	if len(job.Connections) == 0 {
		return nil
	}
	passed, installed := make(chan struct{}), make(chan int)
	routine.Go(func() {
		defer close(passed)
		// Keep this goroutine on a thread of its own.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		installed <- -1
		if listener := <-installed; listener >= 0 {
			report(Event{Kind: Supervised}, listener)
			// Only the sidecar may hold the listener: if the sidecar ends, the kernel then refuses the calls.
			_ = unix.Close(listener)
		}
	})
	<-installed
	listener, err := installFilter(job.Connections, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|flagWaitKillable)
	if err == unix.EINVAL { // before Linux 5.19
		listener, err = installFilter(job.Connections, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	}
	installed <- listener
	<-passed
	return err
}

// flagWaitKillable is SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: after the supervisor has received a call, a signal does
// not interrupt and repeat it.
const flagWaitKillable = 1 << 5

// installFilter applies a seccomp program to this thread and returns its listener, if flags request one, or -1.
func installFilter(filter []byte, flags uintptr) (int, error) {
	program := unix.SockFprog{
		Len:    uint16(len(filter) / unix.SizeofSockFilter),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter))),
	}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return -1, errno
	}
	return int(listener), nil
}

// installFilters applies the seccomp programs to this thread, which will start the step. It is the last setup step,
// because the filters deny most of the earlier ones.
func installFilters(job *Job) error {
	for _, filter := range [][]byte{job.Guard, job.Filter} {
		if len(filter) == 0 {
			continue
		}
		if _, err := installFilter(filter, 0); err != nil {
			return fmt.Errorf("install a filter: %w", err)
		}
	}
	return nil
}
