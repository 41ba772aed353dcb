package sandbox

import (
	"encoding/binary"
	"fmt"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// filter is an assembled seccomp program: an array of struct sock_filter.
type filter []byte

// deniedCalls are refused with EPERM: calls that inspect or change other processes, mounts, namespaces and the kernel,
// and interfaces whose bugs have allowed sandbox escapes. It is a short deny list, because every new libc breaks an
// allow list. Calls that an architecture lacks are omitted.
var deniedCalls = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
	"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
	"mount_setattr", "open_by_handle_at", "name_to_handle_at", "quotactl", "quotactl_fd", "swapon", "swapoff",
	"unshare", "setns",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup",
	"keyctl", "add_key", "request_key",
	"kexec_load", "kexec_file_load", "reboot", "init_module", "finit_module", "delete_module", "create_module",
	"acct", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
	"iopl", "ioperm", "modify_ldt", "vhangup", "lookup_dcookie", "nfsservctl", "uselib", "ustat", "_sysctl", "personality",
	// These show which files other processes open in shared directories.
	"inotify_init", "inotify_init1", "inotify_add_watch", "fanotify_init",
	"migrate_pages", "move_pages", "vmsplice",
}

// newNamespaces are the flags of clone(2) that create namespaces. clone(2) has no CLONE_NEWTIME.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// newFilter assembles the program for this machine's architecture; it refuses every other architecture, including x32.
func newFilter() (filter, error) {
	machine, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("no system call table: %w", err)
	}
	known := func(names ...string) []string {
		var found []string
		for _, name := range names {
			if _, ok := machine.SyscallNames[name]; ok {
				found = append(found, name)
			}
		}
		return found
	}
	policy := seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
		{Names: known(deniedCalls...), Action: refuse(unix.EPERM)},
		// The flags of clone3 are in memory, which a filter cannot read. After ENOSYS, the libc falls back to clone.
		{Names: known("clone3"), Action: refuse(unix.ENOSYS)},
		{Action: refuse(unix.EPERM), NamesWithCondtions: []seccomp.NameWithConditions{
			{Name: "clone", Conditions: seccomp.ArgumentConditions{
				{Argument: 0, Operation: seccomp.BitsSet, Value: newNamespaces}}},
			// TIOCSTI injects input into another process's terminal.
			{Name: "ioctl", Conditions: equal32(1, unix.TIOCSTI)},
			{Name: "ioctl", Conditions: equal32(1, unix.TIOCLINUX)},
			{Name: "fcntl", Conditions: equal32(1, unix.F_NOTIFY)},
			// A lease blocks other processes that open the file, and reports them.
			{Name: "fcntl", Conditions: equal32(1, unix.F_SETLEASE)},
			{Name: "prctl", Conditions: equal32(0, unix.PR_SET_MM)},
			// Refuse to set the limits of another process: a CPU-time limit would kill the first process, although no
			// signal from inside can.
			{Name: "prlimit64", Conditions: seccomp.ArgumentConditions{
				{Argument: 0, Operation: seccomp.NotEqual, Value: 0}, {Argument: 2, Operation: seccomp.NotEqual, Value: 0}}},
			{Name: "socket", Conditions: otherFamilies},
			{Name: "socketpair", Conditions: otherFamilies},
		}},
	}}
	instructions, err := policy.Assemble()
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	return assemble(append(onlyArchitecture(uint32(machine.ID)), instructions...))
}

// otherFamilies matches every address family that steps do not use: netlink, packet, vsock and other exotic families
// are the least tested parts of the kernel. Comparing all 64 bits can only refuse too much.
var otherFamilies = seccomp.ArgumentConditions{
	{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_UNIX},
	{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET},
	{Argument: 0, Operation: seccomp.NotEqual, Value: unix.AF_INET6},
}

// equal32 matches an argument of which the kernel reads only 32 bits. Comparing all 64 bits would miss values with
// bits set in the upper half.
func equal32(argument, value uint32) seccomp.ArgumentConditions {
	conditions := seccomp.ArgumentConditions{
		{Argument: argument, Operation: seccomp.BitsNotSet, Value: uint64(^value)}}
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if value&bit != 0 {
			conditions = append(conditions,
				seccomp.Condition{Argument: argument, Operation: seccomp.BitsSet, Value: uint64(bit)})
		}
	}
	return conditions
}

func refuse(errno syscall.Errno) seccomp.Action { return seccomp.ActionErrno | seccomp.Action(errno) }

// onlyArchitecture refuses the system calls of other architectures. They have other numbers, and seccomp.Policy would
// apply its default action and allow them.
func onlyArchitecture(id uint32) []bpf.Instruction {
	const offsetOfArch = 4 // in struct seccomp_data
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetOfArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: id, SkipTrue: 1},
		bpf.RetConstant{Val: uint32(refuse(unix.EPERM))},
	}
}

func assemble(instructions []bpf.Instruction) (filter, error) {
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	var program filter
	for _, r := range raw {
		program = binary.NativeEndian.AppendUint16(program, r.Op)
		program = append(program, r.Jt, r.Jf)
		program = binary.NativeEndian.AppendUint32(program, r.K)
	}
	return program, nil
}
