package stage

import (
	"encoding/binary"
	"fmt"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// A fork server is a program that the stage has started. It forks programs, each into its own sandbox inside the
// server's. It receives its instructions on descriptor 3, a SOCK_SEQPACKET socket: first one ForkPlan, then a
// ForkRequest for each fork, to which it replies with a ForkReply. The first process of each fork sends Events, as a
// stage does.

// ForkPlan holds everything common to all forks of one server. The plan determines the system calls and their
// arguments; the server executes them.
type ForkPlan struct {
	// Calls are the numbers of system calls without a library function.
	Calls map[string]uintptr `json:"calls"`
	// Namespaces are the flags of clone(2) for the fork's own namespaces; CLONE_NEWUSER uses the maps of the
	// request.
	Namespaces uint64 `json:"namespaces"`
	// Mounts are executed in order, on top of the server's file system.
	Mounts []ForkMount `json:"mounts"`
	// Dir is the working directory, entered once it has been mounted.
	Dir string `json:"dir"`
	// HideCgroups gives each fork a cgroup namespace.
	HideCgroups bool `json:"hide_cgroups"`
	// Listen opens a listener as Job.Listen does.
	Listen bool `json:"listen"`
	// Limits are set with setrlimit(2) in addition to the server's.
	Limits []Limit `json:"limits"`
	// Capabilities reports that the step keeps its user ID, so that capset(2) must clear its capabilities.
	Capabilities bool `json:"capabilities"`
	// Landlock is nil if it is not applied.
	Landlock *ForkLandlock `json:"landlock"`
	// Filter and Connections are the seccomp programs, as in Job.
	Filter      []byte `json:"filter"`
	Connections []byte `json:"connections"`
}

// ForkMount is one call of mount(2) for a virtual file system.
type ForkMount struct {
	Type    string `json:"type"`
	Target  string `json:"target"`
	Flags   uint64 `json:"flags"`
	Options string `json:"options"`
}

// ForkLandlock is a ruleset: the bytes of struct landlock_ruleset_attr, and the allowed accesses below each path.
type ForkLandlock struct {
	Attr  []byte            `json:"attr"`
	Paths []ForkLandlockDir `json:"paths"`
}

// ForkLandlockDir allows a set of LANDLOCK_ACCESS_FS_* below a path.
type ForkLandlockDir struct {
	Path   string `json:"path"`
	Access uint64 `json:"access"`
}

// ForkRequest requests one fork. It comes with these descriptors, in order: the fork's end of its control socket, its
// standard output and error, Files descriptors for the program, and those of its cgroups.
type ForkRequest struct {
	// UIDMap and GIDMap are the maps of the fork's user namespace, if it has one. DenySetgroups forbids
	// setgroups(2) in it.
	UIDMap        string `json:"uid_map"`
	GIDMap        string `json:"gid_map"`
	DenySetgroups bool   `json:"deny_setgroups"`
	// Step is the program's identity; nil keeps the server's.
	Step  *Identity `json:"step"`
	Files int       `json:"files"`
	// Groups is the number of the fork's "tasks" files of cgroups (v1), each followed by the server's own.
	Groups int `json:"groups"`
	// Into reports that the last descriptor is the directory of a cgroup (v2).
	Into bool `json:"into"`
}

// ForkReply carries the pidfd of the fork's first process, unless Error is set.
type ForkReply struct {
	Error string `json:"error"`
}

// ForkCalls maps the names of calls that a fork server makes by number.
var ForkCalls = map[string]uintptr{
	"clone3": unix.SYS_CLONE3, "seccomp": unix.SYS_SECCOMP, "capset": unix.SYS_CAPSET,
	"landlock_create_ruleset": unix.SYS_LANDLOCK_CREATE_RULESET, "landlock_add_rule": unix.SYS_LANDLOCK_ADD_RULE,
	"landlock_restrict_self": unix.SYS_LANDLOCK_RESTRICT_SELF,
	"pidfd_open":             unix.SYS_PIDFD_OPEN, "pidfd_getfd": unix.SYS_PIDFD_GETFD,
}

// PlanFork returns the mount that a fork must repeat for a mount of the stage, because the two must not share it.
func PlanFork(m Mount) (ForkMount, bool) {
	switch m.Kind {
	case MountTmpfs:
		return ForkMount{"tmpfs", m.Target, tmpfsFlags, m.Source}, true
	case MountProc:
		return ForkMount{"proc", m.Target, procFlags, m.Source}, true
	}
	return ForkMount{}, false
}

// Plan encodes the rules in the kernel's format.
func (l *Landlock) Plan() (*ForkLandlock, error) {
	version, err := landlock.LandlockGetABIVersion()
	if err != nil {
		return nil, fmt.Errorf("ask for Landlock's version: %w", err)
	}
	attr := handled(version)
	plan := &ForkLandlock{}
	if plan.Attr, err = binary.Append(nil, binary.NativeEndian, attr); err != nil {
		return nil, fmt.Errorf("encode Landlock's ruleset: %w", err)
	}
	for _, rule := range l.rules() {
		for _, path := range rule.paths {
			plan.Paths = append(plan.Paths, ForkLandlockDir{path, rule.access & attr.HandledAccessFS})
		}
	}
	return plan, nil
}
