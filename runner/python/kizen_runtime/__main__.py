"""The harness's entry: takes one job from the sidecar, runs it and ends the process."""

import posix
import sys

from . import lazy_site, protocol
from .job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

FORK_SERVER_DESCRIPTOR = 3
CHANNEL_LOST = 74  # the exit code of a process that could not send its result


def main(fd: int, mode: str = "") -> "NoReturn":
    """Runs one job from the socket `fd`. In mode `warm` everything is loaded before the sidecar hears `ready`; in mode
    `forkserver` that is where it ends, and jobs are run in forks, see `forkserver`."""
    lazy_site.install()
    if mode:
        from . import warm

        warm.preload()
    if mode == "forkserver":
        from . import forkserver

        protocol.Channel(fd).send("ready")
        posix.close(fd)
        (fd,) = forkserver.serve(FORK_SERVER_DESCRIPTOR)
    run_one(fd)


def run_one(fd: int) -> "NoReturn":
    """Says `ready`, takes one job from the socket `fd`, runs it and ends the process."""
    fd = protocol.move(fd)
    protocol.Channel(fd).send("ready")
    try:
        frame = protocol.receive(fd)
    except EOFError:
        posix._exit(0)
    if "random" in sys.modules:
        from . import warm

        warm.renew()
    job = Job(protocol.Channel(fd, frame["nonce"]), frame)
    try:
        status = job.run()
    except OSError:  # the step closed the socket, or the sidecar has gone
        status = CHANNEL_LOST
    except BaseException as error:  # the step broke what the harness is made of
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = CHANNEL_LOST
    leave(status)


def leave(code: int) -> "NoReturn":
    """Ends the process without waiting for threads that outlive the step's body."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # what the step left in their place is its own affair
            pass
    posix._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
