"""Prints as JSON how each layer of the sandbox appears to this program: {layer: {probe: value}}.

The first argument is a JSON object: "namespaces", the inodes of the host's namespaces by name; "calls", numbers of
system calls by name; "abstract", the abstract name of a socket outside; "port", a TCP port of the host's loopback.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys

given = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
last_capability = next(n - 1 for n in range(64) if libc.prctl(23, n, 0, 0, 0) < 0)  # PR_CAPBSET_READ


def tried(attempt, *arguments):
    """Returns "ok", or the name of the attempt's error."""
    try:
        result = attempt(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    if isinstance(result, int) and result > 2:
        os.close(result)
    return "ok"


def called(number, *arguments):
    ctypes.set_errno(0)
    wide = [ctypes.c_long(argument) for argument in arguments]
    if libc.syscall(ctypes.c_long(number), *wide) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return "ok"


def own(name):
    """Returns whether a namespace differs from the host's."""
    return str(os.stat("/proc/self/ns/" + name).st_ino) != given["namespaces"][name]


def read(path):
    try:
        return open(path).read().split()
    except OSError as error:
        return errno.errorcode[error.errno]


def mounts():
    """Returns the mounts by mount point; of several at one mount point, the last one."""
    seen = {}
    for line in open("/proc/self/mountinfo"):
        left, right = line.rstrip("\n").split(" - ")
        _, _, _, _, where, flags, *shared = left.split(" ")
        kind, _, options = right.split(" ", 2)
        seen[where] = [kind, flags, options, [tag.split(":")[0] for tag in shared]]
    return seen


def below(path):
    """Returns the results of operations below a directory."""
    new, other = path + "/probe", path + "/probe2"
    found = {"list": tried(os.listdir, path), "create": tried(os.open, new, os.O_CREAT | os.O_WRONLY)}
    found["truncate"], found["link"] = tried(os.truncate, new, 0), tried(os.link, new, other)
    found["rename"], found["execute"] = tried(os.rename, new, other), tried(os.chmod, other, 0o755)
    found["remove"] = tried(os.unlink, other)
    tried(os.unlink, new)  # renaming a link to another link of the same file leaves both
    for name, make in {
        "directory": os.mkdir, "fifo": os.mkfifo, "device": lambda at: os.mknod(at, 0o020600, os.makedev(1, 3)),
        "symlink": lambda at: os.symlink("x", at), "socket": lambda at: socket.socket(socket.AF_UNIX).bind(at),
    }.items():
        found[name] = tried(make, new)
        tried(os.rmdir if name == "directory" else os.unlink, new)
    return found


def opened(path):
    return {name: tried(os.open, path, flags) for name, flags in {"read": os.O_RDONLY, "write": os.O_WRONLY}.items()}


def abstract(name):
    peer = socket.socket(socket.AF_UNIX)
    return tried(peer.connect, "\0" + name)


def reach(address):
    socket.create_connection(address, timeout=5).close()


def interface(name):
    """Returns the flags of a network interface (SIOCGIFFLAGS)."""
    try:
        return fcntl.ioctl(socket.socket(), 0x8913, struct.pack("16s24x", name))[16:18].hex()
    except OSError as error:
        return errno.errorcode[error.errno]


def families():
    return {str(family): tried(lambda: socket.socket(family, socket.SOCK_DGRAM).close()) for family in range(46)}


NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
seen = mounts()
places = ("/", "/tmp", "/dev", "/dev/shm", "/etc", "/usr", "/usr/lib", "/proc", "/proc/self", "/sys", "/var", "/root", "/run")
files = ("/etc/passwd", "/etc/shadow", "/etc/hosts", "/usr/bin/env", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/tty", "/proc/1/environ",
         "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj", "/proc/self/mem", "/proc/kcore", "/sys/kernel/notes")

print(json.dumps({
    "user namespace": {
        "own": own("user"), "setgroups": read("/proc/self/setgroups"),
        **{name: [line.split()[::2] for line in open("/proc/self/" + name)] for name in ("uid_map", "gid_map")},
    },
    "private file system": {
        "own": own("mnt"), **{"mount on " + where: mount for where, mount in seen.items() if where != "/proc"},
        **{"entries of " + place: tried(os.listdir, place) if not os.path.isdir(place) else sorted(os.listdir(place))
           for place in ("/", "/dev", "/etc", "/tmp", "/dev/shm")},
        **{"owner of " + place: [os.stat(place).st_uid, os.stat(place).st_gid, oct(os.stat(place).st_mode)] for place in places if os.path.exists(place)},
    },
    "PID namespace": {"own": own("pid"), "parent": os.getppid(), "signals the first": tried(os.kill, 1, 0)},
    "own /proc": {
        "mount": seen.get("/proc"), "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "entries": sorted(name for name in os.listdir("/proc") if not name.isdigit()),
    },
    "IPC namespace": {"own": own("ipc"), "shared memory": len(read("/proc/sysvipc/shm") or []), "limits": read("/proc/sys/kernel/shmmax")},
    "UTS namespace": {"own": own("uts"), "name": os.uname().nodename, "domain": read("/proc/sys/kernel/domainname")},
    "network namespace": {
        "own": own("net"), "loopback": interface(b"lo"), "others": interface(b"eth0"), "a port of the host": tried(reach, ("127.0.0.1", given["port"])),
        "its own port": tried(reach, ("127.0.0.1", 9)), "elsewhere": tried(reach, ("192.0.2.1", 9)),
    },
    "unprivileged identity": {
        "users": os.getresuid(), "groups": os.getresgid(), "others": os.getgroups(),
        **{name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "last capability": last_capability,
        **{f"capability {n} in the bounding set": libc.prctl(23, n, 0, 0, 0) for n in range(last_capability + 1)},
        "securebits": libc.prctl(27, 0, 0, 0, 0), "keeps capabilities": libc.prctl(7, 0, 0, 0, 0),
    },
    "no new privileges": {"set": status["NoNewPrivs"]},
    "landlock": {
        **{"below " + place: below(place) for place in places}, **{"open " + file: opened(file) for file in files},
        "abstract socket of the host": abstract(given["abstract"]), "another link": tried(os.link, "/usr/bin/env", "/tmp/env"),
    },
    "seccomp": {
        "mode": status["Seccomp"], "filters": status["Seccomp_filters"],
        **{"call of " + name: called(number, *[-1] * 6) for name, number in given["calls"].items()},
        **{"clone of a namespace: " + name: called(given["clone"], flag, 0, 0, 0, 0) for name, flag in NEW.items()},
        **{"family " + family: answer for family, answer in families().items()},
        "prctl(PR_SET_MM)": called(given["prctl"], 35, 1, 0, 0, 0), "prlimit64 of another": called(given["prlimit64"], 1, 0, struct.calcsize("P"), 0),
    },
    "resource limits": {
        name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
    },
    "start of the program": {
        "directory": os.getcwd(), "session": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid(), "environment": dict(os.environ),
        "descriptors": sorted(os.listdir("/proc/self/fd")), "mask": oct(os.umask(0o022)), "nice": os.nice(0), "cgroups own": own("cgroup"),
        "out-of-memory score": read("/proc/self/oom_score_adj"), "dumpable": libc.prctl(3, 0, 0, 0, 0),
        **{name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
    },
}))
