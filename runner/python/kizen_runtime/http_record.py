"""The record of every call made with `requests`: one entry a request on the wire, sent to the sidecar as it happens.

An entry is sent when the request leaves, again when its answer's head is there, and again when the body has been read, so
that a step that is killed while it waits still shows what it waited for. Bodies are looked at, never copied or consumed.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import datetime, timezone
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .log import Counter
    from .protocol import Channel
    from .redact import Redactor

# Parts of the names of headers whose values let somebody in.
_CREDENTIALS = ("authorization", "cookie", "token", "secret", "password", "api-key", "apikey", "api_key", "access-key", "credential", "signature")
_HEADER_BYTES = 2048
_HEADERS = 64
_URL_BYTES = 8192


class HttpRecord:
    """The entries of one execution; the first `entries` are kept and the rest are counted."""

    def __init__(self, channel: Channel, redactor: Redactor, dropped: Counter, limits: Mapping[str, int]) -> None:
        self._channel = channel
        self._redactor = redactor
        self._dropped = dropped
        self._entries = limits["http_entries"]
        self._request_bytes = limits["request_body"]
        self._response_bytes = limits["response_body"]
        self._count = 0
        self._lock = threading.RLock()

    def begin(self, method: str | None, url: str | None, headers: Mapping[Any, Any], body: Any, session: bool) -> Entry | None:
        """Opens an entry for a request that is about to leave; None when no more are kept, or in a forked child."""
        if not self._channel.owned:  # the lock may be held for good there
            return None
        with self._lock:
            index = self._count
            self._count += 1
            if index >= self._entries:
                self._dropped.add()
                return None
        fields = {
            "method": self.text(method or "", 64),
            "url": self.url(url or ""),
            "headers": self.headers(headers),
            "body": self.body(body),
            "requestSubmittedAt": datetime.now(timezone.utc).isoformat(),
            "session": session,
            "responseStatusCode": None,
            "responseHeaders": None,
            "responseBody": None,
            "requestErrorType": None,
            "duration": None,
        }
        return Entry(self, index, fields)

    def send(self, index: int, fields: dict[str, Any]) -> None:
        """Sends an entry as it stands."""
        self._channel.send("http", i=index, e=fields)

    def text(self, value: str | bytes, limit: int) -> str:
        """A text, or the beginning of a body of bytes, redacted and cut."""
        if not isinstance(value, str):
            window = bytes(value[: limit + 4 * self._redactor.longest])
            return self._redactor.cut(window.decode("utf-8", "replace"), limit)
        return self._redactor.cut(value, limit)

    def url(self, url: str) -> str:
        """A URL without the credentials it may hold."""
        scheme, separator, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        user, at, host = authority.rpartition("@")
        if separator and at:
            url = f"{scheme}://[REDACTED]@{host}{slash}{path}"
        return self.text(url, _URL_BYTES)

    def headers(self, headers: Mapping[Any, Any] | None) -> dict[str, str]:
        """Headers as text, the values that carry credentials hidden."""
        shown = {}
        for name, value in list((headers or {}).items())[:_HEADERS]:
            name, value = (item.decode("latin-1") if isinstance(item, bytes) else str(item) for item in (name, value))
            hidden = any(part in name.lower() for part in _CREDENTIALS)
            shown[self.text(name, 256)] = "[REDACTED]" if hidden else self.text(value, _HEADER_BYTES)
        return shown

    def body(self, body: Any) -> str | None:
        """The beginning of a request's body; a file or a generator is named, because reading it would use it up."""
        if body is None or isinstance(body, (str, bytes, bytearray, memoryview)):
            return None if body is None else self.text(body, self._request_bytes)
        return f"<{type(body).__name__}, streamed>"

    def response_text(self, data: bytes) -> str:
        """The beginning of a response's body."""
        return self.text(data, self._response_bytes)

    @property
    def response_window(self) -> int:
        """How many bytes of a response's body are needed to redact and cut it."""
        return self._response_bytes + 4 * self._redactor.longest


class Entry:
    """One request under way."""

    def __init__(self, record: HttpRecord, index: int, fields: dict[str, Any]) -> None:
        self._record = record
        self._index = index
        self._fields = fields
        self._started = perf_counter()
        self._body = bytearray()
        record.send(index, fields)

    def answered(self, status: int, headers: Mapping[Any, Any]) -> None:
        """The head of the answer is there."""
        self._fields.update(responseStatusCode=status, responseHeaders=self._record.headers(headers))
        self._update()

    def failed(self, error: BaseException) -> None:
        """The request, or the reading of its answer, failed."""
        self._fields["requestErrorType"] = type(error).__name__
        if self._body:
            self._fields["responseBody"] = self._record.response_text(bytes(self._body))
        self._update()

    def received(self, chunk: str | bytes) -> None:
        """A piece of the answer's body was read by the step."""
        missing = self._record.response_window - len(self._body)
        if missing > 0:
            piece = chunk[:missing]
            self._body += piece.encode("utf-8", "replace") if isinstance(piece, str) else piece

    def ended(self) -> None:
        """The step read the answer's body to its end, or turned away from it."""
        self._fields["responseBody"] = self._record.response_text(bytes(self._body))
        self._update()

    def _update(self) -> None:
        self._fields["duration"] = round((perf_counter() - self._started) * 1000, 3)
        self._record.send(self._index, self._fields)


def install(requests: Any, record: HttpRecord) -> None:
    """Makes the classes of `requests` report to the record."""
    _record_sending(requests.adapters.HTTPAdapter, record)
    _record_reading(requests.models.Response)
    _record_unsent(requests.sessions.Session, record)


_thread = threading.local()  # how many requests this thread has sent


def _record_sending(adapter: Any, record: HttpRecord) -> None:
    send = adapter.send

    def recorded_send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _thread.sent = getattr(_thread, "sent", 0) + 1
        session = getattr(self, "is_kizen_api", False)
        if traceparent := os.environ.get("TRACEPARENT"):
            request.headers.setdefault("traceparent", traceparent)  # https://www.w3.org/TR/trace-context/
        entry = record.begin(request.method, request.url, request.headers, request.body, session)
        try:
            response = send(self, request, *args, **kwargs)
        except BaseException as error:
            if entry is not None:
                entry.failed(error)
            raise
        if entry is not None:
            entry.answered(response.status_code, response.headers)
            response._kizen_entry = entry
        return response

    adapter.send = _like(send, recorded_send)


def _record_reading(response: Any) -> None:
    iter_content = response.iter_content

    def recorded_iter_content(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        chunks: Iterator[Any] = iter_content(self, *args, **kwargs)
        entry = self.__dict__.pop("_kizen_entry", None)
        return chunks if entry is None else _follow(chunks, entry)

    response.iter_content = _like(iter_content, recorded_iter_content)


def _follow(chunks: Iterator[Any], entry: Entry) -> Iterator[Any]:
    try:
        for chunk in chunks:
            entry.received(chunk)
            yield chunk
    except GeneratorExit:
        entry.ended()
        raise
    except BaseException as error:
        entry.failed(error)
        raise
    entry.ended()


def _record_unsent(session: Any, record: HttpRecord) -> None:
    """A call that fails before anything is sent (a bad URL, say) has an entry too."""
    request = session.request

    def recorded_request(self: Any, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
        sent = getattr(_thread, "sent", 0)
        try:
            return request(self, method, url, *args, **kwargs)
        except Exception as error:
            if getattr(_thread, "sent", 0) == sent:
                entry = record.begin(str(method).upper(), str(url), kwargs.get("headers") or {}, kwargs.get("data"), False)
                if entry is not None:
                    entry.failed(error)
            raise

    session.request = _like(request, recorded_request)


def _like(original: Any, replacement: Any) -> Any:
    """The replacement under the original's name, documentation and signature."""
    replacement.__name__, replacement.__qualname__ = original.__name__, original.__qualname__
    replacement.__doc__, replacement.__module__ = original.__doc__, original.__module__
    replacement.__wrapped__ = original
    return replacement
