package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// guard adds the guard filter if the program needs it.
func (p *Process) guard() (err error) {
	if !p.ns.shared() || len(p.job.Filter) == 0 {
		return nil
	}
	if p.job.Guard, err = newGuard(p.leader.pid()); err != nil {
		return fmt.Errorf("guard the first process: %w", err)
	}
	return nil
}

// newGuard returns a seccomp filter for a program that runs as the sidecar's own user and sees its processes. Without
// it, the program could kill, limit or slow down the sidecar and the stage, and outlive both. From Linux 6.12 on,
// Landlock also refuses signals, but treats the stage as part of the program.
func newGuard(stage int) (filter, error) {
	self, group := os.Getpid(), unix.Getpgrp()
	// A process, its group, or all processes.
	targets := []int{stage, self, -stage, -self, -group, -1}
	var program []bpf.Instruction
	for _, call := range []uint32{unix.SYS_KILL, unix.SYS_TGKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO} {
		program = append(program, ifCall(call, refuseValues(0, targets...)...)...)
	}
	// By thread ID, by descriptor, and through a file's owner; the C library uses none of them.
	for _, call := range []uint32{unix.SYS_TKILL, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_IOPRIO_SET} {
		program = append(program, ifCall(call, refused)...)
	}
	program = append(program, ifCall(unix.SYS_FCNTL, refuseValues(1, unix.F_SETOWN, unix.F_SETOWN_EX)...)...)
	program = append(program, ifCall(unix.SYS_IOCTL, refuseValues(1, fioSetOwn, sioSetPGroup)...)...)
	// Setting a CPU-time limit of zero also kills a process.
	for _, call := range []uint32{
		unix.SYS_PRLIMIT64, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM,
		unix.SYS_SCHED_SETATTR,
	} {
		program = append(program, ifCall(call, onlyZero(0)...)...)
	}
	program = append(program, ifCall(unix.SYS_SETPRIORITY, append(onlyZero(0), onlyZero(1)...)...)...)
	return assemble(append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}))
}

// The ways to set the process that gets a socket's signals, see socket(7).
const (
	fioSetOwn    = 0x8901
	sioSetPGroup = 0x8902
)

// refused is the instruction that refuses a call.
var refused bpf.Instruction = bpf.RetConstant{Val: uint32(refuse(unix.EPERM))}

// ifCall runs body for only one system call.
func ifCall(number uint32, body ...bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // the number in struct seccomp_data
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: number, SkipFalse: uint8(len(body))},
	}, body...)
}

// argument loads the lower half of an argument on a little-endian machine. The kernel reads only this half of a
// process ID.
func argument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: 16 + 8*n, Size: 4} }

func refuseValues(n uint32, values ...int) []bpf.Instruction {
	body := []bpf.Instruction{argument(n)}
	for _, value := range values {
		body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(value), SkipFalse: 1}, refused)
	}
	return body
}

func onlyZero(n uint32) []bpf.Instruction {
	return []bpf.Instruction{argument(n), bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, refused}
}
