package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// prelude is what the attacks below have in common. An attack prints what it got; silence is what the tests want.
const prelude = `
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def broken(*what): print("BROKEN:", *what, flush=True)
def refused(what, call, *wanted):
    try: got = call()
    except OSError as e:
        if wanted and e.errno not in wanted: broken(what, "failed otherwise:", e)
    else: broken(what, "gave", repr(got)[:200])
def sys_refused(what, number, *arguments, wanted=(errno.EPERM,)):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if got != -1: broken(what, "gave", got)
    elif ctypes.get_errno() not in wanted: broken(what, "failed otherwise:", errno.errorcode.get(ctypes.get_errno()))
def read(path):
    with open(path, "rb") as f: return f.read(100)
`

// attacks are programs that try one thing each, and do no harm where they succeed: they destroy only VICTIM, which the
// test made, and call the kernel with arguments that it refuses. SIDECAR, SECRET, PROJECT and SOCKET are the process to
// attack, a file to steal, where the project lives and an abstract socket of the host.
var attacks = []struct {
	name string
	// namespaced: it takes a file system or processes of the step's own to refuse it.
	namespaced bool
	// always: it is refused by --sandbox=off as well.
	always bool
	code   string
}{
	{"other processes cannot be seen", true, false, `
mine = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
if mine: broken("visible", mine)
for pid in (1, SIDECAR):
    for name in ("environ", "cmdline", "mem", "maps", "fd", "root", "cwd", "exe", "stat"):
        refused(f"/proc/{pid}/{name}", lambda: read(f"/proc/{pid}/{name}"), errno.ENOENT)`},
	{"the sidecar's memory, environment and descriptors cannot be read", false, false, `
for name in ("environ", "mem", "maps", "syscall", "auxv", "pagemap"):
    refused(name, lambda: read(f"/proc/{SIDECAR}/{name}"))
refused("fd", lambda: os.listdir(f"/proc/{SIDECAR}/fd"))
for name in ("root", "cwd", "exe"):
    refused(name, lambda: os.listdir(f"/proc/{SIDECAR}/{name}/"))`},
	{"no process can be traced or its memory copied", false, false, `
for pid in (1, SIDECAR, os.getppid()):
    sys_refused("ptrace attach", 101, 16, pid, 0, 0)
    sys_refused("ptrace seize", 101, 0x4206, pid, 0, 0)
    buffer = ctypes.create_string_buffer(64)
    iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
    sys_refused("process_vm_readv", 310, pid, iov, 1, iov, 1, 0)
    sys_refused("process_vm_writev", 311, pid, iov, 1, iov, 1, 0)
sys_refused("ptrace traceme", 101, 0, 0, 0, 0)`},
	{"the sidecar cannot be signalled", false, false, `
import signal
for n in (0, signal.SIGURG, signal.SIGCHLD):
    refused(f"signal {n}", lambda: os.kill(SIDECAR, n), errno.ESRCH, errno.EPERM)`},
	{"no signal ends the sandbox's first process", true, false, `
for n in range(1, 65):
    try: os.kill(1, n)
    except PermissionError: pass
os.getppid() == 1 or broken("orphaned")`},
	{"nobody else's limits can be changed", false, false, `
import resource
same = resource.getrlimit(resource.RLIMIT_MEMLOCK)
refused("prlimit", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_MEMLOCK, same), errno.EPERM)
sys_refused("prlimit with the upper half set", 302, os.getppid() | 1 << 32, resource.RLIMIT_MEMLOCK, struct.pack("QQ", *same), 0)`},
	{"files of the host cannot be read", false, false, `
for path in ("/etc/shadow", "/etc/gshadow", "/root", "/home", "/var/lib", "/var/log", "/run", "/boot", "/srv", "/mnt", "/sys/kernel", SECRET, PROJECT,
             "/root/.bashrc", "/root/.ssh", "/etc/sudoers", "/etc/ssl/private", "/etc/kizen", "/proc/kcore", "/proc/1/root/etc/shadow"):
    refused(path, lambda: (os.listdir if os.path.isdir(path) else read)(path))`},
	{"nothing can be written outside /tmp", false, false, `
for directory in ("/", "/usr", "/usr/lib", "/usr/bin", "/etc", "/dev", "/proc", "/proc/sys/kernel", "/lib", "/var/tmp", "/run"):
    path = directory + "/kizen-attack"
    refused(directory, lambda: open(path, "x"))
    if os.path.exists(path): os.unlink(path)
for path in ("/etc/passwd", "/etc/hosts", "/usr/bin/env", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/self/mem"):
    refused(path, lambda: open(path, "r+b"))
refused("link", lambda: os.link(VICTIM, os.environ["HOME"] + "/link"))
refused("rename", lambda: os.rename(VICTIM, VICTIM + "2"))
refused("remove", lambda: os.unlink(VICTIM))`},
	{"modes and times outside /tmp cannot be changed", true, false, `
refused("chmod", lambda: os.chmod(VICTIM, 0o666))
refused("utime", lambda: os.utime(VICTIM))`},
	{"set-user-ID programs gain nothing", false, false, `
import subprocess
out = subprocess.run([SETUID, "-u"], capture_output=True, text=True)
if out.stdout.strip() == "0": broken("root by set-user-ID", out)`},
	{"there is no capability to be had", false, false, `
status = dict(line.split(":\t", 1) for line in open("/proc/self/status"))
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status[name], 16) and (name != "CapBnd" or BOUNDING): broken(name, status[name])
if status["NoNewPrivs"].strip() != "1": broken("new privileges")
if status["Seccomp"].strip() != "2": broken("no filter")
if os.getuid() == 0 or os.geteuid() == 0 or 0 in os.getgroups(): broken("root", os.getgroups())
for call in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.mknod(os.environ["HOME"] + "/m", 0o20666, os.makedev(1, 1))):
    refused("privileged call", call, errno.EPERM, errno.EINVAL, errno.EACCES)`},
	{"no namespace can be made or entered", false, false, `
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    sys_refused(f"unshare {flag:#x}", 272, flag)
    sys_refused(f"clone {flag:#x}", 56, flag | 17, 0, 0, 0, 0)
    sys_refused(f"clone {flag:#x} with the upper half set", 56, flag | 17 | 1 << 40, 0, 0, 0, 0)
sys_refused("setns", 308, 0, 0)
sys_refused("clone3", 435, 0, 0, wanted=(errno.ENOSYS,))`},
	{"nothing can be mounted", false, false, `
sys_refused("mount", 165, b"none", b"/tmp", b"kizen-no-such-type", 0, 0)
sys_refused("umount", 166, b"/kizen-nowhere", 2)
sys_refused("pivot_root", 155, b"/kizen-nowhere", b"/kizen-nowhere")
sys_refused("chroot", 161, b"/kizen-nowhere")
for number in (428, 429, 430, 431, 432, 433, 442): sys_refused(f"new mount interface {number}", number, -1, -1, -1, -1, -1)
sys_refused("open_by_handle_at", 304, -1, -1, 0)`},
	{"the kernel's corners are closed", false, false, `
for name, number in {"keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "kexec_load": 246, "kexec_file_load": 320,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "syslog": 103,
        "settimeofday": 164, "clock_settime": 227, "acct": 163, "quotactl": 179, "iopl": 172, "ioperm": 173, "modify_ldt": 154,
        "kcmp": 312, "pidfd_getfd": 438, "personality": 135, "fanotify_init": 300, "io_setup": 206}.items():
    sys_refused(name, number, -1, -1, -1, -1, -1)`},
	{"other calling conventions are refused", false, false, `
import mmap
sys_refused("x32 getpid", 0x40000000 | 39, wanted=(errno.ENOSYS,))
pid = os.fork()
if pid == 0:
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
    got = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    os._exit(0 if got < 0 else 7)
status = os.waitpid(pid, 0)[1]
if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7: broken("i386 system calls work")`},
	{"only the common address families exist", false, false, `
for family in (16, 17, 38, 40, 21, 31, 44):
    refused(f"family {family}", lambda: socket.socket(family, socket.SOCK_RAW), errno.EPERM)
    sys_refused(f"family {family} with the upper half set", 41, family | 1 << 32, 3, 0)
sys_refused("family 2 with the upper half set", 41, 2 | 1 << 32, 1, 0)
refused("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), errno.EPERM)`},
	{"nobody's terminal can be typed into", false, false, `
for command in (0x5412, 0x541c):
    for upper in (0, 1 << 32, -1 << 32):
        sys_refused(f"ioctl {command:#x}", 16, 0, command | upper, b"x")`},
	{"there are no core files", false, true, `
import resource
if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0): broken("core files", resource.getrlimit(resource.RLIMIT_CORE))
for name in ("RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_FSIZE"):
    hard = resource.getrlimit(getattr(resource, name))[1]
    try: resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1))
    except ValueError: pass
    else: broken("raised", name)`},
	{"only standard descriptors are inherited", false, true, `
open_now = set(os.listdir("/proc/self/fd"))
extra = [f for f in open_now - {"0", "1", "2"} if os.path.exists("/proc/self/fd/" + f)]
if extra: broken("inherited", [os.readlink("/proc/self/fd/" + f) for f in extra])`},
	{"abstract sockets of the host cannot be reached", false, false, `
s = socket.socket(socket.AF_UNIX)
refused("abstract socket", lambda: s.connect("\0" + SOCKET), errno.EPERM)`},
	{"the step goes first when memory runs out", false, true, `
if read("/proc/self/oom_score_adj").strip() != b"1000": broken("score", read("/proc/self/oom_score_adj"))`},
	{"the environment is what was given", false, true, `
extra = set(os.environ) - {"PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE"}
if extra: broken("environment", extra)
if b"KIZEN" in read("/proc/self/environ"): broken("environment", read("/proc/self/environ"))`},
	{"others cannot be watched", false, false, `
import fcntl
for name, number, *arguments in ("inotify_init1", 294, 0), ("inotify_init", 253), ("inotify_add_watch", 254, -1, b"/usr/lib", 1):
    sys_refused(name, number, *arguments)
directory = os.open("/usr/lib", os.O_RDONLY)
refused("dnotify", lambda: fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_ACCESS), errno.EPERM)`},
	{"/proc tells nothing of the machine", true, false, `
for name in ("cmdline", "pressure", "pressure/cpu", "loadavg", "locks", "interrupts", "diskstats", "partitions", "modules", "keys", "stat", "net"):
    refused(name, lambda: os.stat("/proc/" + name), errno.ENOENT)`},
	{"where the host keeps things is not told", true, false, `
for line in open("/proc/self/cgroup"):
    if not line.rstrip().endswith(":/"): broken("cgroup", line)
if socket.gethostname() == HOSTNAME: broken("host name", HOSTNAME)`},
}

// TestAttacksAreRefused attacks every environment but the one without a sandbox.
func TestAttacksAreRefused(t *testing.T) {
	exposed, names := attackNames(t)
	each(t, []string{"forks", "everything", "no user namespaces", "no cgroups", "no namespaces"}, func(t *testing.T, s *Sandbox) {
		for _, attack := range attacks {
			t.Run(attack.name, func(t *testing.T) {
				if attack.namespaced && !s.holds(layerPID) {
					t.Skip("takes namespaces")
				}
				if r := run(t, s, prelude+names(s)+attack.code, func(spec *Spec) { spec.Readable = []string{exposed} }); r.out != "" || r.Code != 0 {
					t.Errorf("exit code %d, signal %v:\n%s", r.Code, r.Signal, r.out)
				}
			})
		}
	})
}

// TestAttacksWouldSucceed makes sure that the attacks are real: without a sandbox they get what they want.
func TestAttacksWouldSucceed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user is refused half of it anyway")
	}
	exposed, names := attackNames(t)
	s := newSandbox(t, Config{Mode: ModeOff})
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			if attack.name == "other calling conventions are refused" && !hasI386Calls(t) {
				t.Skip("SKIPPED: this kernel refuses the system calls of i386 to every program")
			}
			r := run(t, s, prelude+names(s)+attack.code, func(spec *Spec) { spec.Readable = []string{exposed} })
			if strings.Contains(r.out, "BROKEN") == attack.always {
				t.Errorf("exit code %d, signal %v:\n%s", r.Code, r.Signal, r.out)
			}
		})
	}
}

// hasI386Calls reports whether a program outside of any sandbox can make a system call of i386.
func hasI386Calls(t *testing.T) bool {
	t.Helper()
	const call = `import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
assert ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0`
	return exec.CommandContext(t.Context(), "python3", "-c", call).Run() == nil
}

// attackNames returns what binds the names that attacks use.
func attackNames(t *testing.T) (exposed string, names func(s *Sandbox) string) {
	secret := filepath.Join(t.TempDir(), "secret.txt")
	if err := os.WriteFile(secret, []byte("for the sidecar's eyes only"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", "@kizen-sandbox-test-"+fmt.Sprint(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	exposed = exposedDirectory(t)
	return exposed, func(s *Sandbox) string {
		// The attack before may have got it.
		if err := os.WriteFile(filepath.Join(exposed, "victim"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		bounding := "True"
		if !s.holds("user namespace") && os.Geteuid() != 0 {
			bounding = "False" // to empty it takes a capability; without new privileges it means nothing
		}
		return fmt.Sprintf("EXPOSED, SIDECAR, SECRET, PROJECT, SOCKET, HOSTNAME, BOUNDING = %q, %d, %q, %q, %q, %q, %s\n"+
			"SETUID, VICTIM = EXPOSED + '/id', EXPOSED + '/victim'\n",
			exposed, os.Getpid(), secret, os.Getenv(projectVariable), strings.TrimPrefix(socket.Addr().String(), "@"), hostname, bounding)
	}
}

// exposedDirectory makes a directory that attacks are shown: anybody may write to it, and "id" is a copy of
// id(1) that runs as its owner.
func exposedDirectory(t *testing.T) string {
	dir, err := os.MkdirTemp(outside, "kizen-exposed-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []struct {
		name    string
		content []byte
		mode    os.FileMode
	}{{"", nil, 0o777}, {"id", program, 0o755 | os.ModeSetuid}} {
		path := filepath.Join(dir, file.name)
		if file.name != "" {
			if err := os.WriteFile(path, file.content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// Whatever the umask says.
		if err := os.Chmod(path, file.mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
