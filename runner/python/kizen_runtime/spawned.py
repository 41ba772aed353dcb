"""Runs the harness in processes that `multiprocessing` starts by executing Python (its methods `spawn` and
`forkserver`). They belong to the step: they log and call as forked children do, and run the step's source as
`__mp_main__` with the same names bound."""

import posix
import sys

from . import import_hook, protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .job import Job

# The imports in the command lines of such processes.
_PROGRAMS = ("from multiprocessing.spawn import spawn_main", "from multiprocessing.forkserver import main")


def install(util: "Any", job: "Job") -> None:
    """Makes `multiprocessing.util` start the harness in each process that will run functions of the step."""
    start = util.spawnv_passfds

    def spawnv_passfds(path: "Any", args: "Any", passfds: "Any") -> "Any":
        args = list(args)
        at = args.index("-c") if "-c" in args else len(args)
        program = "".join(args[at + 1 : at + 2])
        if not any(imported in program for imported in _PROGRAMS):
            return start(path, args, passfds)
        fd = _write_job(job)
        try:
            command = ["-c", _loader(), str(fd), "spawned", str(job.channel.events)]
            return start(path, [*args[:at], *command, *args[at + 1 :]], [*passfds, fd, job.channel.events])
        finally:
            posix.close(fd)

    util.spawnv_passfds = spawnv_passfds


def _loader() -> str:
    """Returns the program that loads the harness, see loader.py; it follows `-c` on the command line."""
    return sys.orig_argv[sys.orig_argv.index("-c") + 1]


def _write_job(job: "Job") -> int:
    """Writes the harness and the job to a file in memory, which the loader and `run` read."""
    fd = posix.memfd_create("harness")
    protocol.write(fd, protocol.frame(__loader__.pack()))  # type: ignore[name-defined]
    protocol.write(fd, protocol.frame(protocol.dumps(job.frame).encode("utf-8", "backslashreplace")))
    posix.lseek(fd, 0, 0)
    return fd


def run(fd: int, events: str, program: str, *arguments: str) -> "NoReturn":
    """Runs `program`, which comes from multiprocessing, in a process that has the harness. `events` is the descriptor
    of the socket to which the process sends its events."""
    from .job import Job

    frame = protocol.receive(fd)
    posix.close(fd)
    posix.set_inheritable(int(events), False)
    job = Job(protocol.Channel(-1, int(events), frame["nonce"]), frame)
    job.prepare()
    import_hook.after_import("runpy", lambda runpy: _bind(runpy, job))
    sys.argv[:] = ["-c", *arguments]
    try:
        exec(program, sys.modules["__main__"].__dict__)
    finally:
        job.report_dropped()
    sys.exit()


def _bind(runpy: "Any", job: "Job") -> None:
    """Makes runpy run the step's source as in the step's first process: with its name in tracebacks, and with the
    step's names bound."""
    run_path = runpy.run_path

    def run_step(path: "Any", init_globals: "Any" = None, run_name: "Any" = None) -> "Any":
        if path != job.path:
            return run_path(path, init_globals, run_name)
        code = compile(job.source, job.filename, "exec", dont_inherit=True)
        return runpy._run_module_code(code, {**job.globals, **(init_globals or {})}, run_name, script_name=path)

    runpy.run_path = run_step
