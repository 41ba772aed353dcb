"""Takes secret values out of text, in the spellings in which they travel."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MARK = "[REDACTED]"

# RFC 3986 unreserved; then what quote(), requests and quote_plus() leave as it is besides.
_UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
_SAFE = ("", "/", "!#$%&'()*+,/:;=?@[]~", "!#$&'()*+,/:;=?@[]~")
_BASE64_AT_LEAST = 6  # the base64 inside of a shorter secret is too short to tell from other text


class Redactor:
    """Replaces every occurrence of the secrets, and of their encodings, with `[REDACTED]`."""

    def __init__(self, secrets: "Iterable[str]" = (), aliases: "Mapping[str, str] | None" = None) -> None:
        """`aliases` are texts that are not secret but are shown as another text."""
        self._shown = {form: shown for form, shown in (aliases or {}).items() if form}
        for secret in secrets:
            if secret:
                self._shown.update((form, MARK) for form in _forms(secret) if form)
        self.longest = max(map(len, self._shown), default=0)

    def __call__(self, text: str) -> str:
        """The whole text without secrets."""
        return self._replace(text, len(text))

    def cut(self, text: str, limit: int) -> str:
        """The beginning of the text without secrets: at most `limit` bytes of UTF-8, and never the beginning of a secret."""
        window = text[: limit + self.longest]
        # What starts behind the limit may go on behind the window.
        keep = len(window) if len(window) == len(text) else limit
        return head(self._replace(window, keep), limit)

    def _replace(self, text: str, keep: int) -> str:
        out, at = [], 0
        for start, end, shown in self._spans(text):
            if start >= keep:
                break
            out += [text[at:start], shown]
            at = end
        out.append(text[at : max(at, keep)])
        return "".join(out)

    def _spans(self, text: str) -> "list[tuple[int, int, str]]":
        """Where the text must change, in order and apart: what overlaps or touches becomes one span."""
        found = []
        for form, shown in self._shown.items():
            at = text.find(form)
            while at >= 0:
                found.append((at, -len(form), shown))
                at = text.find(form, at + 1)
        spans: "list[tuple[int, int, str]]" = []
        for start, length, shown in sorted(found):
            end = start - length
            if not spans or start > spans[-1][1] or (start == spans[-1][1] and shown != spans[-1][2]):
                spans.append((start, end, shown))
            elif end > spans[-1][1]:
                spans[-1] = spans[-1][0], end, MARK
        return spans


def head(text: str, limit: int) -> str:
    """The beginning of the text: at most `limit` bytes of UTF-8, no character cut."""
    text = text[:limit]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace")[:limit].decode("utf-8", "ignore")


def tail(text: str, limit: int) -> str:
    """The end of the text: at most `limit` bytes of UTF-8, no character cut; three dots stand for what is missing."""
    data = text[-limit:].encode("utf-8", "backslashreplace")
    if len(data) <= limit and len(text) <= limit:
        return data.decode()
    return "..." + data[max(0, len(data) - limit + 3) :].decode("utf-8", "ignore")


def _forms(secret: str) -> "Iterator[str]":
    """The spellings of a secret: as it is, in JSON, in a repr, in a URL, in base64."""
    from .protocol import quote, quote_ascii

    data = secret.encode("utf-8", "surrogatepass")
    yield secret
    for quoted in (quote(secret), quote_ascii(secret)):
        yield quoted[1:-1]
        yield quote(quoted)[1:-1][2:-2]  # JSON inside JSON
    for escaped in (_escape(secret), "".join(_escape(chr(byte), ascii) for byte in data)):
        for once in (escaped, escaped.replace("'", "\\'")):
            yield once
            yield _escape(once).replace("'", "\\'")  # a repr inside a repr
    for safe in _SAFE:
        url = _quote(data, _UNRESERVED + safe)
        yield url
        yield url.replace("%20", "+")
        yield _quote(data, _UNRESERVED + safe, "%%%02x")
    if len(data) >= _BASE64_AT_LEAST:
        yield from _base64(data)


def _escape(text: str, escape: "Callable[[str], str]" = repr) -> str:
    """The text as a repr writes it, but for the quotes: which of them it escapes depends on what stands around."""
    return "".join(char if char in "'\"" else escape(char)[1:-1] for char in text)


def _quote(data: bytes, safe: str, escape: str = "%%%02X") -> str:
    return "".join(chr(byte) if chr(byte) in safe else escape % byte for byte in data)


def _base64(data: bytes) -> "Iterator[str]":
    """What is sure to stand in the base64 of any text that holds the data, at each of the three alignments."""
    from binascii import b2a_base64

    for shift in range(3):
        padded = bytes(shift) + data
        whole = b2a_base64(padded, newline=False).decode()
        inner = whole[(shift * 8 + 5) // 6 : len(padded) * 8 // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")
