package stage

// Environ is the environment variable that turns the binary into a stage if its value is Magic.
const (
	Environ = "KIZEN_SANDBOX_STAGE"
	Magic   = "1"
)

// ControlFD is the stage's end of a SOCK_SEQPACKET socket pair. The stage receives the Job as the first packet and
// sends one packet for each Event. End of file means that the sidecar has ended. The step's own descriptors come after
// ControlFD.
const ControlFD = 3

// MaxPacket is the size in bytes of the largest Job or Event.
const MaxPacket = 160 << 10

// Threads is the maximal number of the stage's threads. If one limit applies to the stage and the step, these threads
// count too.
const Threads = 8

// A Job tells the stage what to set up and what to start. Only the sidecar sends it.
type Job struct {
	// Argv and Env are exactly the step's. If Argv is empty, the stage sets up everything, reports Ready and starts
	// nothing.
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// Dir is the step's working directory, inside the new root.
	Dir string `json:"dir"`
	// Files is the number of descriptors after ControlFD that the step inherits, as its 3, 4, ...
	Files int `json:"files"`
	// OwnPIDs reports that the stage is PID 1 of its own namespace, so that all remaining processes die with it.
	OwnPIDs bool `json:"own_pids"`
	// MapSelf, if not nil, is written to the stage's own uid_map and gid_map, when an ordinary user starts the stage.
	MapSelf *IDMap `json:"map_self,omitempty"`
	// Step is the step's identity; nil keeps the stage's own.
	Step *Identity `json:"step,omitempty"`
	// Mounts are performed in order in a new root file system; if empty, the stage keeps its root.
	Mounts []Mount `json:"mounts,omitempty"`
	// Listen brings the loopback interface up and opens a listener on it, which the Ready event returns.
	Listen bool `json:"listen,omitempty"`
	// Limits apply to the step and everything it starts.
	Limits []Limit `json:"limits,omitempty"`
	// Landlock is nil if it is not applied.
	Landlock *Landlock `json:"landlock,omitempty"`
	// Filter is a seccomp program, an array of struct sock_filter; if empty, none is applied.
	Filter []byte `json:"filter,omitempty"`
	// Guard is a second seccomp program.
	Guard []byte `json:"guard,omitempty"`
	// Connections is the seccomp program that notifies a supervisor of connections; if empty, none is applied. The
	// Supervised event carries its listener.
	Connections []byte `json:"connections,omitempty"`
	// Hostname replaces the host's name; empty if the stage has no UTS namespace.
	Hostname string `json:"hostname,omitempty"`
	// HideCgroups gives the step a cgroup namespace, so that it does not see its cgroup path on the host.
	HideCgroups bool `json:"hide_cgroups,omitempty"`
	// ForkServer reports that the program is a fork server: it keeps the stage's privileges and applies identity,
	// Landlock, seccomp and the limit on processes to each of its forks, see ForkPlan.
	ForkServer bool `json:"fork_server,omitempty"`
}

// IDMap maps one user and one group: inside the namespace to outside.
type IDMap struct {
	UID, HostUID int
	GID, HostGID int
}

// Identity is the user and group of a process.
type Identity struct{ UID, GID uint32 }

// Limit is one setrlimit(2), for the soft and the hard limit.
type Limit struct {
	Resource int
	Value    uint64
}

// Landlock lists the accessible paths inside the new root. Paths that do not exist are ignored.
type Landlock struct {
	ReadDirs, ReadFiles, WriteDirs, WriteFiles []string
}

// MountKind says what a Mount does.
type MountKind string

const (
	// MountLink creates a symbolic link to Source.
	MountLink MountKind = "link"
	// MountFile writes a small file with the content Source.
	MountFile MountKind = "file"
	// MountBind shows Source (a file or directory of the host) read-only, no set-user-ID, no devices.
	MountBind MountKind = "bind"
	// MountDevice shows the device node Source.
	MountDevice MountKind = "device"
	// MountTmpfs mounts an empty writable file system with the options in Source.
	MountTmpfs MountKind = "tmpfs"
	// MountProc mounts a /proc of the stage's PID namespace that hides other users' processes.
	MountProc MountKind = "proc"
)

// A Mount is one piece of the step's file system. Target is absolute, inside the new root.
type Mount struct {
	Kind   MountKind `json:"k"`
	Target string    `json:"t"`
	Source string    `json:"s,omitempty"`
	// Writable leaves a MountProc writable.
	Writable bool `json:"w,omitempty"`
}

// EventKind is the kind of an Event.
type EventKind string

const (
	// Ready reports that everything is set up. With Job.Listen the packet carries the listener's descriptor.
	Ready EventKind = "ready"
	// Supervised reports that Job.Connections is in force. The packet carries the listener's descriptor.
	Supervised EventKind = "supervised"
	// Started reports that the step's first program has been executed.
	Started EventKind = "started"
	// Failed reports that Layer could not be set up; Error says why. The step has not run.
	Failed EventKind = "failed"
	// Ended reports that the main process has ended and all remaining processes are dead.
	Ended EventKind = "ended"
)

// An Event is a packet from the stage.
type Event struct {
	Kind  EventKind `json:"kind"`
	Layer string    `json:"layer,omitempty"`
	Error string    `json:"error,omitempty"`
	// Errno is that of the system call that failed, or 0.
	Errno int `json:"errno,omitempty"`
	// Status is the main process's wait status. Survivors counts the processes that outlived it and were killed,
	// Unreaped its ended children that it had not waited for.
	Status    uint32 `json:"status,omitempty"`
	Survivors int    `json:"survivors,omitempty"`
	Unreaped  int    `json:"unreaped,omitempty"`
	// CPU is the total CPU time of all reaped processes in nanoseconds, MaxRSS the size of the largest of them in
	// bytes.
	CPU    int64 `json:"cpu,omitempty"`
	MaxRSS int64 `json:"max_rss,omitempty"`
}

// The layers that a Failed event names; package sandbox reports them under the same names.
const (
	LayerUser       = "user namespace"
	LayerFileSystem = "private file system"
	LayerProc       = "own /proc"
	LayerUTS        = "UTS namespace"
	LayerNetwork    = "network namespace"
	LayerLimits     = "resource limits"
	LayerNoNewPrivs = "no new privileges"
	LayerIdentity   = "unprivileged identity"
	LayerLandlock   = "landlock"
	LayerSeccomp    = "seccomp"
	LayerPolicy     = "connection policy"
	LayerExec       = "start of the program"
)
