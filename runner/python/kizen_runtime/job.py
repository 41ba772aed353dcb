"""One job: runs the step as the module `__main__` and sends the result to the sidecar."""

import _signal  # type: ignore[import]
import posix
import sys
from _thread import get_ident
from types import ModuleType

from . import ending, import_hook, values
from .globals import Inputs, Kizen, Outputs, Secrets, written
from .log import Counter, Log
from .protocol import Channel
from .redact import Redactor, tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

_DETAIL_BYTES = 8192
_ERROR_BYTES = 8192
# A path segment of the sidecar's address that is at least this long is a capability and never shown.
_CAPABILITY_CHARACTERS = 16


class Source:
    """The loader of the step's module. It provides source lines to tracebacks that the step formats itself."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, name: str) -> str:
        """Returns the step's source."""
        return self._text


class Failure:
    """How the step's body failed, and the exit code of the process."""

    def __init__(self, kind: str, error: str, detail: str, status: int) -> None:
        self.kind, self.error, self.detail, self.status = kind, error, detail, status


CANNOT_CREATE = 73  # EX_CANTCREAT of sysexits.h


class Job:
    """One step, its channel and its globals."""

    def __init__(self, channel: Channel, frame: "dict[str, Any]") -> None:
        """Takes the job frame as it was decoded."""
        self.channel = channel
        self.frame = frame
        self.source: str = frame["script"].removeprefix("\ufeff")
        self.filename: str = frame["filename"]  # the name shown in tracebacks
        self.path: str = frame["path"]  # the value of `__file__`
        self._limits = {name: int(value) for name, value in frame["limits"].items()}
        self._types: "dict[str, str]" = frame.get("output_types") or {}
        url, root = frame.get("api_url") or "", frame.get("api_root") or ""
        secrets: "dict[str, str]" = frame.get("secrets") or {}
        self._redactor = Redactor([*secrets.values(), *_capabilities(url)], _addresses(url, root))
        self._log = Log(channel, self._redactor, self._limits["log_message"], self._limits["log_total"])
        self._http_dropped = Counter(channel, "http_dropped", each=True)
        _set_environment(KIZEN_API_URL=url, TRACEPARENT=frame.get("traceparent") or "")
        inputs = {name: values.decode(typed) for name, typed in (frame.get("inputs") or {}).items()}
        self._outputs = Outputs(self._types, self._log)
        self._kizen = Kizen(url, root)
        self.globals = {
            "inputs": Inputs(inputs),
            "outputs": self._outputs,
            "secrets": Secrets(secrets),
            "kizen": self._kizen,
        }

    def prepare(self) -> None:
        """Prepares this process to run the step's code."""
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[attr-defined] # keeps output before a crash
        sys.modules["kizen"] = self._kizen
        import_hook.after_import("requests", self._record_http)
        import_hook.after_import(f"{__package__}.client", self._record_client)  # this module imports requests first
        import_hook.after_import("multiprocessing.util", self._equip_spawned)
        if sys.version_info >= (3, 14):
            import_hook.after_import("multiprocessing.context", _fork_by_default)

    def run(self, stacks: int) -> int:
        """Compiles and runs the step and sends its result. Returns the exit code of the process; 0 means success.

        `stacks` is the socket for the stacks of threads. Raises OSError when the sidecar cannot be reached.
        """
        self._show_stacks(stacks)
        self.prepare()
        code = self._compile()
        if code is None:
            return 1
        module = self._module()
        self.channel.report("started", t=f"{get_ident():x}")
        failure = self._execute(code, module)
        self._end(failure)
        _take_over()
        if not self.channel.owned:  # a forked child that reached the end of the step's body
            self.report_dropped()
            return failure.status if failure else 0
        if failure:
            self._send_failure(failure)
            return failure.status
        return self._succeed()

    def report_dropped(self) -> None:
        """Reports to the sidecar what this process has dropped since its last report."""
        self._log.dropped.send()
        self._http_dropped.send()

    def _show_stacks(self, fd: int) -> None:
        from .stacks import install

        try:
            install(fd)
        except PermissionError:
            pass  # a step that runs as the sidecar's own user may not request signals, so it runs without stacks

    def _record_http(self, requests: "Any") -> None:
        from .http_record import HttpRecord, install

        self._http_record = HttpRecord(self.channel, self._redactor, self._http_dropped, self._limits)
        install(requests, self._http_record)

    def _record_client(self, client: "Any") -> None:
        from .http_record import install_client

        install_client(client, self._http_record)

    def _equip_spawned(self, util: "Any") -> None:
        from .spawned import install

        install(util, self)

    def _compile(self) -> "CodeType | None":
        try:
            code: "CodeType" = compile(self.source, self.filename, "exec", dont_inherit=True)
            return code
        except BaseException as error:
            self._send_failure(self._describe("syntax_error", error, 1))
            return None

    def _module(self) -> ModuleType:
        """Makes the module whose body is the step; pickle, dataclasses and typing look it up in sys.modules."""
        try:
            _write_source(self.path, self.source)
        # A disk error before the step's code runs; the sidecar reports the last line of standard error.
        except OSError as failed:
            message = f"cannot write the step's source to {self.path}: {failed.strerror}\n"
            posix.write(2, message.encode("utf-8", "replace"))
            posix._exit(CANNOT_CREATE)
        module = ModuleType("__main__")
        names = {"__builtins__": __builtins__, "__file__": self.path, "__loader__": Source(self.source)}
        module.__dict__.update(names, **self.globals)
        sys.modules["__main__"] = module
        sys.argv[:] = [self.path]
        return module

    def _execute(self, code: "CodeType", module: ModuleType) -> "Failure | None":
        """Runs the step's body."""
        try:
            exec(code, module.__dict__)
        except SystemExit as end:
            return None if end.code in (None, 0) else self._fail("exited", end, _status(end.code))
        except BaseException as error:
            kind = "result_not_serialisable" if error is self._outputs._refusal else "exception"
            return self._fail(kind, error, 1)
        return None

    def _fail(self, kind: str, error: BaseException, status: int) -> Failure:
        if not self.channel.owned:  # a forked child prints its traceback, as in any program
            if kind != "exited":
                trace = error.__traceback__ and error.__traceback__.tb_next
                sys.excepthook(type(error), error.with_traceback(trace), trace)
            return Failure(kind, "", "", status)
        with _Undisturbed():
            return self._describe(kind, error, status)

    def _describe(self, kind: str, error: BaseException, status: int) -> Failure:
        message, detail = _class_name(error), ""
        try:
            from .failure import explain, summarise

            message, detail = summarise(error), explain(error, self.filename, self.source)
        except BaseException:  # the step has broken something that this depends on
            pass
        return self._failure(kind, message, detail, status)

    def _failure(self, kind: str, error: str, detail: str, status: int = 1) -> Failure:
        # Redact before cutting, which could leave half a secret at the end.
        error, detail = self._redactor.cut(error, _ERROR_BYTES), tail(self._redactor(detail), _DETAIL_BYTES)
        return Failure(kind, error, detail, status)

    def _end(self, failure: "Failure | None") -> None:
        """Does what Python does at the end of a program. It first reports each part to the sidecar, so that the
        sidecar can name the part that took too long."""
        known = {"kind": failure.kind, "error": failure.error, "detail": failure.detail} if failure else {}
        if "threading" in sys.modules:
            self.channel.report("ending", threads=_threads(), **known)
            ending.join_threads()
        if ending.handlers():
            self.channel.report("ending", handlers=True, **known)
        ending.run_handlers()

    def _succeed(self) -> int:
        outputs = {}
        assigned = self._outputs._values
        for name in [name for name in self._types if name in assigned]:
            try:
                outputs[name] = written(self._outputs, name)
            except BaseException as error:  # the methods of a step's class may raise anything
                return self._refuse(name, error)
        return 0 if self._send_result(ok=True, values=outputs) else 1

    def _refuse(self, name: str, error: BaseException) -> int:
        message, detail = f'output "{name}" cannot be written as {self._types[name]!r}', ""
        try:
            from .failure import unwritable

            message = f"{_class_name(error)}: {message}: {error}"
            detail = unwritable(self._outputs._lines.get(name), self.filename, self.source, message)
        except BaseException:  # as in _describe
            pass
        self._send_failure(self._failure("result_not_serialisable", message, detail))
        return 1

    def _send_failure(self, failure: Failure) -> None:
        self._send_result(ok=False, kind=failure.kind, error=failure.error, detail=failure.detail)

    def _send_result(self, *, ok: bool, **fields: "Any") -> bool:
        """Sends the last frame. If it is too large, sends an error in its place and returns False."""
        self.report_dropped()
        limit = self._limits["result"]
        if self.channel.report("result", limit if ok else None, ok=ok, **fields):
            return True
        message = f"the result is larger than {limit} bytes"
        self.channel.report("result", ok=False, kind="output_limit", error=message, detail=message)
        return False


def _threads() -> "list[list[str]]":
    try:
        return ending.threads()
    except BaseException:  # the step may have replaced parts of the module
        return []


def _write_source(path: str, source: str) -> None:
    """Writes the source to `path`, which is the step's `__file__`."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o444)
    try:
        rest = memoryview(source.encode("utf-8", "surrogatepass"))
        while rest:
            rest = rest[posix.write(fd, rest) :]
    finally:
        posix.close(fd)


class _Undisturbed:
    """A context in which no signal handler of the step runs and at least one descriptor is free.

    A handler that raises would interrupt the harness, and a step that holds every descriptor would leave none for
    imports.
    """

    def __enter__(self) -> None:
        self._handlers = _ignore_signals()
        try:
            posix.close(posix.dup(2))
            self._borrowed = False
        except OSError:
            self._borrowed = True
            posix.closerange(0, 1)

    def __exit__(self, *_: object) -> None:
        if self._borrowed:
            posix.open("/dev/null", posix.O_RDONLY)  # takes the lowest free number
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)


def _ignore_signals() -> "dict[int, Callable[..., Any]]":
    """Ignores the signals that the step handles, and returns the handlers."""
    handlers = {number: _signal.getsignal(number) for number in range(1, _signal.NSIG)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        _signal.signal(number, _signal.SIG_IGN)
    return handlers


def _take_over() -> None:
    """Gives the harness control of the process after the step has ended, see _Undisturbed."""
    _ignore_signals()
    posix.closerange(0, 1)


def _status(code: object) -> int:
    """Returns the exit code of `sys.exit(code)` for a failure, which is never 0."""
    return int.__and__(code, 255) or 1 if isinstance(code, int) else 1


def _class_name(error: BaseException) -> str:
    """Returns the name of the exception's class, even if its metaclass hides it."""
    name: str = vars(type)["__name__"].__get__(type(error))
    return name


def _fork_by_default(context: "Any") -> None:
    """Makes `fork` the default start method, as before Python 3.14. The other methods run the step's body again in
    each child, unless the step checks that `__name__` is `__main__`; few steps do."""
    context._default_context._default_context = context._concrete_contexts["fork"]


def _set_environment(**variables: str) -> None:
    """Sets environment variables that were unknown when the process started. `os` need not have been imported."""
    for name, value in variables.items():
        if not value or posix.environ.get(name.encode()) == value.encode():
            continue
        if "os" in sys.modules:
            sys.modules["os"].environ[name] = value
        else:
            posix.putenv(name, value)
            posix.environ[name.encode()] = value.encode()


def _capabilities(url: str) -> "list[str]":
    return [segment for segment in url.split("/")[3:] if len(segment) >= _CAPABILITY_CHARACTERS]


def _addresses(url: str, root: str) -> "dict[str, str]":
    """Returns the parts of the sidecar's address, each with the text that replaces it in the step's output."""
    url, root = url.rstrip("/"), root.rstrip("/")
    host, path = url.partition("://")[2].partition("/")[::2]
    shown, root_path = root.partition("://")[2].partition("/")[::2]
    if not (host and shown):
        return {}
    addresses = {url: root, host: shown}
    if _capabilities(url):  # the path of a redirect without a host
        addresses["/" + path] = "/" + root_path if root_path else ""
    return addresses
