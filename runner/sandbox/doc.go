// Package sandbox runs one program, and everything it starts, isolated from the rest of the machine.
//
// New detects the features of the kernel, Start runs a program in the sandbox, and Wait returns when all its processes
// are gone. A small process of our own, package stage, runs between the sidecar and the program as PID 1 of the
// program's namespaces. Each layer has its file: namespaces.go (also for the identity), filesystem.go, landlock.go,
// seccomp.go, limits.go and cgroup.go. If a kernel or container does not support a layer, the sandbox omits it, logs
// it once and lists it in Report; with ModeRequired it is an error. docs/sandbox.md contains the threat model.
package sandbox
