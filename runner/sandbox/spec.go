package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Network is the network of a program.
type Network string

const (
	// NetworkHost is the host's network. It is the default: steps talk to databases and other APIs.
	NetworkHost Network = "host"
	// NetworkPolicy is the host's network, in which a policy decides on every connection; see Process.Connections.
	NetworkPolicy Network = "policy"
	// NetworkKizenOnly is the program's own network, in which only Process.Listener is reachable.
	NetworkKizenOnly Network = "kizen-only"
)

// A Spec describes a program to start.
type Spec struct {
	// Argv is the program, by absolute path, and its arguments.
	Argv []string
	// Env is the whole environment.
	Env []string
	// Files are the program's descriptors 3, 4 and so on; the caller keeps, and closes, its own copies.
	Files []*os.File
	// If Stdout or Stderr is nil, it is /dev/null. Standard input is always /dev/null.
	Stdout, Stderr *os.File
	// Limits apply to the program and everything it starts.
	Limits Limits
	// Network defaults to NetworkHost.
	Network Network
	// Readable lists absolute paths of files and directories that the program sees read-only under the same path,
	// in addition to the system paths of any Python. "/usr" adds nothing.
	Readable []string

	// OverLimit, if not nil, is called before the program is killed for its CPU time, or because the kernel killed
	// a member of its cgroup. The program keeps running until OverLimit returns.
	OverLimit func()
	// NearMemory, if not nil, is called when the program comes near its memory limit, and again each time it uses
	// half of the remaining memory. The program keeps running. Calls do not overlap, and end before Process.Done is
	// closed.
	NearMemory func()

	// Idle means that the program waits, and runs no code of a step, until Process.LimitCPU is called. Until then,
	// only the kernel enforces its limits; the monitor takes no samples.
	Idle bool

	// forkServer reports that the program is a fork server, see StartForkServer.
	forkServer bool
	// policy reports that the forks of a fork server have NetworkPolicy.
	policy bool
}

func (spec Spec) validate() error {
	if len(spec.Argv) == 0 || !filepath.IsAbs(spec.Argv[0]) {
		return errors.New("the program needs an absolute path")
	}
	switch spec.Network {
	case "", NetworkHost, NetworkPolicy, NetworkKizenOnly:
	default:
		return fmt.Errorf("unknown network %q; use policy, host or kizen-only", spec.Network)
	}
	for _, path := range spec.Readable {
		if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
			return fmt.Errorf("readable path %q must be absolute, and not the root", path)
		}
	}
	return nil
}

const mib = 1 << 20

// Limits are the limits of a program and everything it starts, in total unless stated otherwise. A zero field takes its
// default.
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
	// CPU is CPU time; 0 means no limit.
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
