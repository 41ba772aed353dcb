"""How a step's failure reads: its own frames, the source line of each, and nothing of the runtime."""

import linecache
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNTIME = __file__.rpartition("/")[0] + "/"
_IMPORTLIB = "<frozen importlib"


def summarise(error: BaseException) -> str:
    """One line (or as many as the message has): the exception's name and message, as Python prints them."""
    summary = traceback.TracebackException(type(error), error, None)
    summary.__notes__ = None  # type: ignore[attr-defined]
    return "".join(summary.format_exception_only()).rpartition("\n  ")[2].strip() if isinstance(error, SyntaxError) else (
        "".join(summary.format_exception_only()).strip()
    )


def explain(error: BaseException, filename: str, source: str) -> str:
    """The traceback, chained exceptions and groups included, without the frames of the runtime and of the import system."""
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    report = traceback.TracebackException(type(error), error, error.__traceback__, max_group_width=15, compact=True)
    for part in _parts(report):
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith((_RUNTIME, _IMPORTLIB))]
    return "".join(report.format())


def unserialisable(line: "int | None", filename: str, source: str, message: str) -> str:
    """The traceback of an output that cannot be written: it points at the line that assigned it."""
    lines = source.splitlines()
    if line is None or not 0 < line <= len(lines):
        return message
    return f'Traceback (most recent call last):\n  File "{filename}", line {line}\n    {lines[line - 1].strip()}\n{message}\n'


def _parts(report: traceback.TracebackException) -> "Iterator[traceback.TracebackException]":
    waiting = [report]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other is not None]
