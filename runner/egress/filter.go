package egress

import (
	"encoding/binary"
	"fmt"
	"runtime"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The offsets in struct seccomp_data.
const (
	offsetNumber       = 0
	offsetArchitecture = 4
	offsetArguments    = 16
)

var (
	allow  bpf.Instruction = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	notify bpf.Instruction = bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
)

func refuse(errno unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

// architectures are the AUDIT_ARCH_* of the machines whose system calls the filter knows.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// x32 marks the system calls of amd64's x32 interface. No system call number of arm64 is that large.
const x32 = 0x40000000

// notified are the calls that always notify the supervisor. sendmsg passes its address in memory, which a filter
// cannot read.
var notified = []uint32{unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}

// refusedOptions are socket options, by level, that send packets to another destination than the connection's address:
// source routes, membership in multicast groups, and the choice of an interface.
var refusedOptions = map[uint32][]uint32{
	unix.SOL_SOCKET: {unix.SO_BINDTODEVICE, unix.SO_BINDTOIFINDEX},
	unix.IPPROTO_IP: {
		unix.IP_OPTIONS, unix.IP_ADD_MEMBERSHIP, unix.IP_ADD_SOURCE_MEMBERSHIP, unix.IP_BLOCK_SOURCE, unix.IP_UNBLOCK_SOURCE,
		unix.IP_MSFILTER, unix.IP_UNICAST_IF, mcastJoinGroup, mcastJoinSourceGroup, mcastBlockSource, mcastUnblockSource,
		mcastFilter,
	},
	unix.IPPROTO_IPV6: {
		unix.IPV6_JOIN_GROUP, unix.IPV6_JOIN_ANYCAST, unix.IPV6_RTHDR, unix.IPV6_RTHDRDSTOPTS, unix.IPV6_HOPOPTS,
		unix.IPV6_DSTOPTS,
		unix.IPV6_2292RTHDR, unix.IPV6_2292PKTOPTIONS, unix.IPV6_2292HOPOPTS, unix.IPV6_2292DSTOPTS, unix.IPV6_UNICAST_IF,
		unix.IPV6_ADDRFORM,
		mcastJoinGroup, mcastJoinSourceGroup, mcastBlockSource, mcastUnblockSource, mcastFilter,
	},
}

// The options of RFC 3678, which package unix lacks.
const (
	mcastJoinGroup       = 42
	mcastBlockSource     = 43
	mcastUnblockSource   = 44
	mcastJoinSourceGroup = 46
	mcastFilter          = 48
)

// Filter returns a seccomp program, an array of struct sock_filter. Use it together with a filter that refuses exotic
// socket families, io_uring and foreign architectures, and install it with SECCOMP_FILTER_FLAG_NEW_LISTENER.
func Filter() ([]byte, error) {
	architecture, ok := architectures[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("the filter for connections does not know the machine %s", runtime.GOARCH)
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArchitecture, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: architecture, SkipTrue: 1},
		refuse(unix.EPERM),
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32, SkipFalse: 1},
		refuse(unix.EPERM),
	}
	for _, call := range notified {
		program = append(program, ifCall(call, notify)...)
	}
	// Without an address, sendto sends to the peer that connect was permitted to reach.
	program = append(program, ifCall(unix.SYS_SENDTO,
		half(4, 0), bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, notify,
		half(4, 1), bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, notify, allow)...)
	program = append(program, ifCall(unix.SYS_SOCKET, sockets()...)...)
	program = append(program, options()...)
	raw, err := bpf.Assemble(append(program, allow))
	if err != nil {
		return nil, fmt.Errorf("assemble the filter for connections: %w", err)
	}
	var assembled []byte
	for _, r := range raw {
		assembled = binary.NativeEndian.AppendUint16(assembled, r.Op)
		assembled = append(assembled, r.Jt, r.Jf)
		assembled = binary.NativeEndian.AppendUint32(assembled, r.K)
	}
	return assembled, nil
}

// ifCall runs body for one system call only. The accumulator holds the number before and after it.
func ifCall(number uint32, body ...bpf.Instruction) []bpf.Instruction {
	program := append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: uint8(len(body))}},
		body...)
	return program
}

// half loads half of an argument, 0 the lower one, on a little-endian machine.
func half(argument, half uint32) bpf.Instruction {
	return bpf.LoadAbsolute{Off: offsetArguments + 8*argument + 4*half, Size: 4}
}

// sockets allows TCP and UDP over IP, and all sockets of other families, which another filter restricts. The kernel
// reads 32 bits of each argument.
func sockets() []bpf.Instruction {
	protocol := func(numbers ...uint32) (check []bpf.Instruction) {
		check = append(check, half(2, 0))
		for _, number := range numbers {
			check = append(check, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: 1}, allow)
		}
		return append(check, refuse(unix.EPROTONOSUPPORT))
	}
	stream, datagram := protocol(0, unix.IPPROTO_TCP), protocol(0, unix.IPPROTO_UDP)
	const typeMask = 0xf // SOCK_TYPE_MASK; the rest are SOCK_NONBLOCK and SOCK_CLOEXEC
	program := []bpf.Instruction{
		half(0, 0),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 1},
		allow,
		half(1, 0),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: typeMask},
	}
	program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SOCK_STREAM, SkipTrue: uint8(len(stream))})
	program = append(program, stream...)
	program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SOCK_DGRAM, SkipTrue: uint8(len(datagram))})
	program = append(program, datagram...)
	return append(program, refuse(unix.EPERM))
}

// options refuses the options of refusedOptions.
func options() []bpf.Instruction {
	var body []bpf.Instruction
	for _, level := range []uint32{unix.SOL_SOCKET, unix.IPPROTO_IP, unix.IPPROTO_IPV6} {
		check := []bpf.Instruction{half(2, 0)}
		for _, option := range refusedOptions[level] {
			check = append(check, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: option, SkipTrue: 1}, refuse(unix.EPERM))
		}
		check = append(check, allow)
		body = append(body, half(1, 0), bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: level, SkipTrue: uint8(len(check))})
		body = append(body, check...)
	}
	return ifCall(unix.SYS_SETSOCKOPT, append(body, allow)...)
}
