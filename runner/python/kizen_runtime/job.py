"""One job: the step is run as the module `__main__`, and what comes of it is sent to the sidecar."""

import sys
from types import ModuleType

from . import import_hook, values
from .globals import Inputs, Kizen, Outputs
from .protocol import Channel
from .redact import Redactor, tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

_DETAIL_BYTES = 8192
_ERROR_BYTES = 8192


class Log:
    """`outputs.log`: each message is redacted, cut at a limit and sent; what is over the total is counted and dropped."""

    def __init__(self, channel: Channel, redactor: Redactor, message_bytes: int, total_bytes: int) -> None:
        self._channel = channel
        self._redactor = redactor
        self._message_bytes = message_bytes
        self._left = total_bytes
        self.dropped = Counter(channel, "logs_dropped")

    def __call__(self, message: str) -> None:
        if self._left <= 0:
            self.dropped.add()
            return
        kept = self._redactor.cut(message, min(self._message_bytes, self._left))
        self._left -= len(kept.encode()) if message else 0
        lost = 0 if len(message) <= len(kept) else len(message) - len(kept)
        self._channel.send("log", m=kept, x=lost)


class Counter:
    """Counts what was dropped; tells the sidecar at 1, 2, 4, 8, ... so that a sudden death does not lose the number."""

    def __init__(self, channel: Channel, kind: str) -> None:
        self._channel = channel
        self._kind = kind
        self._count = 0

    def add(self) -> None:
        """Counts one."""
        self._count += 1
        if self._count & (self._count - 1) == 0:
            self.send()

    def send(self) -> None:
        """Tells the sidecar the number, when there is one."""
        if self._count:
            self._channel.send(self._kind, c=self._count)


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
        limits = {name: int(value) for name, value in frame["limits"].items()}
        self._channel = channel
        self._source: str = frame["script"].removeprefix("\ufeff")
        self._filename: str = frame["filename"]
        secrets: "dict[str, str]" = frame.get("secrets") or {}
        self._redactor = Redactor(secrets.values())
        self._log = Log(channel, self._redactor, limits["log_message"], limits["log_total"])
        self._types: "dict[str, str]" = frame.get("output_types") or {}
        self._outputs = Outputs(self._types, self._log)
        self._http_dropped = Counter(channel, "http_dropped")
        self._limits = limits
        self._api_url: str = frame.get("api_url") or ""
        self._api_root: str = frame.get("api_root") or ""
        self._kizen = Kizen(self._api_url, self._api_root)
        inputs = {name: values.decode(typed) for name, typed in (frame.get("inputs") or {}).items()}
        self._names = {"inputs": Inputs(inputs), "outputs": self._outputs, "secrets": dict(secrets), "kizen": self._kizen}

    def run(self) -> None:
        """Compiles and runs the step and sends its result."""
        import_hook.after_import("requests", self._record)
        code = self._compile()
        if code is None:
            return
        module = self._module()
        self._channel.send("started")
        try:
            exec(code, module.__dict__)
        except SystemExit as end:
            if end.code not in (None, 0):
                self._fail("exited", end, exit_code=end.code if isinstance(end.code, int) else 1)
                return
        except BaseException as error:
            self._fail("exception", error)
            return
        self._succeed()

    def _record(self, requests: "Any") -> None:
        from .http_record import HttpRecord, install

        install(requests, HttpRecord(self._channel, self._redactor, self._http_dropped, self._limits, self._public))

    def _public(self, text: str) -> str:
        """The text with the API root in place of the sidecar's address, which holds the capability."""
        return text.replace(self._api_url, self._api_root) if self._api_url else text

    def _compile(self) -> "CodeType | None":
        try:
            return compile(self._source, self._filename, "exec", dont_inherit=True)
        except BaseException as error:
            self._fail("syntax_error", error)
            return None

    def _module(self) -> ModuleType:
        """The module that the step is the body of: what pickle, dataclasses and typing look up in sys.modules."""
        module = ModuleType("__main__")
        module.__dict__.update(
            __builtins__=__builtins__, __file__=self._filename, __loader__=Source(self._source), **self._names
        )
        sys.modules["__main__"] = module
        sys.modules["kizen"] = self._kizen
        sys.argv[:] = [self._filename]
        return module

    def _succeed(self) -> None:
        written = {}
        assigned = self._outputs._values
        for name in [name for name in self._types if name in assigned]:
            try:
                written[name] = values.encode(self._types[name], assigned[name], self._redactor)
            except Exception as error:
                self._refuse(name, error)
                return
        self._result(ok=True, values=written)

    def _refuse(self, name: str, error: Exception) -> None:
        from .failure import unserialisable

        message = f'{type(error).__name__}: output "{name}" cannot be written as {self._types[name]!r}: {error}'
        detail = unserialisable(self._outputs._lines.get(name), self._filename, self._source, message)
        self._send_failure("result_not_serialisable", message, detail)

    def _fail(self, kind: str, error: BaseException, **more: int) -> None:
        from .failure import explain, summarise

        self._send_failure(kind, summarise(error), explain(error, self._filename, self._source), **more)

    def _send_failure(self, kind: str, error: str, detail: str, **more: int) -> None:
        # Redacted before it is cut, or half a secret would stay at the cut.
        error, detail = self._public(error), self._public(detail)
        error, detail = self._redactor.cut(error, _ERROR_BYTES), tail(self._redactor(detail), _DETAIL_BYTES)
        self._result(ok=False, kind=kind, error=error, detail=detail, **more)

    def _result(self, **fields: "Any") -> None:
        if self._channel.owned:
            self._log.dropped.send()
            self._http_dropped.send()
            self._channel.send("result", **fields)
