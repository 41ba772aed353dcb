package stage

import (
	"fmt"
	"unsafe"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
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

// restrictPaths applies Landlock to this thread, from which the step inherits it. The step may read and write only the
// listed paths, and cannot signal, trace or reach by abstract socket any process outside. The stage's other threads can
// still kill processes inside. Network namespaces restrict networks instead, because a list of ports would have to
// include those of every database.
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

// landlockRule allows the same below several paths.
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

// installFilters applies the seccomp programs to this thread, which will start the step. It is the last setup step,
// because the filters deny most of the previous ones.
func installFilters(job *Job) error {
	for _, filter := range [][]byte{job.Guard, job.Filter} {
		if len(filter) == 0 {
			continue
		}
		program := unix.SockFprog{
			Len:    uint16(len(filter) / unix.SizeofSockFilter),
			Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter))),
		}
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
		if errno != 0 {
			return fmt.Errorf("install a filter: %w", errno)
		}
	}
	return nil
}
