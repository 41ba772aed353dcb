// Package sandbox runs one program, and everything it starts, where it can reach nothing but what it was given.
//
// New looks at what the kernel offers, Start runs a program inside, Wait returns when nothing of it is left. Between the
// sidecar and the program stands a small process of our own, package stage, as PID 1 of the program's namespaces.
//
// Every layer is a file here: namespaces.go, filesystem.go, landlock.go, seccomp.go, limits.go and cgroup.go, identity in
// namespaces.go. What a kernel or container withholds is left out, said once in the log and listed by Report; with
// ModeRequired it is an error. docs/sandbox.md is the threat model.
package sandbox
