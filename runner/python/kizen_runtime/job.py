"""One job: the step is run as the module `__main__`, and what comes of it is sent to the sidecar."""

import _signal  # type: ignore[import]
import posix
import sys
from types import ModuleType

from . import import_hook, values
from .globals import Inputs, Kizen, Outputs, Secrets, written
from .log import Counter, Log
from .protocol import Channel
from .redact import Redactor, tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

_DETAIL_BYTES = 8192
_ERROR_BYTES = 8192
_CAPABILITY_CHARACTERS = 16  # a path segment of the sidecar's address that is as long is not for anybody's eyes


class Source:
    """The loader of the step's module: from it tracebacks that the step formats itself get their source lines."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, name: str) -> str:
        """The step's source."""
        return self._text


class Job:
    """One step, its channel and its globals."""

    def __init__(self, channel: Channel, frame: "dict[str, Any]") -> None:
        """Takes the job frame as it came."""
        self._channel = channel
        self._limits = {name: int(value) for name, value in frame["limits"].items()}
        self._source: str = frame["script"].removeprefix("\ufeff")
        self._filename: str = frame["filename"]
        self._types: "dict[str, str]" = frame.get("output_types") or {}
        url, root = frame.get("api_url") or "", frame.get("api_root") or ""
        secrets: "dict[str, str]" = frame.get("secrets") or {}
        self._redactor = Redactor([*secrets.values(), *_capabilities(url)], _addresses(url, root))
        self._log = Log(channel, self._redactor, self._limits["log_message"], self._limits["log_total"])
        self._http_dropped = Counter(channel, "http_dropped")
        _set_environment(KIZEN_API_URL=url, TRACEPARENT=frame.get("traceparent") or "")
        inputs = {name: values.decode(typed) for name, typed in (frame.get("inputs") or {}).items()}
        self._outputs = Outputs(self._types, self._log)
        self._kizen = Kizen(url, root)
        self._globals = {"inputs": Inputs(inputs), "outputs": self._outputs, "secrets": Secrets(secrets), "kizen": self._kizen}

    def run(self) -> int:
        """Compiles and runs the step and sends its result. Returns what the process is to exit with, 0 after a success alone.

        OSError when the sidecar cannot be told.
        """
        import_hook.after_import("requests", self._record_http)
        import_hook.after_import(f"{__package__}.client", self._record_client)  # which has imported requests by then
        if sys.version_info >= (3, 14):
            import_hook.after_import("multiprocessing.context", _fork_by_default)
        code = self._compile()
        if code is None:
            return 1
        module = self._module()
        self._channel.send("started")
        try:
            exec(code, module.__dict__)
        except SystemExit as end:
            _take_over()
            if end.code not in (None, 0):
                return self._fail("exited", end, _status(end.code))
        except BaseException as error:
            _take_over()
            kind = "result_not_serialisable" if error is self._outputs._refusal else "exception"
            return self._fail(kind, error)
        _take_over()
        return self._succeed()

    def _record_http(self, requests: "Any") -> None:
        from .http_record import HttpRecord, install

        self._http_record = HttpRecord(self._channel, self._redactor, self._http_dropped, self._limits)
        install(requests, self._http_record)

    def _record_client(self, client: "Any") -> None:
        from .http_record import install_client

        install_client(client, self._http_record)

    def _compile(self) -> "CodeType | None":
        try:
            code: "CodeType" = compile(self._source, self._filename, "exec", dont_inherit=True)
            return code
        except BaseException as error:
            self._fail("syntax_error", error)
            return None

    def _module(self) -> ModuleType:
        """The module that the step is the body of: what pickle, dataclasses and typing look up in sys.modules."""
        module = ModuleType("__main__")
        names = {"__builtins__": __builtins__, "__file__": self._filename, "__loader__": Source(self._source)}
        module.__dict__.update(names, **self._globals)
        sys.modules["__main__"] = module
        sys.modules["kizen"] = self._kizen
        sys.argv[:] = [self._filename]
        return module

    def _succeed(self) -> int:
        outputs = {}
        assigned = self._outputs._values
        for name in [name for name in self._types if name in assigned]:
            try:
                outputs[name] = written(self._outputs, name)
            except BaseException as error:  # whatever the methods of a step's own class raise
                return self._refuse(name, error)
        return 0 if self._send_result(ok=True, values=outputs) else 1

    def _refuse(self, name: str, error: BaseException) -> int:
        message, detail = f'output "{name}" cannot be written as {self._types[name]!r}', ""
        try:
            from .failure import unwritable

            message = f"{_class_name(error)}: {message}: {error}"
            detail = unwritable(self._outputs._lines.get(name), self._filename, self._source, message)
        except BaseException:  # as in _fail
            pass
        self._send_failure("result_not_serialisable", message, detail)
        return 1

    def _fail(self, kind: str, error: BaseException, status: int = 1) -> int:
        if not self._channel.owned:  # a forked child: what a child of any program does
            sys.excepthook(type(error), error, error.__traceback__)
            posix._exit(status)
        message, detail = _class_name(error), ""
        try:
            from .failure import explain, summarise

            message, detail = summarise(error), explain(error, self._filename, self._source)
        except BaseException:  # the step has broken what this is made with
            pass
        self._send_failure(kind, message, detail)
        return status

    def _send_failure(self, kind: str, error: str, detail: str) -> None:
        # Redacted before it is cut, or half a secret would stay at the cut.
        error, detail = self._redactor.cut(error, _ERROR_BYTES), tail(self._redactor(detail), _DETAIL_BYTES)
        self._send_result(ok=False, kind=kind, error=error, detail=detail)

    def _send_result(self, *, ok: bool, **fields: "Any") -> bool:
        """Sends the last frame, or nothing in a forked child; False when it is too large, which is sent in its place."""
        if not self._channel.owned:
            return True
        self._log.dropped.send()
        self._http_dropped.send()
        limit = self._limits["result"]
        if self._channel.send("result", limit if ok else None, ok=ok, **fields):
            return True
        message = f"the result is larger than {limit} bytes"
        self._channel.send("result", ok=False, kind="output_limit", error=message, detail=message)
        return False


def _take_over() -> None:
    """Makes the process the harness's own when the step's body has ended.

    A signal handler of the step's that raises would end the harness in the middle of a sentence, and a step that holds every
    descriptor leaves none to import with.
    """
    for number in range(1, _signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_IGN)
    posix.closerange(0, 1)


def _status(code: object) -> int:
    """What a process exits with that is left with `sys.exit(code)`; never 0, since this is no success."""
    return int.__and__(code, 255) or 1 if isinstance(code, int) else 1


def _class_name(error: BaseException) -> str:
    """The name of the exception's class, whatever its metaclass says."""
    name: str = vars(type)["__name__"].__get__(type(error))
    return name


def _fork_by_default(context: "Any") -> None:
    """Starts processes as Python did until 3.14: other ways read the program's file again, and a step has none."""
    context._default_context._default_context = context._concrete_contexts["fork"]


def _set_environment(**variables: str) -> None:
    """Sets what an environment made before the job could not hold; `os` need not have been imported."""
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
    """What the sidecar's address is shown as."""
    url, root = url.rstrip("/"), root.rstrip("/")
    host, shown = "".join(url.split("/")[2:3]), "".join(root.split("/")[2:3])
    return {url: root, host: shown} if host and shown else {}
