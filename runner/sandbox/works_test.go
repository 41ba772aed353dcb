package sandbox

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// uses are operations that steps need and must still be able to do. Each prints "ok".
var uses = []struct {
	name, code string
	// own means that the operation needs a private file system, for /dev/shm or its user's name.
	own bool
}{
	{"threads", `
import threading
done = []
threads = [threading.Thread(target=lambda: done.append(1)) for _ in range(20)]
for t in threads: t.start()
for t in threads: t.join()
print("ok" if len(done) == 20 else done)`, false},
	{"numpy in threads", `
import sys, threading
sys.path.append("/usr/lib/python3/dist-packages")  # where Debian has it
try: import numpy
except ModuleNotFoundError: print("missing"); sys.exit()
a, same = numpy.arange(90000.0).reshape(300, 300), []
threads = [threading.Thread(target=lambda: same.append(bool((numpy.eye(300) @ a == a).all()))) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("ok" if same == [True] * 4 else same)`, false},
	{"subprocesses and the shell", `
import subprocess
print(subprocess.run("echo o | tr o ok | head -c 1; echo k", shell=True, capture_output=True, text=True).stdout.strip())`, false},
	{"multiprocessing with its locks", `
import multiprocessing, sys
with multiprocessing.get_context("fork").Pool(3) as pool: total = sum(pool.map(abs, range(10)))
queue = multiprocessing.Queue(); queue.put("ok")
print(queue.get() if total == 45 else total)`, true},
	{"asyncio with subprocesses", `
import asyncio
async def main():
    p = await asyncio.create_subprocess_exec("/bin/echo", "ok", stdout=asyncio.subprocess.PIPE)
    return (await p.communicate())[0].decode().strip()
print(asyncio.run(main()))`, false},
	{"a sparse mapping of 4 GB", `
import mmap
m = mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m[1 << 30] = 1; m[3 << 30] = 1
print("ok")`, false},
	{"TLS with the system's certificates", `
import ssl
print("ok" if ssl.create_default_context().get_ca_certs() else "no certificates")`, false},
	{"names of hosts, users and services", `
import getpass, os, pwd, socket
socket.getaddrinfo("localhost", 80); socket.getservbyname("https")
print("ok" if pwd.getpwuid(os.getuid()).pw_dir else "no user")`, true},
	{"temporary files", `
import os, tempfile
with tempfile.TemporaryDirectory() as d:
    with open(d + "/a", "w") as f: f.write("ok")
    os.chmod(d + "/a", 0o600); os.rename(d + "/a", d + "/b"); os.link(d + "/b", d + "/c"); os.symlink("b", d + "/d")
    print(open(d + "/d").read())`, false},
	{"time zones", `
import datetime, zoneinfo
print("ok" if datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York")).utcoffset().total_seconds() == -14400 else "wrong")`, false},
	{"random numbers and standard devices", `
import os
os.urandom(8); open("/dev/random", "rb").read(1); open("/dev/null", "w").write("x")
print("ok" if open("/dev/zero", "rb").read(1) == b"\0" else "wrong")`, false},
	{"sqlite", `
import os, sqlite3
c = sqlite3.connect(os.environ["HOME"] + "/x.db"); c.execute("create table t (v)"); c.execute("insert into t values ('ok')"); c.commit()
print(c.execute("select v from t").fetchone()[0])`, false},
	{"ctypes and executable memory", `
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7); code.write(b"\xb8\x2a\x00\x00\x00\xc3")
print("ok" if ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() == 42 else "wrong")`, false},
	{"sockets between its processes", `
import os, socket
a, b = socket.socketpair()
if os.fork() == 0: b.send(b"ok"); os._exit(0)
print(a.recv(2).decode())`, false},
	{"multiprocessing's servers", `
import multiprocessing
def work(connection): connection.send("ok")
with multiprocessing.Manager() as manager: shared = manager.list([1]); shared.append(2); total = sum(shared)
a, b = multiprocessing.Pipe()
p = multiprocessing.Process(target=work, args=(b,)); p.start(); p.join()
print(a.recv() if total == 3 else total)`, true},
	{"Unix sockets with names, paths and none", `
import os, socket, threading
def serves(address, kind):
    server = socket.socket(socket.AF_UNIX, kind); server.bind(address); name = server.getsockname()
    if kind == socket.SOCK_DGRAM:
        client = socket.socket(socket.AF_UNIX, kind); client.sendto(b"ok", name); client.sendmsg([b"o", b"k"], [], 0, address or name); client.connect(name); client.send(b"ok")
        return [server.recv(9) for _ in range(3)] == [b"ok"] * 3
    server.listen()
    client = socket.socket(socket.AF_UNIX, kind); client.connect(address or name); connection, _ = server.accept(); client.sendmsg([b"o", b"k"])
    return connection.recv(9) == b"ok"
os.chdir(os.environ.get("TMPDIR", "/tmp"))
done = [serves(address(i), kind) for i, kind in enumerate((socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM))
        for address in (lambda i: "\0name%d" % i, lambda i: "", lambda i: os.getcwd() + "/path%d" % i, lambda i: "relative%d" % i)]
print("ok" if all(done) else done)`, false},
	{"descriptors over Unix sockets", `
import os, socket
a, b = socket.socketpair(); r, w = os.pipe()
if os.fork() == 0: socket.send_fds(a, [b"x"], [w, w]); os._exit(0)
_, descriptors, _, _ = socket.recv_fds(b, 1, 9)
os.write(descriptors[1], b"ok"); print(os.read(r, 2).decode())`, false},
	{"a message that waits for its reader", `
import os, socket, threading
a, b = socket.socketpair(); got = []
def read():
    while chunk := b.recv(1 << 16): got.append(len(chunk))
t = threading.Thread(target=read); t.start(); total = 0
while total < 10 << 20: total += a.sendmsg([b"x" * (1 << 20)])
a.close(); t.join()
print("ok" if sum(got) == total else (sum(got), total))`, false},
	{"asyncio over Unix sockets", `
import asyncio, os
async def main():
    path = os.environ.get("TMPDIR", "/tmp") + "/s"
    async def answer(reader, writer): writer.writelines([b"o", b"k"]); await writer.drain(); writer.close()
    server = await asyncio.start_unix_server(answer, path)
    reader, _ = await asyncio.open_unix_connection(path)
    print((await reader.read()).decode()); server.close()
asyncio.run(main())`, false},
	{"signals among its processes", `
import os, signal, time
pid = os.fork()
if pid == 0: signal.pause()
os.kill(pid, signal.SIGTERM)
print("ok" if os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM else "wrong")`, false},
	{"a limit on its own child", `
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); resource.prlimit(0, resource.RLIMIT_NOFILE, (63, 63)); os.nice(1); os.sched_getaffinity(0); os.cpu_count()
print("ok")`, false},
}

func TestOrdinaryProgramsWork(t *testing.T) {
	programsWork(t, []string{"forks", "everything", "no user namespaces", "no cgroups", "no namespaces"}, nil)
}

func TestOrdinaryProgramsWorkUnderAPolicy(t *testing.T) {
	programsWork(t, []string{"forks", "everything", "no namespaces"}, func(spec *Spec) { spec.Network = NetworkPolicy })
}

func programsWork(t *testing.T, environments []string, change func(*Spec)) {
	each(t, environments, func(t *testing.T, s *Sandbox) {
		for _, use := range uses {
			t.Run(use.name, func(t *testing.T) {
				if use.own && !s.holds(stage.LayerFileSystem) {
					t.Skip("needs a private file system")
				}
				r := run(t, s, use.code, change)
				if r.out == "missing" && os.Getenv("KIZEN_TEST_REQUIRE") != "1" {
					t.Skip("SKIPPED: the module is not installed")
				}
				if r.out != "ok" || r.Code != 0 {
					t.Errorf("exit code %d, signal %v:\n%s", r.Code, r.Signal, r.out)
				}
			})
		}
	})
}

func TestReadablePathsAreVisibleAndReadOnly(t *testing.T) {
	dir, err := os.MkdirTemp(outside, "kizen-readable-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.MkdirAll(filepath.Join(dir, "real", "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "real", "below", "f"), []byte("ok"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	code := `
import sys
try: open(sys.argv[1] + "/below/new", "w")
except OSError: print(open(sys.argv[1] + "/below/f").read())`
	each(t, []string{"forks", "everything", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		r := run(t, s, code, func(spec *Spec) {
			spec.Argv = append(spec.Argv, filepath.Join(dir, "link"))
			spec.Readable = []string{filepath.Join(dir, "link"), filepath.Join(dir, "real", "below"), "/usr",
				"/usr/lib/python3.11"}
		})
		if r.out != "ok" {
			t.Errorf("got %q", r.out)
		}
	})
}

func TestUnusableSpecsAreRefused(t *testing.T) {
	s := newSandbox(t, Config{})
	for _, spec := range []Spec{
		{},
		{Argv: []string{"python3"}},
		{Argv: []string{python}, Network: "none"},
		{Argv: []string{python}, Readable: []string{"/"}},
		{Argv: []string{python}, Readable: []string{"relative"}},
		{Argv: []string{python}, Readable: []string{"/no/such/place"}},
		{Argv: []string{"/no/such/program"}},
		{Argv: []string{python, strings.Repeat("x", 1<<20)}},
	} {
		if process, err := s.Start(t.Context(), spec); err == nil {
			process.Kill()
			process.Wait()
			t.Errorf("%.80v was started", spec)
		}
	}
	if missing := s.Report().Missing(); len(missing) > 0 {
		t.Errorf("a bad specification was blamed on %v", missing)
	}
}

func TestFilesBecomeDescriptorsFromThreeOn(t *testing.T) {
	each(t, []string{"forks", "everything", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		defer ours.Close()
		memory, err := unix.MemfdCreate("code", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		code := os.NewFile(uintptr(memory), "code")
		defer code.Close()
		if _, err := code.WriteString("print('ran'); import socket; socket.socket(fileno=3).sendall(b'hello')"); err != nil {
			t.Fatal(err)
		}
		r := run(t, s, "", func(spec *Spec) {
			spec.Argv = []string{python, "-I", "-S", "/proc/self/fd/4"}
			spec.Files = []*os.File{theirs, code}
		})
		if err := theirs.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(ours)
		if string(got) != "hello" || err != nil || r.out != "ran" {
			t.Errorf("got %q, %v, output %q", got, err, r.out)
		}
	})
}

func TestKizenOnlyReachesOnlyTheListener(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	s := newSandbox(t, Config{})
	const code = `
import os, socket, sys
def tries(address, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind); s.settimeout(5)
    try: s.connect(address); kind == socket.SOCK_DGRAM and s.send(b"x")
    except OSError as e: return
    print("reached", address)
tries(("127.0.0.1", int(sys.argv[1]))); tries(("1.1.1.1", 53)); tries(("169.254.169.254", 80)); tries(("10.0.0.1", 443))
tries(("1.1.1.1", 53), socket.SOCK_DGRAM); tries(("2606:4700::1111", 53), socket.SOCK_DGRAM)
s = socket.create_connection(("127.0.0.1", int(os.read(3, 10))))
print(s.recv(10).decode())`
	port, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_, hostPort, _ := net.SplitHostPort(host.Addr().String())
	process, err := s.Start(t.Context(), Spec{
		Argv: []string{python, "-I", "-S", "-c", code, hostPort}, Files: []*os.File{port},
		Stdout: printed, Stderr: printed, Network: NetworkKizenOnly,
	})
	port.Close()
	printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	listener := process.Listener()
	_, ownPort, _ := net.SplitHostPort(listener.Addr().String())
	if _, err := ours.WriteString(ownPort); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	got, _ := io.ReadAll(out)
	if exit := process.Wait(); strings.TrimSpace(string(got)) != "hello" || exit.Code != 0 {
		t.Errorf("got %q, %+v", got, exit)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
}

func TestKizenOnlyIsRefusedWithoutNetworkNamespaces(t *testing.T) {
	for _, config := range []Config{{without: bare}, {Mode: ModeOff}} {
		s := newSandbox(t, config)
		process, err := s.Start(t.Context(), Spec{Argv: []string{python, "-c", "pass"}, Network: NetworkKizenOnly})
		if err == nil {
			process.Wait()
			t.Error("the program was started anyway")
		}
	}
}
