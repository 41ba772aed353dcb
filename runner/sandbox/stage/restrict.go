package stage

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// restrictPaths applies Landlock to the stage, which the step inherits: it may read what is listed and write where it is
// allowed to, and cannot signal, trace or reach by an abstract socket anything outside.
func restrictPaths(job *Job) error {
	rules := job.Landlock
	if rules == nil {
		return nil
	}
	config := landlock.V11
	// Networks are namespaces' business; a list of ports would have to name every database there is.
	config.HandledAccessNet = 0
	return config.BestEffort().Restrict(
		landlock.RODirs(existing(rules.ReadDirs)...),
		landlock.ROFiles(existing(rules.ReadFiles)...),
		landlock.RWDirs(existing(rules.WriteDirs)...).WithRefer(),
		landlock.RWFiles(existing(rules.WriteFiles)...).WithIoctlDev(),
	)
}

func existing(paths []string) []string {
	var found []string
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// installFilter applies the seccomp program to this thread, the one that will start the step. It is the last thing done
// before that, since it denies most of what came before.
func installFilter(job *Job) error {
	if len(job.Filter) == 0 {
		return nil
	}
	program := unix.SockFprog{
		Len:    uint16(len(job.Filter) / unix.SizeofSockFilter),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(job.Filter))),
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install the filter: %w", errno)
	}
	return nil
}
