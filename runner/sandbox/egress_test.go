package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/egress"
)

// only permits one address and names below example.com.
type only struct{ permitted netip.AddrPort }

func (p only) Connect(names []string, to netip.AddrPort, _ string) egress.Decision {
	if to == p.permitted {
		return egress.Decision{Allowed: true, Policy: "permitted"}
	}
	return egress.Decision{Policy: "forbidden", Code: "policy", Reason: "the test forbids it"}
}

func (p only) Resolve(name string) egress.Decision {
	return egress.Decision{Allowed: strings.HasSuffix(name, ".example.com"), Policy: "names"}
}

// target is a server over TCP and UDP on one port. It counts the connections and datagrams that it receives.
type target struct {
	at      netip.AddrPort
	reached atomic.Int64
}

func newTarget(t *testing.T, address string) *target {
	t.Helper()
	listener, datagrams := bothOf(t, address)
	target := &target{at: addressOf(listener)}
	routine.Go(func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			target.reached.Add(1)
			routine.Go(func() {
				_, _ = connection.Write([]byte("hello"))
				_, _ = io.Copy(connection, connection)
				_ = connection.Close()
			})
		}
	})
	routine.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := datagrams.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			target.reached.Add(1)
			_, _ = datagrams.WriteToUDPAddrPort(buffer[:n], from)
		}
	})
	return target
}

// bothOf listens on one port over TCP and UDP.
func bothOf(t *testing.T, address string) (net.Listener, *net.UDPConn) {
	t.Helper()
	for range 50 {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			t.Fatal(err)
		}
		datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addressOf(listener)))
		if err == nil {
			t.Cleanup(func() { _, _ = listener.Close(), datagrams.Close() })
			return listener, datagrams
		}
		_ = listener.Close()
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

// supervised runs code with the given network and a policy that permits one target. Descriptor 3 reaches its end when
// the execution has begun.
func supervised(t testing.TB, s *Sandbox, network Network, permitted netip.AddrPort, code string,
	change func(*Spec)) (result, egress.Record) {
	t.Helper()
	return supervisedBy(t, s, network, only{permitted}, code, change)
}

// supervisedBy runs code with the given network and policy. Descriptor 3 reaches its end when the execution has begun.
func supervisedBy(t testing.TB, s *Sandbox, network Network, policy egress.Policy, code string,
	change func(*Spec)) (result, egress.Record) {
	t.Helper()
	begun, begin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer begun.Close()
	var process *Process
	starter := func(ctx context.Context, spec Spec) (*Process, func(), error) {
		defer begin.Close()
		started, stop, err := start(ctx, s, spec)
		if err != nil {
			return nil, nil, err
		}
		process = started
		if supervisor := started.Connections(); supervisor != nil {
			job := egress.Job{Policy: policy}
			if limited != nil {
				limited(&job)
			}
			supervisor.Begin(job)
		} else if network == NetworkPolicy {
			t.Error("the program has no supervisor")
		}
		return started, stop, nil
	}
	r, err := try(t.Context(), starter, code, func(spec *Spec) {
		spec.Network, spec.Files = network, []*os.File{begun}
		change(spec)
	})
	if err != nil {
		t.Fatal(err)
	}
	if process.Connections() == nil {
		return r, egress.Record{}
	}
	return r, process.Connections().Record()
}

// connecting runs code that connects to a permitted and to a forbidden target.
func connecting(t *testing.T, s *Sandbox, network Network, code string, permitted,
	forbidden netip.AddrPort) (result, egress.Record) {
	t.Helper()
	return supervised(t, s, network, permitted, attempt+code, func(spec *Spec) {
		spec.Argv = append(spec.Argv, fmt.Sprint(permitted.Port()), fmt.Sprint(forbidden.Port()))
	})
}

func addressOf(listener net.Listener) netip.AddrPort {
	return netip.MustParseAddrPort(listener.Addr().String())
}

// attempt is the beginning of every program in these tests.
const attempt = `
import ctypes, errno, os, socket, struct, sys, threading
os.read(3, 1)
permitted, forbidden = ("127.0.0.1", int(sys.argv[1])), ("127.0.0.1", int(sys.argv[2]))
libc = ctypes.CDLL(None, use_errno=True)
def sockaddr(host, port): return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
def tcp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_STREAM)
def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
`

func TestPolicyPermitsOneTargetAndRefusesAnother(t *testing.T) {
	permitted, forbidden := newTarget(t, "127.0.0.1"), newTarget(t, "127.0.0.1")
	each(t, []string{"everything", "forks", "no user namespaces", "no cgroups", "no namespaces"},
		func(t *testing.T, s *Sandbox) {
			reached := forbidden.reached.Load()
			r, record := connecting(t, s, NetworkPolicy, `
s = tcp(); s.connect(permitted); assert s.recv(5) == b"hello"; s.sendall(b"x" * 100); assert s.recv(1) == b"x"
u = udp(); u.connect(permitted); u.send(b"abc"); assert u.recv(9) == b"abc"
v = udp(); v.sendto(b"abcd", permitted); assert v.recvfrom(9) == (b"abcd", permitted)
for s in tcp(), udp():
    try: s.connect(forbidden); print("connected")
    except PermissionError as e: assert e.errno == errno.EACCES
try: v.sendto(b"x", forbidden); print("sent")
except PermissionError: print("ok")`, permitted.at, forbidden.at)
			if r.out != "ok" || r.Code != 0 || forbidden.reached.Load() != reached {
				t.Errorf("exit code %d, reached %d: %s", r.Code, forbidden.reached.Load()-reached, r.out)
			}
			if record.Count != 6 || record.Refused != 3 || len(record.Connections) != 6 {
				t.Errorf("got %+v", record)
			}
			for i, c := range record.Connections {
				want := permitted.at
				if i >= 3 {
					want = forbidden.at
				}
				if c.Allowed != (i < 3) || netip.AddrPortFrom(c.Address, c.Port) != want || c.Duration <= 0 ||
					c.Duration > time.Minute || (c.Failure == "EACCES") == c.Allowed {
					t.Errorf("connection %d: got %+v", i, c)
				}
			}
		})
}

func TestNoConnectionIsMadeBeforeTheExecutionOrWithoutASupervisor(t *testing.T) {
	permitted := newTarget(t, "127.0.0.1")
	each(t, []string{"everything", "forks", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		begun, begin, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer begin.Close()
		out, printed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		process, stop, err := start(t.Context(), s, Spec{
			Argv: []string{python, "-I", "-S", "-c", `
import os, socket, sys
address = ("127.0.0.1", int(sys.argv[1]))
def tries():
    results = []
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM: results.append(socket.socket(socket.AF_INET, kind).connect_ex(address))
    try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", address); results.append(0)
    except OSError as e: results.append(e.errno)
    print(results, flush=True)
for _ in range(3): tries(); os.read(3, 1)`, fmt.Sprint(permitted.at.Port())},
			Env: []string{"HOME=/tmp"}, Files: []*os.File{begun}, Stdout: printed, Stderr: printed, Network: NetworkPolicy,
		})
		_, _ = begun.Close(), printed.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		lines := bufio.NewReader(out)
		for _, next := range []struct {
			want string
			then func()
		}{
			{"[13, 13, 13]", func() { process.Connections().Begin(egress.Job{Policy: only{permitted.at}}) }},
			{"[0, 0, 0]", process.Connections().Close},
			{"[38, 38, 38]", func() {}}, // ENOSYS
		} {
			if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != next.want {
				t.Fatalf("got %q, %v, want %s", line, err, next.want)
			}
			next.then()
			if _, err := begin.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
		}
		if exit := process.Wait(); exit.Code != 0 || exit.Err != nil {
			t.Errorf("got %+v", exit)
		}
	})
}

// TestNoCallHarmsTheSupervisor: whatever a step passes to its calls, the supervisor must still answer other calls.
func TestNoCallHarmsTheSupervisor(t *testing.T) {
	target := newTarget(t, "127.0.0.1")
	each(t, []string{"everything", "forks", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		r, _ := connecting(t, s, NetworkPolicy, `
import random
from ctypes import c_long, c_void_p, addressof, create_string_buffer
calls = {"connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "sendmmsg": 307}
def call(name, *arguments): return libc.syscall(c_long(calls[name]), *[c_long(a) for a in arguments])
left, right = socket.socketpair(); dgram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
sockets = [left, dgram, socket.socket(socket.AF_UNIX), tcp(), udp(), tcp(socket.AF_INET6), udp(socket.AF_INET6)]
for s in sockets: s.setblocking(False)
# Rights whose size is no multiple of a descriptor's, and headers that do not end.
for size in range(0, 40):
    for length in (size, 0, 15, 16, 17, 21, 1 << 40, (1 << 64) - 1):
        control = create_string_buffer(struct.pack("=Qii", length, socket.SOL_SOCKET, socket.SCM_RIGHTS) + bytes(64)); data = create_string_buffer(b"x")
        vector = create_string_buffer(struct.pack("=QQ", addressof(data), 1))
        header = create_string_buffer(struct.pack("=QQQQQQQ", 0, 0, addressof(vector), 1, addressof(control), size, 0))
        for s in sockets: call("sendmsg", s.fileno(), addressof(header), 0)
random.seed(1)
memory = create_string_buffer(1 << 16); start = addressof(memory)
values = [0, 1, 2, 16, 28, 110, 128, 129, 1 << 31, (1 << 63) - 1, -1, start, start + 8, start + (1 << 16) - 4, 8]
for _ in range(4000):
    for at in range(0, 256, 8): struct.pack_into("=q", memory, at, random.choice(values))
    struct.pack_into("=H", memory, 0, random.choice([0, 1, 2, 10, 65535]))
    name = random.choice(list(calls))
    if name == "listen": call(name, random.choice(sockets).fileno(), random.choice(values))
    else: call(name, random.choice(sockets).fileno(), *[random.choice(values) for _ in range(5)])
for number in (-1, 0, 1, 1 << 30): call("connect", number, start, 16)
s = tcp(); s.connect(permitted); assert s.recv(5) == b"hello"
print("ok")`, target.at, netip.AddrPortFrom(target.at.Addr(), 1))
		if r.out != "ok" || r.Code != 0 || r.Err != nil {
			t.Errorf("exit code %d, signal %v: %s", r.Code, r.Signal, r.out)
		}
	})
}

// TestABlockingConnectWaitsForItsPeer connects to a server that cannot answer at first: its queue is full, so the
// kernel drops the request and sends it again after a second. The socket must stay a blocking one.
func TestABlockingConnectWaitsForItsPeer(t *testing.T) {
	busy, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(busy)
	if err := errors.Join(unix.Bind(busy, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(busy, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(busy)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	filling, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer filling.Close()
	var accepting sync.WaitGroup
	accepting.Go(func() {
		waiting := fmt.Sprintf(" 0100007F:%04X 02 ", at.Port()) // to this port, in SYN-SENT, see proc_net(5)
		for table := ""; !strings.Contains(table, waiting) && t.Context().Err() == nil; {
			content, _ := os.ReadFile("/proc/net/tcp")
			table = string(content)
		}
		for range 2 {
			if accepted, _, err := unix.Accept(busy); err == nil {
				defer unix.Close(accepted)
			}
		}
	})
	defer accepting.Wait()
	r, record := connecting(t, newSandbox(t, Config{}), NetworkPolicy, `
import fcntl
s = tcp(); s.connect(permitted)
print("ok" if not fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK else "not")`, at, at)
	if r.out != "ok" || len(record.Connections) != 1 || !record.Connections[0].Allowed {
		t.Errorf("got %s, %+v", r.out, record)
	}
}

// TestAnExecutionHasALimitOnConnections: further connections must be refused and only counted.
func TestAnExecutionHasALimitOnConnections(t *testing.T) {
	target := newTarget(t, "127.0.0.1")
	var observed atomic.Int64
	limited = func(job *egress.Job) {
		job.MaxConnections, job.Observe = 3, func(egress.Connection) { observed.Add(1) }
	}
	defer func() { limited = nil }()
	r, record := connecting(t, newSandbox(t, Config{}), NetworkPolicy, `
print([tcp().connect_ex(permitted) for _ in range(5)], [tcp().connect_ex(forbidden) for _ in range(2)])`, target.at, target.at)
	if r.out != "[0, 0, 0, 13, 13] [13, 13]" || record.Count != 7 || record.Refused != 4 || observed.Load() != 3 {
		t.Errorf("got %s, %d connections of which %d were refused, %d observed", r.out, record.Count, record.Refused,
			observed.Load())
	}
}

// limited, if not nil, changes the jobs of the tests.
var limited func(*egress.Job)

// TestUnixSocketsOutsideTheSandboxAreNotReached: with the host's network, a step would reach a named socket of the
// host.
func TestUnixSocketsOutsideTheSandboxAreNotReached(t *testing.T) {
	name := fmt.Sprintf("@kizen-test-%d", os.Getpid())
	dir, err := os.MkdirTemp(outside, "kizen-socket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var reached atomic.Int64
	for _, address := range []string{name, dir + "/socket"} {
		listener, err := net.Listen("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		if address != name {
			if err := os.Chmod(address, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		routine.Go(func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					return
				}
				reached.Add(1)
				_ = connection.Close()
			}
		})
	}
	each(t, []string{"everything", "forks", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		before := reached.Load()
		r := run(t, s, `
import os, socket, sys
for address in "\0" + sys.argv[1], sys.argv[2], os.path.relpath(sys.argv[2], os.environ.get("TMPDIR", "/tmp")), "/proc/self/root" + sys.argv[2]:
    for kind in socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM:
        s = socket.socket(socket.AF_UNIX, kind)
        if s.connect_ex(address) == 0: print("connected", repr(address), kind)
        try: s.sendto(b"x", address); print("sent", repr(address), kind)
        except OSError: pass
os.chdir(os.environ.get("TMPDIR", "/tmp")); os.symlink(sys.argv[2], "link"); os.symlink("/", "root")
for address in "link", os.getcwd() + "/link", os.getcwd() + "/root" + sys.argv[2]:
    if socket.socket(socket.AF_UNIX).connect_ex(address) == 0: print("connected", address)`, func(spec *Spec) {
			spec.Network, spec.Readable = NetworkPolicy, []string{dir}
			spec.Argv = append(spec.Argv, name[1:], dir+"/socket")
		})
		if r.out != "" || r.Code != 0 || reached.Load() != before {
			t.Errorf("%d reached: %s", reached.Load()-before, r.out)
		}
	})
}

// TestAStepCannotServeOtherMachines: a step must not listen, or bind a port of its choice.
func TestAStepCannotServeOtherMachines(t *testing.T) {
	target := newTarget(t, "127.0.0.1")
	each(t, []string{"everything", "forks", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		r, _ := connecting(t, s, NetworkPolicy, `
def refused(call):
    try: call(); print("not refused")
    except OSError as e: assert e.errno == errno.EACCES, e
for family, any in (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"):
    refused(lambda: tcp(family).bind((any, 18080)))
    refused(lambda: udp(family).bind((any, 18080)))
    refused(lambda: tcp(family).listen())
    s = tcp(family); s.bind((any, 0)); refused(s.listen)
s = tcp(); s.connect(permitted); libc.connect(s.fileno(), bytes(16), 16); refused(s.listen)
left, right = socket.socketpair(); number = left.dup().detach(); bound = tcp(); bound.bind(("0.0.0.0", 0))
import time
end = time.monotonic() + .3
def swap():
    while time.monotonic() < end: os.dup2(bound.fileno(), number); os.dup2(left.fileno(), number)
t = threading.Thread(target=swap); t.start()
while time.monotonic() < end: libc.listen(number, 5)
t.join()
assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
print("ok")`, target.at, target.at)
		if r.out != "ok" || r.Code != 0 {
			t.Errorf("exit code %d: %s", r.Code, r.out)
		}
	})
}
