"""Where every thread of the step is: written to the sidecar when it asks, shortly before it ends the step or near the limit on
memory, and when the step crashes. `faulthandler` does so in a signal handler in C, which no loop, lock or ignored exception of the step holds up."""

import _signal  # type: ignore[import]
import faulthandler
import fcntl
import posix

SIGNAL = _signal.SIGURG  # whose default is to be ignored: a step that resets its signals is asked without harm

_F_SETSIG = 10
_O_ASYNC = 0o20000


def install(fd: int) -> None:
    """Has the kernel send SIGNAL whenever the sidecar writes to the socket `fd`; the stacks are written there."""
    faulthandler.enable(fd)
    faulthandler.register(SIGNAL, fd, all_threads=True)
    fcntl.fcntl(fd, fcntl.F_SETOWN, posix.getpid())
    fcntl.fcntl(fd, _F_SETSIG, SIGNAL)
    # A socket that is full, as crashing children may leave it, must not hold up what dies.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_ASYNC | posix.O_NONBLOCK)
