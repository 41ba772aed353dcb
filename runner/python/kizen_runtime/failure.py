"""Formats a step's failure: only the step's own frames, each with its source line."""

import linecache
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNTIME_FILES = (__file__.rpartition("/")[0] + "/", "<frozen importlib", "<frozen _sitebuiltins")


def summarise(error: BaseException) -> str:
    """Returns the exception's name and message, as in the last line of a traceback."""
    try:
        report = traceback.TracebackException(type(error), error, None, compact=True)
        report.__notes__ = None  # type: ignore[attr-defined]
        lines = list(report.format_exception_only())
        return (lines[-1] if isinstance(error, SyntaxError) else "".join(lines)).strip()
    except BaseException:  # out of memory, or an exception built to break this
        return type(error).__name__


def explain(error: BaseException, filename: str, source: str) -> str:
    """Returns the traceback with chained exceptions and groups, but without the frames of the runtime and the import
    system."""
    try:
        linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
        report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        for part in _parts(report):
            if part.stack is not None:
                part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith(_RUNTIME_FILES)]
        return "".join(report.format())
    except BaseException:
        return summarise(error)


def unwritable(line: "int | None", filename: str, source: str, message: str) -> str:
    """Returns the traceback for an output that cannot be written; it shows the line that assigned the output."""
    lines = source.splitlines()
    if line is None or not 0 < line <= len(lines):
        return message + "\n"
    frame = f'  File "{filename}", line {line}\n    {lines[line - 1].strip()}\n'
    return f"Traceback (most recent call last):\n{frame}{message}\n"


def _parts(report: traceback.TracebackException) -> "Iterator[traceback.TracebackException]":
    waiting = [report]
    while waiting:
        part = waiting.pop()
        yield part
        members = part.exceptions or ()  # type: ignore[attr-defined]
        waiting += [other for other in (part.__cause__, part.__context__, *members) if other is not None]
