package stage

// Environ is the variable that turns a start of the binary into a stage; its value is Magic. Nothing else starts one.
const (
	Environ = "KIZEN_SANDBOX_STAGE"
	Magic   = "1"
)

// ControlFD is the stage's end of a SOCK_SEQPACKET socket pair: the Job comes in as the first packet, Events go out, one
// packet each, and its end of file means that the sidecar is gone. The step's own descriptors follow it.
const ControlFD = 3

// MaxPacket is the size in bytes of the largest Job or Event.
const MaxPacket = 160 << 10

// Threads is how many threads the stage has, at most. They count as the step's do where one limit holds for both.
const Threads = 8

// A Job tells the stage what to build and what to start in it. It comes from the sidecar alone.
type Job struct {
	// Argv and Env are the step's, exactly; Argv empty builds everything, starts nothing and reports Ready.
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// Dir is the step's working directory, inside the new root.
	Dir string `json:"dir"`
	// Files is how many descriptors after ControlFD the step inherits, as its 3, 4, ...
	Files int `json:"files"`
	// OwnPIDs says that the stage is PID 1 of its own namespace: whatever it leaves behind dies with it.
	OwnPIDs bool `json:"own_pids"`
	// MapSelf, when set, is written to the stage's own uid_map and gid_map (the start by an ordinary user).
	MapSelf *IDMap `json:"map_self,omitempty"`
	// Step is the identity that the step gets; nil keeps the stage's own.
	Step *Identity `json:"step,omitempty"`
	// Mounts are carried out in order in a new root file system; empty keeps the one there is.
	Mounts []Mount `json:"mounts,omitempty"`
	// Listen brings the loopback interface up and opens a listener on it, handed back with the Ready event.
	Listen bool `json:"listen,omitempty"`
	// Limits are set for the step and everything it starts.
	Limits []Limit `json:"limits,omitempty"`
	// Landlock is nil where it is not to be applied.
	Landlock *Landlock `json:"landlock,omitempty"`
	// Filter is a seccomp program, an array of struct sock_filter; empty applies none.
	Filter []byte `json:"filter,omitempty"`
	// Guard is a second such program.
	Guard []byte `json:"guard,omitempty"`
	// Hostname replaces the host's; empty where the stage has no UTS namespace.
	Hostname string `json:"hostname,omitempty"`
	// HideCgroups gives the step a cgroup namespace, so that it does not learn where on the host it lives.
	HideCgroups bool `json:"hide_cgroups,omitempty"`
	// ForkServer says that the program is one: it keeps the stage's privileges and applies identity, Landlock, seccomp and
	// the limit on processes to each of its forks, see ForkPlan.
	ForkServer bool `json:"fork_server,omitempty"`
}

// IDMap maps one user and one group: inside the namespace to outside.
type IDMap struct {
	UID, HostUID int
	GID, HostGID int
}

// Identity is what a process runs as.
type Identity struct{ UID, GID uint32 }

// Limit is one setrlimit(2), soft and hard alike.
type Limit struct {
	Resource int
	Value    uint64
}

// Landlock lists what stays reachable, by path inside the new root. Paths that do not exist are left out.
type Landlock struct {
	ReadDirs, ReadFiles, WriteDirs, WriteFiles []string
}

// MountKind says what a Mount does.
type MountKind string

const (
	// MountDir makes a directory, parents included.
	MountDir MountKind = "dir"
	// MountLink makes a symbolic link to Source.
	MountLink MountKind = "link"
	// MountFile writes a small file with the content Source.
	MountFile MountKind = "file"
	// MountBind shows Source (a file or directory of the host) read-only, no set-user-ID, no devices.
	MountBind MountKind = "bind"
	// MountDevice shows the device node Source.
	MountDevice MountKind = "device"
	// MountTmpfs mounts an empty writable file system with the options in Source.
	MountTmpfs MountKind = "tmpfs"
	// MountProc mounts a /proc of the stage's PID namespace, other users' processes hidden.
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

// EventKind says how far the stage is.
type EventKind string

const (
	// Ready: everything is built. With Job.Listen the packet carries the listener's descriptor.
	Ready EventKind = "ready"
	// Started: the step's first program has been executed.
	Started EventKind = "started"
	// Failed: Layer could not be set up; Error says why. Nothing of the step has run.
	Failed EventKind = "failed"
	// Ended: the main process ended and all that it left behind is dead.
	Ended EventKind = "ended"
)

// An Event is a packet from the stage.
type Event struct {
	Kind  EventKind `json:"kind"`
	Layer string    `json:"layer,omitempty"`
	Error string    `json:"error,omitempty"`
	// Status is the main process's wait status; Survivors counts the processes that outlived it and were killed, Unreaped
	// those that had ended and that it had not waited for.
	Status    uint32 `json:"status,omitempty"`
	Survivors int    `json:"survivors,omitempty"`
	Unreaped  int    `json:"unreaped,omitempty"`
	// CPU is the processor time in nanoseconds, MaxRSS the largest process in bytes, of all that has been waited for.
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
	LayerExec       = "start of the program"
)
