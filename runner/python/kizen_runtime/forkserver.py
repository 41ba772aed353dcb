"""A fork server: a Python process that has loaded everything and forks programs, each into its own sandbox.

The sidecar decides which system calls build a sandbox, in which order and with which arguments. ForkPlan, ForkRequest,
ForkReply and Event of package stage describe the packets. This module imports no other module of the harness.
"""

import ctypes
import errno
import fcntl
import gc
import json
import posix
import resource
import signal
import socket
import struct
from base64 import b64decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PACKET_BYTES = 160 << 10
_MAX_DESCRIPTORS = 32

_CLONE_NEWCGROUP = 0x02000000
_CLONE_NEWUSER = 0x10000000
_CLONE_PARENT = 0x00008000
_CLONE_PIDFD = 0x00001000
_CLONE_INTO_CGROUP = 0x200000000
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_RULE_PATH_BENEATH = 1
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_O_PATH = 0o10000000

# PyDLL keeps the interpreter's lock during a call. If clone3 were called without the lock, the new process could not
# take it again, because it has no other thread that would release it.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


class LayerError(Exception):
    """The server could not set up a layer of a fork's sandbox."""

    def __init__(self, layer: str, error: Exception) -> None:
        super().__init__(str(error))
        self.layer = layer


def serve(fd: int) -> "list[int]":
    """Answers the requests on the socket `fd`. Ends the process when the sidecar closes the socket.

    Returns only in the program of each fork. The result is the program's descriptors, in the order of the request.
    Standard output and error are in place, and no other descriptor is open.
    """
    control = socket.socket(fileno=fd)
    plan = json.loads(control.recv(_PACKET_BYTES))
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, _PACKET_BYTES, _MAX_DESCRIPTORS)
        if not packet:
            posix._exit(0)
        fork = _Fork(plan, json.loads(packet), descriptors)
        try:
            pidfd = fork.begin()
            if pidfd is None:
                control.detach()
                return fork.enter()
            socket.send_fds(control, [b"{}"], [pidfd])
            posix.close(pidfd)
        except OSError as error:
            control.send(json.dumps({"error": str(error)}).encode())
        fork.forget()


class _Fork:
    """One fork while it is created."""

    def __init__(self, plan: "dict[str, Any]", request: "dict[str, Any]", descriptors: "list[int]") -> None:
        self._plan = plan
        self._request = request
        self._events, self._stdout, self._stderr = descriptors[:3]
        files = 3 + request["files"]
        self._files = descriptors[3:files]
        self._groups = descriptors[files:]
        self._begun, self._begin = posix.pipe()

    def begin(self) -> "int | None":
        """Creates the first process. Returns its pidfd in the server, and None in the process itself."""
        pid, pidfd = self._clone()
        if pid == 0:
            return None
        try:
            self._map_users(pid)
            posix.write(self._begin, b"\0")
        except OSError:
            posix.close(pidfd)
            raise
        return pidfd

    def forget(self) -> None:
        """Closes the server's descriptors. This ends the first process, unless `begin` has let it continue."""
        standard = (self._begun, self._begin, self._events, self._stdout, self._stderr)
        for descriptor in (*standard, *self._files, *self._groups):
            posix.close(descriptor)

    def _clone(self) -> "tuple[int, int]":
        flags = self._plan["namespaces"] | _CLONE_PIDFD | _CLONE_PARENT
        into = 0
        if self._request["into"]:
            flags, into = flags | _CLONE_INTO_CGROUP, self._groups[-1]
        pidfd = ctypes.c_int(-1)
        arguments = (ctypes.c_uint64 * 11)(flags, ctypes.addressof(pidfd), *[0] * 8, into)
        tasks = self._groups[: 2 * self._request["groups"]]
        try:
            for descriptor in tasks[::2]:
                posix.write(descriptor, b"0")
            pid = _call(self._plan["calls"]["clone3"], ctypes.byref(arguments), ctypes.sizeof(arguments))
        except OSError:
            _leave(tasks[1::2])
            raise
        if pid != 0:
            _leave(tasks[1::2])
        return pid, pidfd.value

    def _map_users(self, pid: int) -> None:
        if not self._plan["namespaces"] & _CLONE_NEWUSER:
            return
        if self._request["deny_setgroups"]:
            _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/gid_map", self._request["gid_map"])
        _write(f"/proc/{pid}/uid_map", self._request["uid_map"])

    def enter(self) -> "list[int]":
        """Runs in the first process, where it never returns, and forks the program, where it returns."""
        try:
            posix.close(self._begin)
            if not posix.read(self._begun, 1):
                posix._exit(1)
            self._build()
            if self._plan["connections"]:
                self._announced, self._announce = posix.pipe()
                self._acknowledged, self._acknowledge = posix.pipe()
            main = posix.fork()
            if main == 0:
                return self._become_program()
            if self._plan["connections"]:
                with _layer("connection policy"):
                    self._pass_listener(main)
        except BaseException as error:
            self._report([], kind="failed", layer=getattr(error, "layer", ""), error=str(error),
                         errno=getattr(error, "errno", None) or 0)
            posix._exit(1)
        self._reap(main)

    def _build(self) -> None:
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _write("/proc/self/oom_score_adj", "1000")
        if self._plan["hide_cgroups"]:
            _libc.unshare(_CLONE_NEWCGROUP)  # best effort, as in the stage
        for mount in self._plan["mounts"]:
            with _layer("own /proc" if mount["type"] == "proc" else "private file system"):
                kind, target, options = (mount[name].encode() for name in ("type", "target", "options"))
                _check(_libc.mount(kind, target, kind, mount["flags"], options))
        posix.chdir(self._plan["dir"])
        _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
        if self._plan["listen"]:
            with _layer("network namespace"), _listen() as listener:
                self._report([listener.fileno()], kind="ready")
        else:
            self._report([], kind="ready")

    def _become_program(self) -> "list[int]":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        posix.setsid()
        for limit in self._plan["limits"]:
            with _layer("resource limits"):
                resource.setrlimit(limit["Resource"], (limit["Value"], limit["Value"]))
        with _layer("unprivileged identity"):
            self._drop_privileges()
        with _layer("landlock"):
            self._restrict_paths()
        with _layer("seccomp"):
            self._install_filter()
        with _layer("connection policy"):
            self._supervise_connections()
        # The server's own standard input has flags and locks that all forks would share.
        posix.dup2(posix.open("/dev/null", posix.O_RDWR), 0)
        posix.dup2(self._stdout, 1)
        posix.dup2(self._stderr, 2)
        self._report([], kind="started")
        _close_all_but(self._files)
        return self._files

    def _drop_privileges(self) -> None:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        capability = 0
        # The kernel rejects the first unknown capability.
        while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
            # It fails without CAP_SETPCAP, but then no capability is left to drop.
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
            capability += 1
        step = self._request["step"]
        if step:
            posix.setgroups([])
            posix.setresgid(step["GID"], step["GID"], step["GID"])
            posix.setresuid(step["UID"], step["UID"], step["UID"])
        if self._plan["capabilities"]:
            header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            _call(self._plan["calls"]["capset"], ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
        # execve(2) would have done this: the step may inspect itself.
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))

    def _restrict_paths(self) -> None:
        rules, calls = self._plan["landlock"], self._plan["calls"]
        if not rules:
            return
        attr = b64decode(rules["attr"])
        ruleset = _call(calls["landlock_create_ruleset"], attr, len(attr), 0)
        for rule in rules["paths"]:
            try:
                path = posix.open(rule["path"], _O_PATH)
            except FileNotFoundError:  # a missing path needs no rule
                continue
            beneath = struct.pack("=Qi", rule["access"], path)
            _call(calls["landlock_add_rule"], ruleset, _LANDLOCK_RULE_PATH_BENEATH, beneath, 0)
            posix.close(path)
        _call(calls["landlock_restrict_self"], ruleset, 0)

    def _install_filter(self) -> None:
        if not self._plan["filter"]:
            return
        self._add_filter("filter", 0)

    def _add_filter(self, name: str, flags: int) -> int:
        code = ctypes.create_string_buffer(b64decode(self._plan[name]))
        program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
        return _call(self._plan["calls"]["seccomp"], _SECCOMP_SET_MODE_FILTER, flags, program)

    def _supervise_connections(self) -> None:
        """Installs the filter for connections.

        From now on, the filter stops calls of this process, so the first process passes the listener to the sidecar.
        """
        if not self._plan["connections"]:
            return
        flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER
        try:
            listener = self._add_filter("connections", flags | _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 5.19
                raise
            listener = self._add_filter("connections", flags)
        posix.write(self._announce, struct.pack("=i", listener))
        posix.close(self._acknowledge)
        if not posix.read(self._acknowledged, 1):
            raise OSError(errno.EPERM, "the first process could not take the listener")
        posix.close(listener)  # the program must not answer for the sidecar

    def _pass_listener(self, main: int) -> None:
        """Takes the listener from the program's process and passes it to the sidecar."""
        posix.close(self._announce)
        announced = posix.read(self._announced, 4)
        if not announced:
            return  # the program's process has reported why
        calls = self._plan["calls"]
        pidfd = _call(calls["pidfd_open"], main, 0)
        listener = _call(calls["pidfd_getfd"], pidfd, struct.unpack("=i", announced)[0], 0)
        self._report([listener], kind="supervised")
        posix.close(listener)
        posix.close(pidfd)
        posix.write(self._acknowledge, b"\0")

    def _reap(self, main: int) -> "NoReturn":
        """Runs the rest of the first process, which does what the stage does for a program that it has executed."""
        for standard in (1, 2):
            posix.dup2(0, standard)
        _close_all_but([self._events])
        status, ended = 0, 0
        while ended != main:
            ended, status = posix.waitpid(-1, 0)
        unreaped, survivors = _kill_all()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = int((used.ru_utime + used.ru_stime) * 1e9)
        self._report(
            [],
            kind="ended",
            status=status,
            survivors=survivors,
            unreaped=unreaped,
            cpu=cpu,
            max_rss=used.ru_maxrss << 10,
        )
        posix._exit(0)

    def _report(self, rights: "list[int]", **event: "Any") -> None:
        events = socket.socket(fileno=self._events)
        packet = json.dumps(event).encode()
        try:
            if rights:
                socket.send_fds(events, [packet], rights)
            else:
                events.send(packet)  # the filter for connections never stops this call
        except OSError:  # the sidecar has exited, and this process is about to be killed
            pass
        finally:
            events.detach()


class _layer:
    """Adds the name of the layer to an error that occurs in it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, Exception):
            raise LayerError(self._name, error) from None


def _call(number: int, *arguments: "Any") -> int:
    widened = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *widened))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, posix.strerror(number))
    return result


def _write(path: str, content: str) -> None:
    fd = posix.open(path, posix.O_WRONLY)
    try:
        posix.write(fd, content.encode())
    finally:
        posix.close(fd)


def _leave(tasks: "list[int]") -> None:
    """Moves back to the server's own cgroups. A server that cannot do so exits, because its next fork would count as
    part of this one."""
    try:
        for descriptor in tasks:
            posix.write(descriptor, b"0")
    except OSError:
        posix._exit(1)


def _listen() -> socket.socket:
    listener = socket.socket()
    fcntl.ioctl(listener, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    return listener


def _close_all_but(kept: "list[int]") -> None:
    end = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    first = 3
    for descriptor in sorted(kept):
        posix.closerange(first, descriptor)
        first = descriptor + 1
    posix.closerange(first, max(first, end))


def _kill_all() -> "tuple[int, int]":
    """Kills and reaps the processes that the program left behind. Returns how many had already ended, and how many
    were still alive."""
    ended = killed = 0
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0]:
            ended += 1
        while True:
            posix.kill(-1, signal.SIGKILL)
            posix.waitpid(-1, 0)
            killed += 1
    except (ChildProcessError, ProcessLookupError):
        return ended, killed
