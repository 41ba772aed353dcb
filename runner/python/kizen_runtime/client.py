"""The Kizen API for Python: `kizen.api.get("/custom-objects")` and the other verbs.

This file is the client inside a Code Step. Saved as `kizen.py`, it is also the client in a container beside the
sidecar:

    import kizen
    response = kizen.api.get("/custom-objects", params={"page": 2})

There the environment variable KIZEN_API_URL is the sidecar's address, and KIZEN_API_ROOT, if set, is the root of the
API to which the sidecar forwards. The sidecar adds the credentials; the calling code has none. Paths are relative to
the API root and arrive byte for byte as they were written. Every call returns a `requests.Response`,
whatever its status. Redirects below the API root also go through the sidecar. URLs in responses are always the API's.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

try:
    import requests
except ModuleNotFoundError as missing:
    if missing.name != "requests":
        raise
    raise ImportError(
        f'kizen.api needs the package "requests", which {sys.executable} does not have; '
        f"install it with: {sys.executable} -m pip install requests",
        name="requests",
    ) from None

from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL
from requests.models import PreparedRequest, Response
from requests.sessions import Session, merge_setting
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

__all__ = ["Api", "api"]

_POOL_SIZE = 32
_FULL_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# RFC 3986, appendix B.
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?(//[^/?#]*)?([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_DEFAULT_PORTS = {"http:": ":80", "https:": ":443"}
# The sidecar drops these headers from requests to the API, and no other host may receive them.
_CREDENTIALS = ("X-API-KEY", "X-BUSINESS-ID", "X-USER-ID", "Authorization", "Cookie")
# These characters must be percent-encoded in a request line (RFC 3986, 2). All others, percent signs included, are
# sent as the caller wrote them.
_NOT_IN_A_TARGET = re.compile(r"[^!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")


class Api:
    """The verbs, with the keyword arguments of `requests`. Safe for concurrent use by threads; a fork opens new
    connections."""

    def __init__(self, url: str | None = None, root: str | None = None) -> None:
        """`url` is the sidecar's address (KIZEN_API_URL); responses and errors show `root` (KIZEN_API_ROOT) in its
        place."""
        self._url = url
        self._root = root
        self._session: _Session | None = None
        self._pid = 0
        self._lock = threading.RLock()

    def get(self, path: str | None = None, params: Any = None, headers: Any = None, **kwargs: Any) -> Response:
        """GET `path`, relative to the API root."""
        return self._request("GET", path, {"params": params, "headers": headers, **kwargs})

    def post(
        self, path: str | None = None, data: Any = None, json: Any = None, headers: Any = None, **kwargs: Any
    ) -> Response:
        """POST to `path`, relative to the API root."""
        return self._request("POST", path, {"data": data, "json": json, "headers": headers, **kwargs})

    def put(
        self, path: str | None = None, data: Any = None, json: Any = None, headers: Any = None, **kwargs: Any
    ) -> Response:
        """PUT to `path`, relative to the API root."""
        return self._request("PUT", path, {"data": data, "json": json, "headers": headers, **kwargs})

    def patch(
        self, path: str | None = None, data: Any = None, json: Any = None, headers: Any = None, **kwargs: Any
    ) -> Response:
        """PATCH `path`, relative to the API root."""
        return self._request("PATCH", path, {"data": data, "json": json, "headers": headers, **kwargs})

    def delete(self, path: str | None = None, params: Any = None, headers: Any = None, **kwargs: Any) -> Response:
        """DELETE `path`, relative to the API root."""
        return self._request("DELETE", path, {"params": params, "headers": headers, **kwargs})

    def head(self, path: str | None = None, params: Any = None, headers: Any = None, **kwargs: Any) -> Response:
        """HEAD `path`, relative to the API root; redirects are not followed unless allowed, as in `requests`."""
        return self._request("HEAD", path, {"params": params, "headers": headers, "allow_redirects": False, **kwargs})

    def options(self, path: str | None = None, params: Any = None, headers: Any = None, **kwargs: Any) -> Response:
        """OPTIONS for `path`, relative to the API root."""
        return self._request("OPTIONS", path, {"params": params, "headers": headers, **kwargs})

    def __repr__(self) -> str:
        return "<kizen.api>"

    def _request(self, method: str, path: str | None, kwargs: dict[str, Any]) -> Response:
        session, verb = self._open(), method.lower()
        if path is None:
            path = kwargs.pop("url", None)  # the name of this parameter in `requests`
        elif "url" in kwargs:
            raise TypeError(f"kizen.api.{verb} takes one path, not both path and url")
        return session.call(method, session.root + _relative(path, verb, session.root), **kwargs)

    def _open(self) -> _Session:
        with self._lock:
            if self._session is None or self._pid != os.getpid():  # a forked child must not share connections
                url = self._url or os.environ.get("KIZEN_API_URL")
                if not url:
                    raise RuntimeError(
                        "the environment variable KIZEN_API_URL is not set; set it to what `kizen-sidecar proxy` prints"
                    )
                self._session = _Session(url, self._root or os.environ.get("KIZEN_API_ROOT") or url)
                self._pid = os.getpid()
            return self._session


class _Session(Session):
    """A session that reaches the API root through the sidecar; it ignores the environment's proxies and .netrc.

    When `requests` follows a redirect, it calls the methods named `rebuild_...`, in the order in which they are
    defined here. A redirect that stays below the root keeps its URL as the API wrote it. A redirect that leaves the
    root is handled by a plain session.
    """

    def __init__(self, url: str, root: str) -> None:
        super().__init__()
        self.trust_env = False
        # Calls share no cookies, as with `requests.get`.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.root = root.rstrip("/")
        self._sidecar = _SidecarAdapter(url.rstrip("/"), self.root)
        self._elsewhere = Session()
        if traceparent := os.environ.get("TRACEPARENT"):
            self.headers["traceparent"] = traceparent  # https://www.w3.org/TR/trace-context/

    def call(
        self,
        method: str,
        url: str,
        *,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        cookies: Any = None,
        files: Any = None,
        auth: Any = None,
        timeout: Any = None,
        allow_redirects: bool = True,
        proxies: Any = None,
        hooks: Any = None,
        stream: bool | None = None,
        verify: Any = None,
        cert: Any = None,
        json: Any = None,
    ) -> Response:
        """`Session.request`, but the URL stays as the caller wrote it."""
        request = _ExactRequest()
        merged: Any = merge_setting(headers, self.headers, CaseInsensitiveDict)  # type: ignore[no-untyped-call]
        request.prepare(
            method=method,
            url=url,
            headers=merged,
            files=files,
            data=data or {},
            params=params or {},
            auth=auth,
            cookies=cookies,
            hooks=hooks,
            json=json,
        )
        settings = self._elsewhere.merge_environment_settings("", proxies or {}, bool(stream), verify, cert)
        return self.send(request, timeout=timeout, allow_redirects=allow_redirects, **settings)

    def get_adapter(self, url: str) -> Any:
        """Returns the sidecar's adapter for URLs below the API root; a redirect that leads elsewhere is followed
        directly."""
        return self._elsewhere.get_adapter(url) if _below(self.root, url) is None else self._sidecar

    def get_redirect_target(self, resp: Response) -> str | None:
        """Returns the URL that a response redirects to, or None if it is not a redirect."""
        location = resp.headers["Location"] if resp.is_redirect else ""
        if not location:
            return None
        target = _resolve(str(resp.url), location)
        try:
            urlsplit(target)
        except ValueError as error:
            raise InvalidURL(f"the API redirects to {location!r}: {error}", response=resp) from None
        return target

    def rebuild_method(self, prepared_request: PreparedRequest, response: Response) -> None:
        """Restores the URL that `requests` changed, then changes the method as `requests` does."""
        target = self.get_redirect_target(response)
        if target and _below(self.root, target) is not None:
            prepared_request.url = target
        super().rebuild_method(prepared_request, response)

    def rebuild_proxies(self, prepared_request: PreparedRequest, proxies: Any) -> Any:
        """Applies the environment's proxies to other hosts only."""
        if _below(self.root, str(prepared_request.url)) is not None:
            return proxies
        return self._elsewhere.rebuild_proxies(prepared_request, proxies)  # type: ignore[no-untyped-call]

    def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
        """Removes the API's credentials from a request that goes elsewhere."""
        if _below(self.root, str(prepared_request.url)) is not None:
            return
        if _below(self.root, str(response.url)) is not None:
            for name in _CREDENTIALS:
                prepared_request.headers.pop(name, None)
        self._elsewhere.rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]


class _ExactRequest(PreparedRequest):
    """A request whose URL is sent as the caller wrote it; `requests` would decode, re-encode and shorten it."""

    def prepare_url(self, url: str, params: Any) -> None:
        """Keeps the URL and appends the parameters, encoded as `requests` encodes them."""
        query = self._encode_params(params)  # type: ignore[attr-defined]
        if isinstance(query, bytes):
            query = query.decode()
        if query:
            url += ("&" if "?" in url else "?") + _escape(query)
        self.url = url


class _SidecarAdapter(HTTPAdapter):
    """Sends requests below the API root to the sidecar."""

    is_kizen_api = True

    def __init__(self, url: str, root: str) -> None:
        super().__init__(pool_maxsize=_POOL_SIZE)
        self._base = urlsplit(url)
        self._root = root
        self._knows_root = root != url
        self._pool = _Pool(self._base.hostname or "", self._base.port or 80, maxsize=_POOL_SIZE)

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Sends the request; exceptions name the API's address, not the sidecar's."""
        address = request.url or ""
        if "Host" in request.headers:  # the sidecar answers only to its own name
            del request.headers["Host"]
        target = self._base.path + (_below(self._root, address) or "")
        _target.exact = target if target.startswith("/") else "/" + target
        _target.knows_root = self._knows_root
        try:
            return super().send(request, *args, **kwargs)
        except requests.RequestException as error:
            message = f"{request.method} {address}: {_reason(error)}"
            raise type(error)(message, request=request, response=error.response) from None

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """Returns the connections to the sidecar (requests before 2.32)."""
        return self._pool

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the connections to the sidecar (requests 2.32 and later)."""
        return self._pool

    def cert_verify(self, *args: Any) -> None:
        """Does nothing: the connection to the sidecar is plain HTTP on loopback, and the sidecar verifies the API."""

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        """Returns the URL for urllib3's error messages; the connection sends the exact target itself."""
        return str(request.path_url)

    def close(self) -> None:
        """Closes the connections."""
        self._pool.close()
        super().close()  # type: ignore[no-untyped-call]


class _Connection(HTTPConnection):
    """A connection that sends the target as the caller wrote it; urllib3 would normalise it."""

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        """Writes the request line, and asks the sidecar to leave Location as the API wrote it."""
        super().putrequest(method, _target.exact, *args, **kwargs)
        if _target.knows_root:
            self.putheader("X-Kizen-Location", "as-is")

    def __str__(self) -> str:
        """Returns the start of urllib3's error messages, which must not show the sidecar's address."""
        return "<kizen.api>"


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        """Sends a request. A response that ends before its Content-Length raises, as urllib3 does by default since
        2.0."""
        return super().urlopen(*args, **{"enforce_content_length": True, **kwargs})  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        """Returns the same as for a connection."""
        return "<kizen.api>"


_target = threading.local()  # the target of the request that this thread is sending


def shown_url(api: Api, path: object) -> str:
    """Returns the URL that a failed call with `path` would have requested."""
    text = str(path)
    return text.strip() if _FULL_URL.match(text) else f"{(api._root or '').rstrip('/')}/{text.removeprefix('/')}"


def _relative(path: Any, verb: str, root: str) -> str:
    """Returns the path as it is sent: it starts with a slash, has no fragment, and characters not allowed in a
    request line are percent-encoded."""
    if not isinstance(path, str):
        raise TypeError(f"kizen.api.{verb} takes a path as text, not {type(path).__name__}")
    if _FULL_URL.match(path):
        raise ValueError(_wrong_use(path.strip(), verb, root))
    path = _escape(path.partition("#")[0])
    return path if path.startswith("/") else "/" + path


def _below(root: str, url: str) -> str | None:
    """Returns the path and query that follow `root` in `url`, unchanged; None if `url` is not below the root."""
    (scheme, authority, path, query, _), (root_scheme, root_authority, root_path, *_) = _split(url), _split(root)
    if _origin(scheme, authority) != _origin(root_scheme, root_authority) or not path.startswith(root_path):
        return None
    rest = path[len(root_path) :]
    return rest + query if rest[:1] in ("", "/") else None


def _split(url: str) -> tuple[str, ...]:
    """Returns scheme, authority, path, query and fragment with their delimiters; joined, they are the original text."""
    parts = _PARTS.match(url)
    return parts.groups("") if parts else ()


def _origin(scheme: str, authority: str) -> tuple[str, str]:
    """Returns scheme, host and port in one normalised spelling."""
    scheme, host = scheme.lower(), authority[2:].lower().rpartition("@")[2]
    return scheme, host.removesuffix(_DEFAULT_PORTS.get(scheme, "/"))


def _resolve(base: str, location: str) -> str:
    """Resolves `location` against `base` (RFC 3986, 5.2.2); only dot segments change.

    A location without a fragment inherits that of `base` (RFC 9110, 10.2.2).
    """
    # http.client decodes header bytes as Latin-1.
    reference, mark, fragment = location.encode("latin-1").decode("utf-8", "surrogateescape").partition("#")
    scheme, authority, path, query, _ = _split(_escape(reference))
    base_scheme, base_authority, base_path, base_query, base_fragment = _split(base)
    if not scheme:
        scheme = base_scheme
        if not authority:
            authority = base_authority
            if not path:
                path, query = base_path, query or base_query
            elif not path.startswith("/"):
                path = (base_path[: base_path.rfind("/") + 1] or "/") + path
    return scheme + authority + _without_dots(path) + query + (mark + _escape(fragment) if mark else base_fragment)


def _without_dots(path: str) -> str:
    """Removes the segments "." and ".." from the path (RFC 3986, 5.2.4)."""
    if not path.startswith("/") or "/." not in path:
        return path
    segments, kept = path.split("/"), [""]
    for segment in segments[1:]:
        if segment == "..":
            kept[1:] = kept[1:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


def _wrong_use(url: str, verb: str, root: str) -> str:
    parts = urlsplit(url)
    base = urlsplit(root).path
    path = parts.path
    if base and (path == base or path.startswith(base + "/")):
        path = path[len(base) :]
    right = (path or "/") + (f"?{parts.query}" if parts.query else "")
    message = f'kizen.api.{verb} takes a path relative to the API root, not a full URL; say kizen.api.{verb}("{right}")'
    host = parts.hostname or ""
    if host != urlsplit(root).hostname and not host.endswith(".kizen.com"):
        message += f', or requests.{verb}("...") for a host that is not the Kizen API'
    return message


def _escape(target: str) -> str:
    def encoded(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))

    return _NOT_IN_A_TARGET.sub(encoded, target)


def _reason(error: BaseException) -> str:
    """Returns why a request failed: the text of the innermost cause."""
    if isinstance(error, requests.Timeout):
        return "timed out"
    cause: Any = error
    while True:
        inner = getattr(cause, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in getattr(cause, "args", ()) if isinstance(arg, BaseException)), None)
        if inner is None:
            break
        cause = inner
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return text.rpartition("> ")[2].rpartition(">: ")[2] or type(cause).__name__


api = Api()
