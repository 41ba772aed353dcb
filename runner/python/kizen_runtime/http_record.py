"""Records every call made with `requests`: one entry for each request on the wire, sent to the sidecar at once.

An entry is sent when the request leaves, again when the response's head has arrived, and again when the body has been
read. So if a step is killed while it waits, its record still shows the call. Bodies are never consumed.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from datetime import datetime, timezone
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .redact import MARK, names_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .log import Counter
    from .protocol import Channel
    from .redact import Redactor

_HEADER_BYTES = 2048
_HEADERS = 64
_URL_BYTES = 8192


class HttpRecord:
    """The entries of one execution. It keeps the first `entries` and counts the rest."""

    def __init__(self, channel: Channel, redactor: Redactor, dropped: Counter, limits: Mapping[str, int]) -> None:
        self._channel = channel
        self._redactor = redactor
        self._dropped = dropped
        self._entries = limits["http_entries"]
        self._request_bytes = limits["request_body"]
        self._response_bytes = limits["response_body"]
        self._numbers = itertools.count()

    def begin(
        self, method: str | None, url: str | None, headers: Mapping[Any, Any], body: Any, session: bool
    ) -> Entry | None:
        """Opens an entry for a request that is about to leave; returns None when the limit is reached."""
        index = next(self._numbers)
        if index >= self._entries:
            self._dropped.add()
            return None
        fields = {
            "method": self._redactor.name(method or "", 64),
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
        return Entry(self, (self._channel.process, index), fields)

    def send(self, number: tuple[str, int], fields: dict[str, Any]) -> None:
        """Sends an entry in its current state, without the parts that would make it too large to send."""
        process, index = number
        if not self._channel.send("http", p=process, i=index, e=fields):
            left_out: dict[str, dict[str, str]] = {name: {} for name in ("headers", "responseHeaders") if fields[name]}
            self._channel.send("http", p=process, i=index, e={**fields, **left_out})

    def text(self, value: str | bytes, limit: int) -> str:
        """Returns a text, or the beginning of a body, redacted and cut."""
        if not isinstance(value, str):
            window = bytes(value[: limit + 4 * self._redactor.longest])
            return self._redactor.cut(window.decode("utf-8", "replace"), limit)
        return self._redactor.cut(value, limit)

    def url(self, url: str) -> str:
        """Returns a URL without the credentials in it."""
        scheme, separator, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        user, at, host = authority.rpartition("@")
        if separator and at:
            url = f"{scheme}://{MARK}@{host}{slash}{path}"
        return self.text(url, _URL_BYTES)

    def headers(self, headers: Mapping[Any, Any] | None) -> dict[str, str]:
        """Returns headers as text; values of headers that carry credentials are replaced."""
        shown = {}
        for name, value in list((headers or {}).items())[:_HEADERS]:
            name, value = (item.decode("latin-1") if isinstance(item, bytes) else str(item) for item in (name, value))
            shown[self._redactor.name(name, 256)] = MARK if names_secret(name) else self.text(value, _HEADER_BYTES)
        return shown

    def body(self, body: Any) -> str | None:
        """Returns the beginning of a request's body. A file or a generator is only named, because reading it would
        consume it."""
        if body is None or isinstance(body, (str, bytes, bytearray, memoryview)):
            return None if body is None else self.text(body, self._request_bytes)
        return f"<{type(body).__name__}, streamed>"

    def response_text(self, data: bytes) -> str:
        """Returns the beginning of a response's body."""
        return self.text(data, self._response_bytes)

    @property
    def response_window(self) -> int:
        """Returns how many bytes of a response's body are needed to redact and cut it."""
        return self._response_bytes + 4 * self._redactor.longest


class Entry:
    """One request in progress."""

    def __init__(self, record: HttpRecord, number: tuple[str, int], fields: dict[str, Any]) -> None:
        """`number` has two parts: the number of the process that sends the request, and of the request in that
        process."""
        self._record = record
        self._number = number
        self._fields = fields
        self._started = perf_counter()
        self._body = bytearray()
        record.send(number, fields)

    def answered(self, status: int, headers: Mapping[Any, Any]) -> None:
        """Records that the response's head has arrived."""
        self._fields.update(responseStatusCode=status, responseHeaders=self._record.headers(headers))
        self._update()

    def failed(self, error: BaseException) -> None:
        """Records that the request, or reading its response, failed."""
        self._fields["requestErrorType"] = type(error).__name__
        if self._body:
            self._fields["responseBody"] = self._record.response_text(bytes(self._body))
        self._update()

    def received(self, chunk: str | bytes) -> None:
        """Records that the step read a piece of the response's body."""
        missing = self._record.response_window - len(self._body)
        if missing > 0:
            piece = chunk[:missing]
            self._body += piece.encode("utf-8", "replace") if isinstance(piece, str) else piece

    def ended(self) -> None:
        """Records that the step read the whole body, or abandoned it."""
        self._fields["responseBody"] = self._record.response_text(bytes(self._body))
        self._update()

    def _update(self) -> None:
        self._fields["duration"] = round((perf_counter() - self._started) * 1000, 3)
        self._record.send(self._number, self._fields)


def install(requests: Any, record: HttpRecord) -> None:
    """Patches the classes of `requests` to record their calls."""
    _record_sending(requests.adapters.HTTPAdapter, record)
    _record_retries()
    _record_reading(requests.models.Response)
    _record_unsent(requests.sessions.Session, record)


def install_client(client: Any, record: HttpRecord) -> None:
    """Patches `kizen.api` to record calls that fail before they are sent. Wrong use, such as a full URL, is no call."""
    from requests.exceptions import RequestException

    call = client.Api._request

    def recorded_call(self: Any, method: str, path: Any, kwargs: Any) -> Any:
        begun, shown = _begun(), kwargs.get("url") if path is None else path
        try:
            return call(self, method, path, kwargs)
        except RequestException as error:
            if _begun() == begun:
                url, headers = client.shown_url(self, shown), kwargs.get("headers")
                _unsent(record, error, method, url, headers, kwargs.get("data"), True)
            raise

    client.Api._request = _like(call, recorded_call)


class _Exchange:
    """One call of `HTTPAdapter.send`: one request on the wire, plus one for each retry by urllib3."""

    def __init__(self, record: HttpRecord, request: Any, session: bool) -> None:
        self._record = record
        self._request = request
        self._session = session
        self._opened = False
        self.entry = self._begin()

    def _begin(self) -> Entry | None:
        _thread.begun = _begun() + 1
        request = self._request
        return self._record.begin(request.method, request.url, request.headers, request.body, self._session)

    def opening(self) -> None:
        """Called when urllib3 is about to send the request, possibly again."""
        if self._opened:
            self.entry = self._begin()
        self._opened = True

    def answered(self, response: Any, status: int) -> None:
        """Called when the head of a response has arrived."""
        if self.entry is not None:
            self.entry.answered(status, response.headers)

    def failed(self, error: BaseException) -> None:
        """Called when the request failed."""
        if self.entry is not None:
            self.entry.failed(error)

    def discarded(self, response: Any) -> None:
        """Called before urllib3 reads the response to its end and retries; the response's `data` stays readable."""
        if self.entry is None:
            return
        try:
            self.entry.received(response.read(decode_content=True, cache_content=True))
        except Exception as error:  # from urllib3, a socket or a decoder; urllib3 ignores it too
            self.entry.failed(error)
        else:
            self.entry.ended()


_thread = threading.local()  # how many entries this thread has begun, and its current exchange


def _begun() -> int:
    return getattr(_thread, "begun", 0)


def _exchange() -> _Exchange | None:
    return getattr(_thread, "exchange", None)


def _record_sending(adapter: Any, record: HttpRecord) -> None:
    send = adapter.send

    def recorded_send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if traceparent := os.environ.get("TRACEPARENT"):
            request.headers.setdefault("traceparent", traceparent)  # https://www.w3.org/TR/trace-context/
        outer, exchange = _exchange(), _Exchange(record, request, getattr(self, "is_kizen_api", False))
        _thread.exchange = exchange
        try:
            response = send(self, request, *args, **kwargs)
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            _thread.exchange = outer
        exchange.answered(response, response.status_code)
        if exchange.entry is not None:
            response._kizen_entry = exchange.entry
        return response

    adapter.send = _like(send, recorded_send)


def _record_retries() -> None:
    """Records the retries that urllib3 makes for `requests`: with `Retry(2)` mounted, one `send` makes up to three
    requests."""
    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.util.retry import Retry

    pool: Any = HTTPConnectionPool
    retry: Any = Retry
    urlopen, increment = pool.urlopen, retry.increment

    def recorded_urlopen(self: Any, *args: Any, **kwargs: Any) -> Any:
        if exchange := _exchange():
            exchange.opening()
        return urlopen(self, *args, **kwargs)

    def recorded_increment(self: Any, *args: Any, **kwargs: Any) -> Any:
        exchange, response, error = _exchange(), kwargs.get("response"), kwargs.get("error")
        if exchange and response is not None:
            exchange.answered(response, response.status)
        again = increment(self, *args, **kwargs)  # raises if the request must not be retried
        if exchange and response is not None:
            exchange.discarded(response)
        elif exchange and error is not None:
            exchange.failed(error)
        return again

    pool.urlopen = _like(urlopen, recorded_urlopen)
    retry.increment = _like(increment, recorded_increment)


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
    """Records an entry for a call that fails before it is sent, for example for a bad URL."""
    request, send = session.request, session.send

    def recorded_request(self: Any, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begun()
        try:
            return request(self, method, url, *args, **kwargs)
        except Exception as error:
            if _begun() == begun:
                _unsent(record, error, method, url, kwargs.get("headers"), kwargs.get("data"), False)
            raise

    def recorded_send(self: Any, request: Any, **kwargs: Any) -> Any:
        begun = _begun()
        try:
            return send(self, request, **kwargs)
        except Exception as error:
            if _begun() == begun:
                _unsent(record, error, request.method, request.url, request.headers, request.body, False)
            raise

    session.request, session.send = _like(request, recorded_request), _like(send, recorded_send)


def _unsent(
    record: HttpRecord, error: Exception, method: Any, url: Any, headers: Any, body: Any, session: bool
) -> None:
    _thread.begun = _begun() + 1
    shown = headers if hasattr(headers, "items") else {}  # the headers may be the cause of the failure
    entry = record.begin(str(method).upper(), str(url), shown, body, session)
    if entry is not None:
        entry.failed(error)


def _like(original: Any, replacement: Any) -> Any:
    """Gives the replacement the original's name, documentation and signature."""
    replacement.__name__, replacement.__qualname__ = original.__name__, original.__qualname__
    replacement.__doc__, replacement.__module__ = original.__doc__, original.__module__
    replacement.__wrapped__ = original
    return replacement
