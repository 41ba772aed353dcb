package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Network says what a program can reach.
type Network string

const (
	// NetworkHost is the host's network. It is the default: steps talk to databases and other APIs.
	NetworkHost Network = "host"
	// NetworkKizenOnly is a network of the program's own, in which only Process.Listener is reachable.
	NetworkKizenOnly Network = "kizen-only"
)

// A Spec says what to start, and with what.
type Spec struct {
	// Argv is the program, by absolute path, and its arguments.
	Argv []string
	// Env is the whole environment.
	Env []string
	// Files are the program's descriptors 3, 4 and so on; the caller keeps, and closes, its own copies.
	Files []*os.File
	// Stdout and Stderr are /dev/null when nil. Standard input always is.
	Stdout, Stderr *os.File
	// Limits bound the program and everything it starts.
	Limits Limits
	// Network; empty is NetworkHost.
	Network Network
	// Readable are absolute paths of files and directories that the program sees, read-only, under the same path, beside
	// what any Python needs. "/usr" stands for that alone.
	Readable []string

	// OverLimit, if not nil, is called before the program is killed for the processor time that it used, or for a member of its
	// cgroup that the kernel killed. The program runs on until it returns.
	OverLimit func()
	// NearMemory, if not nil, is called when the program comes near its limit on memory, and again each time half of what was left
	// is used, beside a program that runs on. Calls follow one another, and end before Process.Done is closed.
	NearMemory func()

	// Idle: the program waits, and runs nothing of a step's, until Process.LimitCPU is called. Until then only the kernel keeps its
	// limits, and nobody looks at it.
	Idle bool

	// forkServer: it is one, see StartForkServer.
	forkServer bool
}

func (spec Spec) validate() error {
	if len(spec.Argv) == 0 || !filepath.IsAbs(spec.Argv[0]) {
		return errors.New("the program needs an absolute path")
	}
	switch spec.Network {
	case "", NetworkHost, NetworkKizenOnly:
	default:
		return fmt.Errorf("unknown network %q; use host or kizen-only", spec.Network)
	}
	for _, path := range spec.Readable {
		if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
			return fmt.Errorf("readable path %q must be absolute, and not the root", path)
		}
	}
	return nil
}

const mib = 1 << 20

// Limits bound a program and everything it starts, together unless said otherwise. A zero field takes its default.
type Limits struct {
	// Memory is resident memory in bytes; default 1 GiB.
	Memory int64
	// Tmp is the size of /tmp in bytes; default 512 MiB.
	Tmp int64
	// FileSize is the size in bytes of any one file written; default 512 MiB.
	FileSize int64
	// Processes is the number of processes and threads at one time; default 64.
	Processes int
	// OpenFiles is the number of descriptors of each process; default 1024.
	OpenFiles int
	// CPU is processor time; 0 is no limit.
	CPU time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Memory == 0 {
		l.Memory = 1024 * mib
	}
	if l.Tmp == 0 {
		l.Tmp = 512 * mib
	}
	if l.FileSize == 0 {
		l.FileSize = 512 * mib
	}
	if l.Processes == 0 {
		l.Processes = 64
	}
	if l.OpenFiles == 0 {
		l.OpenFiles = 1024
	}
	return l
}
