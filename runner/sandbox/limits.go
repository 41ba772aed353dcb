package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// sparse is how many bytes one process may map privately in addition to the memory limit, if no cgroup counts memory.
// Sparse mappings are harmless and common. The monitor enforces the memory limit; this limit is only for mappings.
const sparse = 8 << 30

// rlimits returns the limits of each process; cgroups and the monitor enforce the limits of all processes together.
// others is the number of other processes and threads that count for the same user.
func (l Limits) rlimits(memoryCounted, processesCounted bool, others int) []stage.Limit {
	processes := uint64(l.Processes + others)
	if processesCounted {
		// The cgroup counts exactly and reports it; this is a fallback.
		processes *= 2
	}
	limits := []stage.Limit{
		{Resource: unix.RLIMIT_CORE, Value: 0},
		{Resource: unix.RLIMIT_FSIZE, Value: uint64(l.FileSize)},
		{Resource: unix.RLIMIT_NOFILE, Value: uint64(l.OpenFiles)},
		{Resource: unix.RLIMIT_NPROC, Value: processes},
		{Resource: unix.RLIMIT_MEMLOCK, Value: 64 << 10},
		{Resource: unix.RLIMIT_MSGQUEUE, Value: 64 << 10},
		{Resource: unix.RLIMIT_SIGPENDING, Value: 1024},
	}
	if !memoryCounted {
		limits = append(limits, stage.Limit{Resource: unix.RLIMIT_DATA, Value: uint64(l.Memory) + sparse})
	}
	return limits
}

// otherProcesses estimates how many processes and threads of others RLIMIT_NPROC counts for a program: none if the
// program has its own user, those of the stage in a user namespace, and otherwise all of the sidecar's user.
func otherProcesses(ns namespaces) int {
	switch {
	case ns.step != nil:
		return 0
	case ns.mapSelf != nil:
		return stage.Threads
	}
	count := stage.Threads
	entries, _ := filepath.Glob("/proc/[0-9]*")
	for _, entry := range entries {
		info, err := os.Stat(entry)
		if err != nil {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(entry))
		if stat, ok := readStat(pid); ok {
			count += stat.threads
		}
	}
	return count
}
