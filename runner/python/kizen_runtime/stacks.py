"""Sends the stacks of all threads of the step to the sidecar: when the step crashes, and when the sidecar asks for
them, which it does shortly before it ends the step and near the memory limit. `faulthandler` writes them in a signal
handler in C, which no loop, lock or ignored exception of the step can delay."""

import _signal  # type: ignore[import]
import faulthandler
import fcntl
import posix

SIGNAL = _signal.SIGURG  # ignored by default, so it does not end a step that has reset its signal handlers

_F_SETSIG = 10
_O_ASYNC = 0o20000


def install(fd: int) -> None:
    """Makes the kernel send SIGNAL whenever the sidecar writes to the socket `fd`. The stacks are written to `fd`."""
    faulthandler.enable(fd)
    faulthandler.register(SIGNAL, fd, all_threads=True)
    fcntl.fcntl(fd, fcntl.F_SETOWN, posix.getpid())
    fcntl.fcntl(fd, _F_SETSIG, SIGNAL)
    # Crashed children may have filled the socket, which must not block a process that is about to end.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_ASYNC | posix.O_NONBLOCK)
