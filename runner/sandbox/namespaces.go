package sandbox

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// insideID is the step's user and group ID inside a user namespace.
const insideID = 1000

// stageCapabilities are the capabilities that the stage needs in a user namespace in which it is not root: for mounts,
// for the loopback interface, and to drop the capabilities.
var stageCapabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP}

// namespaces says how to start the stage of one program.
type namespaces struct {
	attr syscall.SysProcAttr
	// mapSelf and step are the parts of the identity that the stage sets up itself.
	mapSelf *stage.IDMap
	step    *stage.Identity
	// isolated reports that namespaces other than a user namespace are created.
	isolated bool
}

// namespaces chooses how to start a program: with a user namespace if available; otherwise, if root may create them,
// with only the other namespaces; otherwise with none. host is the user that root gives the program, if any.
func (s *Sandbox) namespaces(host int, ownNetwork bool) namespaces {
	root := rooted()
	ns := namespaces{attr: syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	user := s.holds(stage.LayerUser)
	if root && s.holds(stage.LayerIdentity) {
		ns.step = &stage.Identity{UID: uint32(host), GID: uint32(host)}
		if user {
			ns.step = &stage.Identity{UID: insideID, GID: insideID}
		}
	}
	for _, flag := range []struct {
		layer string
		bit   uintptr
	}{
		{stage.LayerFileSystem, unix.CLONE_NEWNS}, {layerPID, unix.CLONE_NEWPID}, {layerIPC, unix.CLONE_NEWIPC},
		{stage.LayerUTS, unix.CLONE_NEWUTS},
	} {
		if s.holds(flag.layer) {
			ns.attr.Cloneflags |= flag.bit
		}
	}
	if ownNetwork {
		ns.attr.Cloneflags |= unix.CLONE_NEWNET
	}
	ns.isolated = ns.attr.Cloneflags != 0
	if user {
		ns.addUser(root, host, 1)
	}
	if ns.attr.Cloneflags&unix.CLONE_NEWPID == 0 {
		// If the sidecar dies, the stage must live until it has killed the other processes.
		ns.attr.Pdeathsig = 0
	}
	return ns
}

// addUser adds a user namespace. Root maps two users, so that the stage and the step differ and neither is root
// outside its own namespaces; for a fork server, root maps as many users as the forks need. An ordinary user can map
// only itself.
func (ns *namespaces) addUser(root bool, host, size int) {
	ns.attr.Cloneflags |= unix.CLONE_NEWUSER
	if root {
		ns.attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1},
			{ContainerID: insideID, HostID: host, Size: size}}
		ns.attr.GidMappings = ns.attr.UidMappings
		ns.attr.GidMappingsEnableSetgroups = true
		return
	}
	ns.attr.AmbientCaps = stageCapabilities
	ns.mapSelf = &stage.IDMap{UID: insideID, HostUID: os.Geteuid(), GID: insideID, HostGID: os.Getegid()}
}

// serveForks adapts the namespaces for a fork server, whose forks may have any of the users.
func (ns *namespaces) serveForks() {
	if ns.attr.UidMappings != nil {
		ns.addUser(true, firstUser, users)
	}
}

// forkRequest returns the request for a fork with these namespaces. In a user namespace inside the server's, IDs are as
// the server sees them.
func (ns namespaces) forkRequest() stage.ForkRequest {
	request := stage.ForkRequest{Step: ns.step}
	switch {
	case ns.mapSelf != nil:
		request.UIDMap = fmt.Sprintf("%d %d 1", insideID, insideID)
		request.DenySetgroups = true
	case ns.attr.UidMappings != nil:
		request.UIDMap = fmt.Sprintf("0 0 1\n%d %d 1", insideID, insideID+ns.attr.UidMappings[1].HostID-firstUser)
	}
	request.GIDMap = request.UIDMap
	return request
}

// shared reports whether a program runs as the sidecar's own user, among the sidecar's own processes.
func (ns namespaces) shared() bool { return !ns.ownPIDs() && ns.step == nil }

// stepID returns the user ID that the step sees.
func (ns namespaces) stepID() int {
	switch {
	case ns.step != nil:
		return int(ns.step.UID)
	case ns.mapSelf != nil:
		return ns.mapSelf.UID
	}
	return os.Geteuid()
}
