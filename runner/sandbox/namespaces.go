package sandbox

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// insideID is the user and group id that the step sees itself as, where there is a user namespace.
const insideID = 1000

// stageCapabilities are what the stage needs to build a sandbox in a user namespace where it is not root: mounts, the
// loopback interface, and giving the capabilities up.
var stageCapabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP}

// namespaces is how the stage of one program is started.
type namespaces struct {
	attr syscall.SysProcAttr
	// mapSelf and step are what the stage has to do about identity itself.
	mapSelf *stage.IDMap
	step    *stage.Identity
	// isolated says that namespaces other than a user's are made.
	isolated bool
}

// namespaces chooses how to start a program: with a user namespace, where there is one; with the others alone, where root
// may; or with none. host is its user, where root gives it one.
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
		// The stage has to outlive the sidecar for as long as it takes to kill the rest.
		ns.attr.Pdeathsig = 0
	}
	return ns
}

// addUser adds a user namespace. Root maps two users, so that the stage and the step differ and neither is root outside
// its own namespaces, or as many users as a fork server's forks take; an ordinary user can map only itself.
func (ns *namespaces) addUser(root bool, host, size int) {
	ns.attr.Cloneflags |= unix.CLONE_NEWUSER
	if root {
		ns.attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: insideID, HostID: host, Size: size}}
		ns.attr.GidMappings = ns.attr.UidMappings
		ns.attr.GidMappingsEnableSetgroups = true
		return
	}
	ns.attr.AmbientCaps = stageCapabilities
	ns.mapSelf = &stage.IDMap{UID: insideID, HostUID: os.Geteuid(), GID: insideID, HostGID: os.Getegid()}
}

// serveForks makes them those of a fork server, whose forks are any of the users.
func (ns *namespaces) serveForks() {
	if ns.attr.UidMappings != nil {
		ns.addUser(true, firstUser, users)
	}
}

// forkRequest asks for a fork with these namespaces. In a user namespace within the server's, ids are those that the server
// sees.
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

// stepID is the user id that the step sees itself as.
func (ns namespaces) stepID() int {
	switch {
	case ns.step != nil:
		return int(ns.step.UID)
	case ns.mapSelf != nil:
		return ns.mapSelf.UID
	}
	return os.Geteuid()
}
