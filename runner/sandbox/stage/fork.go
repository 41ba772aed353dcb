package stage

import (
	"encoding/binary"
	"fmt"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// A fork server is a program that the stage has started and that forks programs, each into a sandbox of its own within the
// one of the server. It is told what to do on its descriptor 3, a SOCK_SEQPACKET socket: first one ForkPlan, then a
// ForkRequest for each fork, answered by a ForkReply. The first process of each fork sends Events as a stage does.

// ForkPlan is what is the same for all forks of one server. System calls and their arguments are decided here; the server
// makes them.
type ForkPlan struct {
	// Calls are the numbers of the system calls that libraries have no names for.
	Calls map[string]uintptr `json:"calls"`
	// Namespaces are flags of clone(2). They are of the fork's own; CLONE_NEWUSER takes the maps of the request.
	Namespaces uint64 `json:"namespaces"`
	// Mounts are carried out in order, over what the server sees.
	Mounts []ForkMount `json:"mounts"`
	// Dir is the working directory, entered once it has been mounted.
	Dir string `json:"dir"`
	// HideCgroups gives each fork a cgroup namespace.
	HideCgroups bool `json:"hide_cgroups"`
	// Listen opens a listener as Job.Listen does.
	Listen bool `json:"listen"`
	// Limits are set with setrlimit(2) beside those that the server has.
	Limits []Limit `json:"limits"`
	// Capabilities says that the step keeps the user id it has, so that capset(2) has to empty its capabilities.
	Capabilities bool `json:"capabilities"`
	// Landlock is nil where it is not to be applied.
	Landlock *ForkLandlock `json:"landlock"`
	// Filter is the seccomp program, as Job.Filter.
	Filter []byte `json:"filter"`
}

// ForkMount is one call of mount(2) for a file system of the kernel's own.
type ForkMount struct {
	Type    string `json:"type"`
	Target  string `json:"target"`
	Flags   uint64 `json:"flags"`
	Options string `json:"options"`
}

// ForkLandlock is a ruleset: the bytes of struct landlock_ruleset_attr, and for each path what is allowed below it.
type ForkLandlock struct {
	Attr  []byte            `json:"attr"`
	Paths []ForkLandlockDir `json:"paths"`
}

// ForkLandlockDir allows a set of LANDLOCK_ACCESS_FS_* below a path.
type ForkLandlockDir struct {
	Path   string `json:"path"`
	Access uint64 `json:"access"`
}

// ForkRequest asks for one fork. With it come, in this order: the fork's end of its control socket, its standard output
// and error, Files descriptors for the program, and what says which cgroups it belongs to.
type ForkRequest struct {
	// UIDMap and GIDMap are written for the fork's user namespace, if it has one. DenySetgroups says that its user may not.
	UIDMap        string `json:"uid_map"`
	GIDMap        string `json:"gid_map"`
	DenySetgroups bool   `json:"deny_setgroups"`
	// Step is the identity that the program gets; nil keeps the server's.
	Step  *Identity `json:"step"`
	Files int       `json:"files"`
	// Groups is how many "tasks" files of cgroups (v1) come along, the fork's, each followed by the server's own.
	Groups int `json:"groups"`
	// Into says that the last descriptor is the directory of a cgroup (v2).
	Into bool `json:"into"`
}

// ForkReply comes with the pidfd of the fork's first process, unless there is an error.
type ForkReply struct {
	Error string `json:"error"`
}

// ForkCalls are the calls that a fork server makes by number.
var ForkCalls = map[string]uintptr{
	"clone3": unix.SYS_CLONE3, "seccomp": unix.SYS_SECCOMP, "capset": unix.SYS_CAPSET,
	"landlock_create_ruleset": unix.SYS_LANDLOCK_CREATE_RULESET, "landlock_add_rule": unix.SYS_LANDLOCK_ADD_RULE,
	"landlock_restrict_self": unix.SYS_LANDLOCK_RESTRICT_SELF,
}

// PlanFork turns what a stage would mount into what a fork mounts anew: that which is not to be shared.
func PlanFork(m Mount) (ForkMount, bool) {
	switch m.Kind {
	case MountTmpfs:
		return ForkMount{"tmpfs", m.Target, tmpfsFlags, m.Source}, true
	case MountProc:
		return ForkMount{"proc", m.Target, procFlags, m.Source}, true
	}
	return ForkMount{}, false
}

// Plan writes the rules down as the kernel takes them.
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
