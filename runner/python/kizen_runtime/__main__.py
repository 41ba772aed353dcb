"""The entry point of the harness: takes one job from the sidecar, runs it and ends the process."""

import posix
import sys

from . import lazy_site, protocol
from .job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

FORK_SERVER_DESCRIPTOR = 3
CHANNEL_LOST = 74  # the exit code of a process that could not send its result


def main(fd: int, mode: str = "", *arguments: str) -> "NoReturn":
    """Runs one job from the socket `fd`. The next two descriptors are the sockets of the events and of the stacks.

    In mode `warm`, the harness loads everything before it reports `ready`. In mode `forkserver`, it loads everything
    and then runs each job in a fork, see `forkserver`. In mode `spawned`, this process belongs to the job of another
    process, see `spawned`.
    """
    lazy_site.install()
    if mode == "spawned":
        from . import spawned

        spawned.run(fd, *arguments)
    if mode:
        from . import warm

        warm.preload()
    if mode == "forkserver":
        from . import forkserver

        protocol.write(fd, READY)
        posix.closerange(fd, fd + 3)
        fd = forkserver.serve(FORK_SERVER_DESCRIPTOR)[0]
    run_one(fd)


READY = protocol.frame(b'{"k":"ready"}')


def run_one(fd: int) -> "NoReturn":
    """Reports `ready`, takes one job from the socket `fd`, runs it and ends the process."""
    stream = protocol.move(fd, protocol.STREAM_DESCRIPTOR)
    events = protocol.move(fd + 1, protocol.EVENTS_DESCRIPTOR)
    stacks = protocol.move(fd + 2, protocol.STACKS_DESCRIPTOR)
    protocol.write(stream, READY)
    try:
        frame = protocol.receive(stream)
    except EOFError:
        posix._exit(0)
    if "random" in sys.modules:
        from . import warm

        warm.renew()
    try:
        status = Job(protocol.Channel(stream, events, frame["nonce"]), frame).run(stacks)
    except OSError:  # the step closed the socket, or the sidecar has exited
        status = CHANNEL_LOST
    except BaseException as error:  # the step broke something that the harness depends on
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = CHANNEL_LOST
    leave(status)


def leave(code: int) -> "NoReturn":
    """Ends the process without waiting for daemon threads."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the step may have replaced the streams with anything
            pass
    posix._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
