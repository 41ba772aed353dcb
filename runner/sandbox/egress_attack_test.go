package sandbox

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// escapes are attempts to reach a target that the policy forbids. Each runs in a process of its own and reads the
// target from "forbidden".
var escapes = []struct {
	name, code string
	// never means that the sandbox refuses the attempt with every network, even the host's.
	never bool
}{
	{"connect", `tcp().connect(forbidden)`, false},
	{"connect_ex", `tcp().connect_ex(forbidden)`, false},
	{"a connect with a time limit", `socket.create_connection(forbidden, 5).recv(1)`, false},
	{"a connect that does not wait", `
s = tcp(); s.setblocking(False); s.connect_ex(forbidden); select.select([], [s], [], 2)`, false},
	{"a connect that epoll waits for", `
s = tcp(); s.setblocking(False); e = select.epoll(); e.register(s, select.EPOLLOUT); s.connect_ex(forbidden); e.poll(2)`, false},
	{"asyncio", `
import asyncio
asyncio.run(asyncio.open_connection(*forbidden))`, false},
	{"asyncio with datagrams", `
import asyncio
async def main():
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=forbidden)
    transport.sendto(b"x"); await asyncio.sleep(.05)
asyncio.run(main())`, false},
	{"an IPv4-mapped address", `tcp(socket.AF_INET6).connect(("::ffff:127.0.0.1", forbidden[1]))`, false},
	{"an IPv4-mapped address with IPV6_V6ONLY off", `
s = tcp(socket.AF_INET6); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); s.connect(("::ffff:127.0.0.1", forbidden[1]))`, false},
	{"the unspecified address", `tcp().connect(("0.0.0.0", forbidden[1]))`, false},
	{"the unspecified address, IPv4-mapped", `tcp(socket.AF_INET6).connect(("::ffff:0.0.0.0", forbidden[1]))`, false},
	{"datagrams to the unspecified address", `udp().sendto(b"x", ("0.0.0.0", forbidden[1]))`, false},
	{"a name in the hosts file", `tcp().connect(("localhost", forbidden[1]))`, false},
	{"options before the connect", `
s = tcp(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.connect(forbidden)`, false},
	{"a local address before the connect", `s = tcp(); s.bind(("127.0.0.1", 0)); s.connect(forbidden)`, false},
	{"an address that is longer than it needs to be",
		`s = tcp(); libc.connect(s.fileno(), sockaddr(*forbidden) + bytes(112), 128)`, false},
	{"high bits in the arguments", `
s = tcp(); a = ctypes.create_string_buffer(sockaddr(*forbidden))
libc.syscall(ctypes.c_long(42), ctypes.c_long(s.fileno() | 1 << 32), ctypes.c_void_p(ctypes.addressof(a)), ctypes.c_long(16 | 1 << 40))`, false},
	{"a system call without the library", `
s = tcp(); a = ctypes.create_string_buffer(sockaddr(*forbidden))
libc.syscall(ctypes.c_long(42), ctypes.c_long(s.fileno()), ctypes.c_void_p(ctypes.addressof(a)), ctypes.c_long(16))`, false},
	{"a connected datagram socket", `s = udp(); s.connect(forbidden); s.send(b"x")`, false},
	{"a connected datagram socket that writes", `s = udp(); s.connect(forbidden); os.writev(s.fileno(), [b"x", b"y"])`,
		false},
	{"sendto", `udp().sendto(b"x", forbidden)`, false},
	{"sendto with flags", `udp().sendto(b"x", socket.MSG_DONTWAIT | socket.MSG_CONFIRM, forbidden)`, false},
	{"sendmsg", `udp().sendmsg([b"x", b"y"], [], 0, forbidden)`, false},
	{"sendmsg with control messages",
		`udp().sendmsg([b"x"], [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 9))], 0, forbidden)`, false},
	{"sendmmsg", `mmsg(udp(), forbidden)`, false},
	{"sendmmsg whose second message goes elsewhere", `mmsg(udp(), permitted, forbidden)`, false},
	{"sendmmsg from a connected socket", `s = udp(); s.connect(permitted); mmsg(s, None, forbidden)`, false},
	{"a connected socket that sends elsewhere", `s = udp(); s.connect(permitted); s.sendto(b"x", forbidden)`, false},
	{"a connected socket that sends a message elsewhere",
		`s = udp(); s.connect(permitted); s.sendmsg([b"x"], [], 0, forbidden)`, false},
	{"a connected socket that connects again", `s = udp(); s.connect(permitted); s.connect(forbidden); s.send(b"x")`,
		false},
	{"a connection that was dissolved", `
s = udp(); s.connect(permitted); libc.connect(s.fileno(), bytes(16), 16); s.sendto(b"x", forbidden)`, false},
	{"a TCP connection that was dissolved", `
s = tcp(); s.connect(permitted); libc.connect(s.fileno(), bytes(16), 16); s.connect(forbidden)`, false},
	{"a datagram without a family", `
s = udp(); a = bytes(2) + sockaddr(*forbidden)[2:]; libc.sendto(s.fileno(), b"x", 1, 0, a, 16)`, false},
	{"a message without a family", `
s = udp(); message(s, bytes(2) + sockaddr(*forbidden)[2:], "sendmsg")`, false},
	{"a datagram to an IPv4-mapped address", `udp(socket.AF_INET6).sendto(b"x", ("::ffff:127.0.0.1", forbidden[1]))`,
		false},
	{"a message to an IPv4-mapped address",
		`udp(socket.AF_INET6).sendmsg([b"x"], [], 0, ("::ffff:127.0.0.1", forbidden[1]))`, false},
	{"an IPv4 address on an IPv6 socket",
		`s = udp(socket.AF_INET6); libc.sendto(s.fileno(), b"x", 1, 0, sockaddr(*forbidden), 16)`, false},
	{"an IPv4 address that an IPv6 socket connects to", `
s = udp(socket.AF_INET6); libc.connect(s.fileno(), sockaddr(*forbidden), 16); s.send(b"x")`, false},
	{"TCP fast open", `s = tcp(); s.sendto(b"x", socket.MSG_FASTOPEN, forbidden)`, false},
	{"TCP fast open in a message", `s = tcp(); s.sendmsg([b"x"], [], socket.MSG_FASTOPEN, forbidden)`, false},
	{"TCP fast open at the connect", `
s = tcp(); s.setsockopt(socket.IPPROTO_TCP, 30, 1); s.connect(forbidden); s.send(b"x")`, false},
	{"multipath TCP", `socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(forbidden)`, false},
	{"an interface that is chosen",
		`s = tcp(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"); s.connect(forbidden)`, false},
	{"a thread", `t = threading.Thread(target=lambda: tcp().connect(forbidden)); t.start(); t.join()`, false},
	{"a forked child", `
if os.fork() == 0: tcp().connect(forbidden); os._exit(0)
os.wait()`, false},
	{"a child's child in a session of its own", `
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: tcp().connect(forbidden)
    else: os.wait()
    os._exit(0)
os.wait()`, false},
	{"an executed program",
		`subprocess.run([sys.executable, "-I", "-S", "-c", f"import socket; socket.create_connection({forbidden})"])`, false},
	{"a program that takes the process's place",
		`os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", f"import socket; socket.create_connection({forbidden})"])`, false},
	{"a spawned program", `
os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", f"import socket; socket.create_connection({forbidden})"], {}), 0)`, false},
	{"a program that inherits the socket", `
s = tcp(); s.set_inheritable(True)
subprocess.run([sys.executable, "-I", "-S", "-c", f"import socket; socket.socket(fileno={s.fileno()}).connect({forbidden})"], close_fds=False)`, false},
	{"the shell's /dev/tcp", `subprocess.run(["bash", "-c", f"echo x > /dev/tcp/127.0.0.1/{forbidden[1]}"])`, false},
	{"the shell's /dev/udp", `subprocess.run(["bash", "-c", f"echo x > /dev/udp/127.0.0.1/{forbidden[1]}"])`, false},
	{"perl", `subprocess.run(["perl", "-MSocket", "-e", f"socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in({forbidden[1]}, INADDR_LOOPBACK))"])`, false},
	{"a duplicated socket", `s = tcp(); t = s.dup(); s.close(); t.connect(forbidden)`, false},
	{"a socket that came over a Unix socket", `
a, b = socket.socketpair()
if os.fork() == 0:
    s = tcp(); socket.send_fds(a, [b"x"], [s.fileno()]); os._exit(0)
_, (fd,), _, _ = socket.recv_fds(b, 1, 1)
socket.socket(fileno=fd).connect(forbidden)`, false},
	{"a socket that a child connects and sends", `
a, b = socket.socketpair()
if os.fork() == 0:
    s = tcp(); s.connect(forbidden); socket.send_fds(a, [b"x"], [s.fileno()]); os._exit(0)
socket.recv_fds(b, 1, 1)[1]`, false},
	{"a connect that signals interrupt", `
import signal
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
s = tcp(); s.connect(forbidden)`, false},
	{"urllib", `
import urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{forbidden[1]}/", timeout=1)`, false},
	{"smtplib", `
import smtplib
smtplib.SMTP(*forbidden, timeout=1)`, false},
	{"logging over the network", `
import logging, logging.handlers
logging.handlers.DatagramHandler(*forbidden).emit(logging.makeLogRecord({"msg": "x"}))`, false},
	{"multiprocessing's client", `
from multiprocessing.connection import Client
Client(forbidden)`, false},
	{"a filter of its own that allows everything", `
libc.prctl(22, 2, ctypes.byref(everything())); tcp().connect(forbidden)`, false},
	{"a listener of its own, which would answer in the supervisor's place", `
listener = libc.syscall(ctypes.c_long(317), ctypes.c_long(1), ctypes.c_long(8), ctypes.byref(everything()))
tcp().connect(forbidden)`, false},
	{"an address that another thread rewrites", `
a = ctypes.create_string_buffer(sockaddr(*permitted), 16); other = sockaddr(*forbidden); own = sockaddr(*permitted)
race(lambda: ctypes.memmove(a, other, 16) and ctypes.memmove(a, own, 16), lambda: [libc.connect(s.fileno(), a, 16) for s in [tcp()]])`, false},
	{"a datagram's address that another thread rewrites", `
a = ctypes.create_string_buffer(sockaddr(*permitted), 16); other = sockaddr(*forbidden); own = sockaddr(*permitted); s = udp()
race(lambda: ctypes.memmove(a, other, 16) and ctypes.memmove(a, own, 16), lambda: libc.sendto(s.fileno(), b"x", 1, 0, a, 16))`, false},
	{"an address that a child rewrites in shared memory", `
m = mmap.mmap(-1, 4096); m[:16] = sockaddr(*permitted); a = (ctypes.c_char * 16).from_buffer(m); end = time.monotonic() + RACE
if os.fork() == 0:
    while time.monotonic() < end: m[2:4] = sockaddr(*forbidden)[2:4]; m[2:4] = sockaddr(*permitted)[2:4]
    os._exit(0)
while time.monotonic() < end: s = tcp(); libc.connect(s.fileno(), a, 16); s.close()`, false},
	{"a socket that another thread puts in the place of a Unix socket", `
left, right = socket.socketpair(); number = left.dup().detach()
def swap():
    s = tcp(); os.dup2(s.fileno(), number); os.dup2(left.fileno(), number); s.close()
race(swap, lambda: libc.connect(number, sockaddr(*forbidden), 16))`, false},
	{"a datagram socket that another thread puts in the place of a Unix socket", `
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); number = left.dup().detach(); s = udp()
def swap(): os.dup2(s.fileno(), number); os.dup2(left.fileno(), number)
race(swap, lambda: message_to(number, sockaddr(*forbidden)))`, false},
	{"a datagram socket that connects to the forbidden target while another thread sends", `
s = udp()
race(lambda: (libc.connect(s.fileno(), sockaddr(*permitted), 16), libc.connect(s.fileno(), sockaddr(*forbidden), 16)), lambda: libc.send(s.fileno(), b"x", 1, 0))`, false},
	{"a flood of connects", `
for _ in range(500):
    s = tcp(); s.setblocking(False); s.connect_ex(forbidden); s.close()`, false},
	{"io_uring", `
p = ctypes.create_string_buffer(120); fd = libc.syscall(ctypes.c_long(425), ctypes.c_long(8), p); assert fd < 0; os.write(1, b"")`, true},
	{"a call of the 32-bit interface", `
code = mmap.mmap(-1, 4096, prot=7); code.write(b"\xb8\x66\x01\x00\x00\xcd\x80\xc3"); f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
f()`, true},
	{"a call of the x32 interface", `
s = tcp(); a = ctypes.create_string_buffer(sockaddr(*forbidden))
libc.syscall(ctypes.c_long(42 | 0x40000000), ctypes.c_long(s.fileno()), ctypes.c_void_p(ctypes.addressof(a)), ctypes.c_long(16))`, true},
	{"a packet socket", `socket.socket(socket.AF_PACKET, socket.SOCK_RAW)`, true},
	{"a raw socket", `socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)`, true},
	{"netlink", `socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)`, true},
	{"vsock", `socket.socket(40, socket.SOCK_STREAM).connect((2, 1))`, true},
	{"another network namespace", `libc.unshare(0x40000000); tcp().connect(forbidden) if False else None`, true},
}

// escaping is the program that runs each attempt in a process of its own.
const escaping = `
import ctypes, errno, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time
os.read(3, 1)
RACE = .3
permitted = ("127.0.0.1", int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
def sockaddr(host, port): return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
def tcp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_STREAM)
def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]
class Header(ctypes.Structure): _fields_ = [("name", ctypes.c_char_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(Vector)), ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]
class Many(ctypes.Structure): _fields_ = [("header", Header), ("len", ctypes.c_uint32)]
def header(address): return Header(address, len(address or b""), ctypes.pointer(Vector(b"x", 1)), 1, None, 0, 0)
def message(s, address, call): getattr(libc, call)(s.fileno(), ctypes.byref(header(address)), 0)
def message_to(number, address): libc.sendmsg(number, ctypes.byref(header(address)), socket.MSG_DONTWAIT)
def mmsg(s, *targets):
    rest = [sockaddr(*target) if target else None for target in targets]
    while rest:
        batch = (Many * len(rest))(*[Many(header(target)) for target in rest])
        sent = libc.sendmmsg(s.fileno(), batch, len(rest), 0)
        if sent <= 0: break
        assert batch[0].len == 1
        rest = rest[sent:]
def race(one, other):
    end = time.monotonic() + RACE
    def spin():
        while time.monotonic() < end: one()
    t = threading.Thread(target=spin); t.start()
    while time.monotonic() < end: other()
    t.join()
class Filter(ctypes.Structure): _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
def everything(): return Filter(1, struct.pack("=HBBI", 6, 0, 0, 0x7fff0000))
null = os.open("/dev/null", os.O_WRONLY)
for attempt, port in zip(open(4).read().split("\0"), sys.argv[2].split()):
    pid = os.fork()
    if pid == 0:
        os.dup2(null, 1); os.dup2(null, 2); signal.alarm(10)
        try: exec(attempt, {**globals(), "forbidden": ("127.0.0.1", int(port))})
        except BaseException: pass
        os._exit(0)
    os.waitpid(pid, 0)
print("done")
`

// escapeTo runs the attempts against targets on these ports.
func escapeTo(t *testing.T, s *Sandbox, network Network, permitted netip.AddrPort, code, ports []string) result {
	t.Helper()
	attempts := filepath.Join(t.TempDir(), "attempts")
	if err := os.WriteFile(attempts, []byte(strings.Join(code, "\x00")), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(attempts)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, _ := supervised(t, s, network, permitted, escaping, func(spec *Spec) {
		spec.Argv = append(spec.Argv, fmt.Sprint(permitted.Port()), strings.Join(ports, " "))
		spec.Files = append(spec.Files, file)
	})
	return r
}

func TestNoEscapeGetsOut(t *testing.T) { noEscapeGetsOut(t, "forks", "no namespaces") }

// TestTortureNoEscapeGetsOutOfAnySandbox takes half a minute for each sandbox.
func TestTortureNoEscapeGetsOutOfAnySandbox(t *testing.T) {
	noEscapeGetsOut(t, "everything", "forks", "no user namespaces", "no namespaces")
}

func noEscapeGetsOut(t *testing.T, sandboxes ...string) {
	t.Helper()
	if len(escapes) < 60 {
		t.Fatalf("%d attempts", len(escapes))
	}
	permitted := newTarget(t, "127.0.0.1")
	var code, ports []string
	targets := make([]*target, len(escapes))
	for i, escape := range escapes {
		targets[i] = newTarget(t, "127.0.0.1")
		code, ports = append(code, escape.code), append(ports, fmt.Sprint(targets[i].at.Port()))
	}
	each(t, sandboxes, func(t *testing.T, s *Sandbox) {
		for _, network := range []Network{NetworkHost, NetworkPolicy} {
			before := make([]int64, len(targets))
			for i, target := range targets {
				before[i] = target.reached.Load()
			}
			r := escapeTo(t, s, network, permitted.at, code, ports)
			if r.out != "done" || r.Code != 0 {
				t.Fatalf("%s: exit code %d, signal %v: %s", network, r.Code, r.Signal, r.out)
			}
			out := 0
			for i, escape := range escapes {
				reached := targets[i].reached.Load() > before[i]
				deadline := time.Now().Add(2 * time.Second)
				for network == NetworkHost && !escape.never && !reached && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond) // a datagram may be on its way to the test's own goroutine
					reached = targets[i].reached.Load() > before[i]
				}
				if reached {
					out++
				}
				want := network == NetworkHost && !escape.never
				// A race that is never won on a busy machine proves nothing.
				chance := strings.Contains(strings.ToLower(escape.code), "race")
				if reached != want && !(chance && want) {
					t.Errorf("%s: %s: reached the target: %v", network, escape.name, reached)
				}
			}
			t.Logf("%s: %d of %d attempts reach their target", network, out, len(escapes))
		}
	})
}
