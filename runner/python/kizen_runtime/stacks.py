"""Writes the stack of every thread of the step to the sidecar: when it asks, shortly before it ends the step or near
the memory limit, and when the step crashes. `faulthandler` does so in a signal handler in C, which no loop, lock or
ignored exception of the step can delay."""

import _signal  # type: ignore[import]
import faulthandler
import fcntl
import posix

SIGNAL = _signal.SIGURG  # ignored by default, so it does no harm to a step that has reset its signal handlers

_F_SETSIG = 10
_O_ASYNC = 0o20000


def install(fd: int) -> None:
    """Makes the kernel send SIGNAL whenever the sidecar writes to the socket `fd`; the stacks are written there."""
    faulthandler.enable(fd)
    faulthandler.register(SIGNAL, fd, all_threads=True)
    fcntl.fcntl(fd, fcntl.F_SETOWN, posix.getpid())
    fcntl.fcntl(fd, _F_SETSIG, SIGNAL)
    # Crashing children may have filled the socket, and it must not block a process that is dying.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_ASYNC | posix.O_NONBLOCK)
