package sandbox

import (
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// stageThreads is how many threads the stage has, at most; they count where the step's do.
const stageThreads = 8

// dataFactor times the memory limit is what one process may map privately where no cgroup counts memory. Much more than
// it may use, since sparse mappings are harmless and common, and yet a bound on what can happen between two looks.
const dataFactor = 8

// rlimits are the limits of each process; those of all together are the cgroups' and the monitor's.
func (l Limits) rlimits(memoryCounted, processesCounted, sameUser bool) []stage.Limit {
	processes := uint64(l.Processes)
	if sameUser {
		processes += stageThreads
	}
	if processesCounted {
		// The cgroup counts exactly and says so; this is for the case that it is gone.
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
		limits = append(limits, stage.Limit{Resource: unix.RLIMIT_DATA, Value: uint64(l.Memory) * dataFactor})
	}
	return limits
}
