"""Frames between the sidecar and the harness: UTF-8 JSON. On the job's stream, a four-byte big-endian length precedes
each frame.

This module uses `_json`, the core of the standard library's `json`, because importing `json` would add 5 ms to a cold
start. It decodes numbers as text, so that no digit is lost before their type is known.
"""

import posix
from _json import encode_basestring, encode_basestring_ascii, make_scanner  # type: ignore[attr-defined]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

quote: "Callable[[str], str]" = encode_basestring  # a text as a JSON string
quote_ascii: "Callable[[str], str]" = encode_basestring_ascii  # the same in ASCII only

# High descriptors, because a step may close or write to low numbers.
STREAM_DESCRIPTOR, EVENTS_DESCRIPTOR, STACKS_DESCRIPTOR = 97, 96, 95

_EMSGSIZE = 90


class _Literals:
    """The options of the JSON scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_int = parse_float = parse_constant = str
    memo: "dict[str, str]" = {}


def loads(text: str) -> "Any":
    """Decodes one JSON value; numbers stay text. Raises ValueError if the text is not JSON."""
    try:
        value, end = make_scanner(_Literals)(text, 0)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError(f"not JSON at character {error.value}") from None
    if text[end:].strip():
        raise ValueError(f"not JSON at character {end}")
    return value


def dumps(value: "Any") -> str:
    """Encodes None, bool, int, float, str, and lists and dicts of them as JSON."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(key)}:{dumps(item)}" for key, item in value.items()) + "}"
    return "[" + ",".join(dumps(item) for item in value) + "]"


def receive(fd: int) -> "Any":
    """Reads one frame; raises EOFError when the sidecar has closed the socket."""
    return loads(_read(fd, int.from_bytes(_read(fd, 4), "big")).decode())


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = posix.read(fd, size - len(data))
        if not chunk:
            raise EOFError("the sidecar closed the job's socket")
        data += chunk
    return bytes(data)


def frame(body: bytes) -> bytes:
    """Returns the body preceded by its length."""
    return len(body).to_bytes(4, "big") + body


def write(fd: int, data: bytes) -> None:
    """Writes all of the data."""
    rest = memoryview(data)
    while rest:
        rest = rest[posix.write(fd, rest) :]


def move(fd: int, high: int) -> int:
    """Moves a socket to a high descriptor that child programs do not inherit; returns the new number."""
    try:
        moved = posix.dup2(fd, high, inheritable=False)
    except OSError:  # RLIMIT_NOFILE is lower
        posix.set_inheritable(fd, False)
        return fd
    posix.close(fd)
    return moved


class Channel:
    """The harness's end of the connection: the messages of one job, each frame marked with the job's nonce.

    It has two sockets. `events` keeps message boundaries: one write is one frame, sent whole or not at all. So all
    threads and forked children of the step can send on it without a lock, even if they are killed or interrupted
    during a write. `stream` carries frames that may be large. Only the main thread of the process that runs the job
    uses it.
    """

    def __init__(self, stream: int, events: int, nonce: str) -> None:
        self._stream = stream
        self._events = events
        self._nonce = nonce
        self._owner = self._pid = posix.getpid() if stream >= 0 else 0
        self._process = ""

    @property
    def owned(self) -> bool:
        """Reports whether this process runs the job, and is not a child."""
        return posix.getpid() == self._owner

    @property
    def events(self) -> int:
        """Returns the descriptor of the events."""
        return self._events

    @property
    def nonce(self) -> str:
        """Returns the nonce that marks the frames of the job."""
        return self._nonce

    @property
    def process(self) -> str:
        """Returns an identifier of this process, unique within the step; empty in the process that runs the job."""
        pid = posix.getpid()
        if pid != self._pid:
            # Not the process ID, which the kernel could reuse.
            self._pid, self._process = pid, "" if pid == self._owner else posix.urandom(8).hex()
        return self._process

    def send(self, kind: str, **fields: "Any") -> bool:
        """Sends an event and returns True; returns False if it is too large for a message.

        Raises OSError when the sidecar has exited or the step closed the socket.
        """
        try:
            posix.write(self._events, self._body(kind, fields))
        except OSError as error:
            if error.errno != _EMSGSIZE:
                raise
            return False
        return True

    def report(self, kind: str, limit: "int | None" = None, /, **fields: "Any") -> bool:
        """Sends a frame on the stream and returns True. If the body has more bytes than `limit`, or if another process
        runs the job, sends nothing and returns False.

        Raises OSError as `send` does.
        """
        if not self.owned:
            return False
        body = self._body(kind, fields)
        if limit is not None and len(body) > limit:
            return False
        write(self._stream, frame(body))
        return True

    def _body(self, kind: str, fields: "dict[str, Any]") -> bytes:
        return dumps({"k": kind, "n": self._nonce, **fields}).encode("utf-8", "backslashreplace")
