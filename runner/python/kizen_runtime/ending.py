"""Ends a step as Python ends any program: it joins threads, runs exit handlers and flushes open files.

It does not shut down the interpreter itself, because that would take longer than many steps. It prints the exceptions
that threads and handlers raise, as Python does.
"""

import _io  # type: ignore[import]
import atexit
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_THREADS, _NAME_CHARACTERS = 100, 200


def threads() -> "list[list[str]]":
    """Returns the threads that must be joined: the identifier of each in hexadecimal, and its name."""
    threading = sys.modules.get("threading")
    if threading is None:
        return []
    current = threading.current_thread()
    waited = [thread for thread in threading.enumerate() if not thread.daemon and thread is not current]
    return [[f"{thread.ident or 0:x}", str(thread.name)[:_NAME_CHARACTERS]] for thread in waited[:_MOST_THREADS]]


def handlers() -> int:
    """Returns how many exit handlers have not run yet."""
    count: int = atexit._ncallbacks()
    return count


def join_threads() -> None:
    """Runs the handlers of `threading._register_atexit`, which executors use, then joins the non-daemon threads."""
    threading = sys.modules.get("threading")
    if threading is not None:
        _attempt(threading._shutdown)


def run_handlers() -> None:
    """Runs the handlers registered with `atexit`, joins the threads that those handlers started, and flushes open
    files."""
    _attempt(atexit._run_exitfuncs)
    threading = sys.modules.get("threading")
    if threading is not None:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                _attempt(thread.join)
    _attempt(_flush_files)


def _flush_files() -> None:
    if not _has_files():
        return
    import gc

    files = [thing for thing in gc.get_objects() if issubclass(type(thing), _io._IOBase)]
    # Flush files that write into other files first.
    for file in sorted(files, key=lambda file: issubclass(type(file), _io._BufferedIOBase)):
        try:
            if not file.closed:
                file.flush()
        except (OSError, ValueError):  # as when a file is deleted
            pass


def _has_files() -> bool:
    """Returns whether the step has an open file or pipe. Otherwise there is no need to walk all objects."""
    try:
        descriptors = [int(name) for name in posix.listdir("/proc/self/fd")]
    except OSError:
        return True
    for descriptor in descriptors:
        try:
            mode = posix.fstat(descriptor).st_mode
        except OSError:  # the descriptor that listdir used
            continue
        if descriptor > 2 and mode & 0o170000 != 0o140000:  # not a socket
            return True
    return False


def _attempt(call: "Callable[[], object]") -> None:
    try:
        call()
    except BaseException as error:
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:  # the step may have replaced the hook
            pass
