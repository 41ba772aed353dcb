"""Frames between the sidecar and the harness: a four-byte big-endian length, then that many bytes of UTF-8 JSON.

Built on `_json`, the core of the standard library's `json`: importing `json` itself would cost a cold start 5 ms. Numbers
are decoded as the text they were written as, so that no digit is lost before their type is known.
"""

import posix
from _json import encode_basestring, encode_basestring_ascii, make_scanner  # type: ignore[attr-defined]
from _thread import RLock  # type: ignore[attr-defined]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

quote: "Callable[[str], str]" = encode_basestring  # a text as a JSON string
quote_ascii: "Callable[[str], str]" = encode_basestring_ascii  # the same, all but ASCII escaped

HIGH_DESCRIPTOR = 97  # out of the way of a step that closes or writes to the small numbers


class _Literals:
    """The options of the JSON scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_int = parse_float = parse_constant = str
    memo: "dict[str, str]" = {}


def loads(text: str) -> "Any":
    """Decodes one JSON value; numbers come as their text. ValueError when it is not JSON."""
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
    """Reads one frame; EOFError when the sidecar has gone."""
    return loads(_read(fd, int.from_bytes(_read(fd, 4), "big")).decode())


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = posix.read(fd, size - len(data))
        if not chunk:
            raise EOFError("the sidecar closed the job's socket")
        data += chunk
    return bytes(data)


def move(fd: int) -> int:
    """Moves the job's socket to a high descriptor that programs started by the step do not inherit; returns where it is."""
    try:
        high = posix.dup2(fd, HIGH_DESCRIPTOR, inheritable=False)
    except OSError:  # RLIMIT_NOFILE is lower
        posix.set_inheritable(fd, False)
        return fd
    posix.close(fd)
    return high


class Channel:
    """The harness's end: frames of one job, each marked with the job's nonce.

    Only the process that made the channel sends; in a forked child every call does nothing, because two writers on one
    stream would cut into each other's frames.
    """

    def __init__(self, fd: int, nonce: "str | None" = None) -> None:
        self._fd = fd
        self._nonce = nonce
        self._pid = posix.getpid()
        self._lock = RLock()
        self._waiting: "list[bytes]" = []
        self._sending = False

    def send(self, kind: str, limit: "int | None" = None, /, **fields: "Any") -> bool:
        """Sends one frame, and says so; sends nothing when its body has more bytes than `limit`, or in a forked child.

        OSError when the sidecar has gone or the step closed the socket.
        """
        if not self.owned:
            return False
        frame: "dict[str, Any]" = {"k": kind}
        if self._nonce is not None:
            frame["n"] = self._nonce
        frame.update(fields)
        body = dumps(frame).encode("utf-8", "backslashreplace")
        if limit is not None and len(body) > limit:
            return False
        with self._lock:
            self._waiting.append(len(body).to_bytes(4, "big") + body)
            if not self._sending:
                self._send_waiting()
            # Otherwise a signal handler or a finaliser is at work in the middle of another frame, and this one goes behind it.
        return True

    def _send_waiting(self) -> None:
        self._sending = True
        try:
            while self._waiting:
                rest = memoryview(self._waiting.pop(0))
                while rest:
                    rest = rest[posix.write(self._fd, rest) :]
        finally:
            self._sending = False

    @property
    def owned(self) -> bool:
        """Whether this process is the one that runs the job."""
        return posix.getpid() == self._pid
