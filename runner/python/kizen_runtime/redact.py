"""Removes secret values from text, in every form in which they may appear.

The sidecar implements the same rules in telemetry/mask.go; the cases in telemetry/testdata/redaction.json test both.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from re import Pattern
    from typing import Any

MARK = "[REDACTED]"

_WHOLE_WORD_BELOW = 4  # a value of fewer characters is replaced only as a whole word
_IDENTIFYING = 16  # a value of fewer characters may be part of an identifier or a name by chance
_UNTOUCHABLE = 1 << 30  # no value in such a zone is replaced
_RECODED_AT_LEAST = 6  # bytes; a shorter secret, once encoded, looks like other text
_RECODED_SIZE = 1 << 20  # the size assumed for an encoded form, which is never part of an identifier by chance
_DECODINGS = 4  # how many layers of encoding are decoded
_ENCODED_SIZE = 1 + 2 * _DECODINGS  # the maximal number of bytes for one byte after _DECODINGS percent-encodings
_LONGEST_ESCAPE = 12
_WINDOW = 64 << 10  # how much text is decoded at once, because a decoded byte takes much memory
_FEW = 256  # up to this number, forms are searched for one by one
_PREFIX = 4
_WORD = frozenset(b"_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_JOINTS = frozenset(".-:@+%")
_BARE = b"0123456789+-.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BLANKS = b" \t\r\n"

# The field names of internal/redacted. A header is secret if its name contains one of _SECRET_PARTS, or one of
# _SECRET_WORDS as a word.
_SECRET_PARTS = (
    "password,passwd,pwd,passphrase,passcode,secret,token,credential,credentials,"
    "api key,access key,auth key,private key,shared key,account key,functions key,encryption key,subscription key,"
    "authorization,cookie,bearer,signature"
).split(",")
_SECRET_WORDS = "auth,hmac,jwt,otp,pass,saml,session,sessionid,sig".split(",")
_PLACES = "file,path,dir".split(",")  # last words of names that say where a credential is stored


class Redactor:
    """Replaces every occurrence of the secrets, and of their encodings, with `[REDACTED]`."""

    def __init__(self, secrets: "Iterable[str]" = (), aliases: "Mapping[str, str] | None" = None) -> None:
        """`aliases` maps texts that are not secret to the texts shown in their place."""
        self._aliases = {_bytes(text): _bytes(shown) for text, shown in (aliases or {}).items() if text}
        # The characters of each form, and whether it reads like a name.
        self._forms: "dict[bytes, tuple[int, bool]]" = {}
        self.longest = max(map(len, self._aliases), default=0)  # the maximal number of bytes that are replaced together
        for secret in filter(None, dict.fromkeys(secrets)):
            self.longest = max(self.longest, _ENCODED_SIZE * len(_bytes(secret)))
            for form, size, named in _forms(secret):
                self._forms.setdefault(form, (size, named))
        self._index: "dict[bytes, set[int]]" = {}  # the lengths of the forms that begin with these bytes
        if len(self._forms) > _FEW:
            for form in self._forms:
                if len(form) >= _PREFIX:
                    self._index.setdefault(form[:_PREFIX], set()).add(len(form))
        self._single = [form for form in self._forms if len(form) < _PREFIX or not self._index]

    def __call__(self, text: str) -> str:
        """Returns the whole text without secrets."""
        data = _bytes(text)
        return self._replace(data, len(data))

    def cut(self, text: str, limit: int) -> str:
        """Returns the beginning of the text without secrets: at most `limit` bytes of UTF-8, and never the beginning
        of a secret."""
        window = text[: limit + self.longest]
        data = _bytes(window)
        # A secret that starts before the limit may end after the window.
        return head(self._replace(data, len(data) if len(window) == len(text) else limit), limit)

    def name(self, text: str, limit: int) -> str:
        """Returns the name of a field, a method or a class, redacted as a key in JSON would be and cut as by `cut`."""
        data = _bytes(text[: limit + self.longest])
        return head(self._replace(data, len(data), [(0, len(data), _IDENTIFYING, True)]), limit)

    def _replace(self, data: bytes, keep: int, known: "Sequence[_Zone]" = ()) -> str:
        out, at = [], 0
        for start, end, shown in self._spans(data, known):
            if start >= keep:
                break
            out += [data[at:start], shown]
            at = end
        out.append(data[at : max(at, keep)])
        return b"".join(out).decode("utf-8", "surrogatepass" if keep == len(data) else "ignore")

    def _spans(self, data: bytes, known: "Sequence[_Zone]") -> "list[tuple[int, int, bytes]]":
        """Returns the sorted, disjoint spans that must change; spans that overlap or touch become one."""
        found = [(at, -len(alias), shown) for alias, shown in self._aliases.items() for at in _all(data, alias)]
        found += [(start, start - end, shown) for start, end, shown in self._secrets(_Structure(data, known))]
        spans: "list[tuple[int, int, bytes]]" = []
        for start, length, shown in sorted(found):
            end = start - length
            if not spans or start > spans[-1][1] or (start == spans[-1][1] and shown != spans[-1][2]):
                spans.append((start, end, shown))
            elif end > spans[-1][1]:
                spans[-1] = spans[-1][0], end, MARK.encode()
        return spans

    def _secrets(self, structure: "_Structure") -> "list[tuple[int, int, bytes]]":
        """Returns the sorted, disjoint spans of secrets, and the text that replaces each."""
        data, found = structure.data, []
        for base in range(0, len(data) if self._forms else 0, _WINDOW):
            here = []
            for view, at in _views(data[base : base + _WINDOW + self.longest]):
                for begin, form in self._places(view):
                    start, end = base + at[begin], base + at[begin + len(form)]
                    if structure.is_secret(start, end, *self._forms[form]):
                        here.append((start, end, False))
            found += _merged(here)
        if not found:
            return []
        whole = _merged([structure.widened(start, end) for start, end, _ in _merged(found)])
        return structure.in_json([(start, end) for start, end, _ in whole])

    def _places(self, view: bytes) -> "Iterator[tuple[int, bytes]]":
        """Returns where the forms occur in a text."""
        for form in self._single:
            for at in _all(view, form):
                yield at, form
        if index := self._index:
            for at in range(len(view) - _PREFIX + 1):
                for length in index.get(view[at : at + _PREFIX], ()):
                    if (form := view[at : at + length]) in self._forms:
                        yield at, form


def names_secret(name: str) -> bool:
    """Returns whether a header with this name carries a credential."""
    words, last = [""], " "
    for char in name:
        if not char.isalnum() or (char.isupper() and last.islower()):
            words.append("")
        words[-1] += char.lower() if char.isalnum() else ""
        last = char
    words = [word for word in words if word]
    if not words or words[-1] in _PLACES:
        return False
    squeezed = "".join(char for char in name.lower() if char not in "-_. ")
    if any(part.replace(" ", "") in squeezed for part in _SECRET_PARTS):
        return True
    return any(word in _SECRET_WORDS for word in words)


def head(text: str, limit: int) -> str:
    """Returns the beginning of the text: at most `limit` bytes of UTF-8, and no partial character."""
    text = text[:limit]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace")[:limit].decode("utf-8", "ignore")


def tail(text: str, limit: int) -> str:
    """Returns the end of the text: at most `limit` bytes of UTF-8, and no partial character; three dots replace the
    missing part."""
    data = text[-limit:].encode("utf-8", "backslashreplace")
    if len(data) <= limit and len(text) <= limit:
        return data.decode()
    return "..." + data[max(0, len(data) - limit + 3) :].decode("utf-8", "ignore")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _all(data: bytes, form: bytes) -> "Iterator[int]":
    at = data.find(form)
    while at >= 0:
        yield at
        at = data.find(form, at + 1)


def _merged(stretches: "list[tuple[int, int, bool]]") -> "list[tuple[int, int, bool]]":
    """Sorts the stretches and joins those that overlap or touch. A joined stretch is a bare JSON value if one of its
    parts is."""
    apart: "list[tuple[int, int, bool]]" = []
    for start, end, bare in sorted(stretches):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(apart[-1][1], end), apart[-1][2] or bare
        else:
            apart.append((start, end, bare))
    return apart


def _forms(secret: str) -> "Iterator[tuple[bytes, int, bool]]":
    """Returns the forms in which a secret is searched for: unchanged, form-encoded, in upper and lower case, in
    hexadecimal and in base64."""
    data, size = _bytes(secret), len(secret)
    named = all(char.isalpha() or char in "-_. " for char in secret)
    yield data, size, named
    yield data.replace(b" ", b"+"), size, named
    if len(data) < _RECODED_AT_LEAST:
        return
    from binascii import b2a_base64

    for cased in (map(str.upper, secret), map(str.lower, secret)):
        # As in Go, each character maps to exactly one character.
        text = "".join(new if len(new) == 1 else old for old, new in zip(secret, cased, strict=True))
        yield _bytes(text), size, named
    yield data.hex().encode(), _RECODED_SIZE, False
    yield data.hex().upper().encode(), _RECODED_SIZE, False
    for shift in range(3):
        padded = bytes(shift) + data
        # The part that appears in the base64 of any text that contains the secret.
        inner = b2a_base64(padded, newline=False)[(shift * 8 + 5) // 6 : len(padded) * 8 // 6]
        yield inner, _RECODED_SIZE, False
        yield inner.replace(b"+", b"-").replace(b"/", b"_"), _RECODED_SIZE, False


def _views(data: bytes) -> "Iterator[tuple[bytes, Sequence[int]]]":
    """Returns a text and its decodings: percent-decoded and with the escapes of quoted strings resolved, in any
    order.

    Each comes with a list of positions in the text: that of each byte, and that of the end.
    """
    views: "list[tuple[bytes, Sequence[int], int]]" = [(data, range(len(data) + 1), 0)]
    seen = {data}
    for view, at, layers in views:  # the loop appends to views
        yield view, at
        for mark in (b"%", b"\\") if layers < _DECODINGS else ():
            if mark in view:
                text, places = _decoded(view, at, mark)
                if text not in seen:
                    seen.add(text)
                    views.append((text, places, layers + 1))


def _decoded(view: bytes, at: "Sequence[int]", mark: bytes) -> "tuple[bytes, list[int]]":
    """Decodes one layer of the escapes that begin with the mark. Everything else stays as it is."""
    out: "list[bytes]" = []
    places: "list[int]" = []
    begin = 0
    while (found := view.find(mark, begin)) >= 0:
        plain, size = _escape(view, found)
        out += [view[begin:found], plain if size else mark]
        places += at[begin:found]
        places += [at[found]] * len(out[-1])
        begin = found + (size or 1)
    out.append(view[begin:])
    return b"".join(out), [*places, *at[begin:]]


def _escape(data: bytes, at: int) -> "tuple[bytes, int]":
    """Decodes the escape at a position, in a URL, in JSON or in Python. Returns the bytes and the length; the length
    is 0 if there is no escape."""
    if data[at] == 0x25:
        code = _hexadecimal(data, at + 1, 2)
        return (b"", 0) if code is None else (bytes([code]), 3)
    kind = data[at + 1 : at + 2]
    if kind and (known := b"ntrbf\"'\\/".find(kind)) >= 0:
        return b"\n\t\r\b\f\"'\\/"[known : known + 1], 2
    digits = {b"x": 2, b"u": 4, b"U": 8}.get(kind, 0)
    code = _hexadecimal(data, at + 2, digits)
    if code is None or code > 0x10FFFF:
        return b"", 0
    size = 2 + digits
    if digits == 2:
        return bytes([code]), size
    if 0xD800 <= code < 0xDC00 and data[at + size : at + size + 2] == b"\\u":
        low = _hexadecimal(data, at + size + 2, 4)
        if low is not None and 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((code - 0xD800) << 10) + low - 0xDC00).encode(), size + 6
    return _bytes(chr(code)), size


def _hexadecimal(data: bytes, start: int, count: int) -> "int | None":
    digits = data[start : start + count]
    if not count or len(digits) < count or digits.strip(b"0123456789abcdefABCDEF"):
        return None
    return int(digits, 16)


# A part of a text that may contain a value by chance: start, end, size, named. A value in it is not treated as a secret
# if it has fewer characters than size and, if named is true, reads like a name.
_Zone = tuple[int, int, int, bool]

_zone_patterns: "list[tuple[Pattern[bytes], int, bool]]" = []


def _patterns() -> "list[tuple[Pattern[bytes], int, bool]]":
    """Returns the patterns of zones; the first group of a match is a zone. telemetry/structure.go explains them."""
    if not _zone_patterns:
        import re

        _zone_patterns.extend(
            (re.compile(pattern), least, named)
            for pattern, least, named in (
                (rb"(\[REDACTED\])", _UNTOUCHABLE, False),
                (
                    rb"\b([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|"
                    rb"[0-9A-Fa-f]{2}-[0-9A-Fa-f]{32}-[0-9A-Fa-f]{16}-[0-9A-Fa-f]{2}|[0-9A-Fa-f]{32})\b",
                    _IDENTIFYING,
                    False,
                ),
                (rb'(File "script\.py")', _UNTOUCHABLE, False),
                (rb'File ("/[^"\n]*")', _IDENTIFYING, False),
                (
                    rb"((?:\bline |script\.py:)[0-9]{1,7}\b(?:,? column [0-9]{1,7}\b)?(?: \(char [0-9]{1,9}\))?)",
                    _UNTOUCHABLE,
                    False,
                ),
                (rb"([A-Za-z][A-Za-z0-9+.-]{0,31}://)", _IDENTIFYING, True),
                (rb"""[?&]([^=&?# \t\r\n"'<>]+)=""", _IDENTIFYING, True),
            )
        )
    return _zone_patterns


class _Structure:
    """The structure of a text, parsed when the first secret has been found in it."""

    def __init__(self, data: bytes, known: "Sequence[_Zone]") -> None:
        self.data = data
        self._kinds: "list[Sequence[_Zone]]" = [known]  # the zones of each kind, sorted and disjoint
        self._strings: "list[tuple[int, int]]" = []  # JSON strings, sorted and disjoint, with their quotes
        self._scanned = self._is_json = False

    def _scan(self) -> None:
        if self._scanned:
            return
        import re

        self._scanned, data = True, self.data
        for pattern, least, named in _patterns():
            self._kinds.append([(*match.span(1), least, named) for match in pattern.finditer(data)])
        depth, keys = 0, []
        begin = re.search(rb"[{[](?!REDACTED\])", data)
        tokens = re.compile(rb'(?s:[{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z))')
        self._is_json = begin is not None and not data[: begin.start()].strip(_BLANKS)
        for match in tokens.finditer(data, begin.start()) if begin else ():
            start, end = match.span()
            if data[start] == 0x22:
                self._strings.append((start, end))
                if depth > 0 and self._before(start) in (b"{", b",") and self._after(end) == b":":
                    keys.append((start, end, _IDENTIFYING, True))
            else:
                depth += 1 if data[start] == 0x7B else -1
        self._kinds = [zones for zones in (*self._kinds, keys) if zones]

    def _before(self, at: int) -> bytes:
        """Returns the last byte before a position that is not blank."""
        while at > 0 and self.data[at - 1] in _BLANKS:
            at -= 1
        return self.data[at - 1 : at] if at > 0 else b""

    def _after(self, at: int) -> bytes:
        """Returns the first byte from a position on that is not blank."""
        while at < len(self.data) and self.data[at] in _BLANKS:
            at += 1
        return self.data[at : at + 1]

    def is_secret(self, start: int, end: int, size: int, named: bool) -> bool:
        """Returns whether the text at a position is a secret, and not a part of an identifier, a name or a word."""
        if size < _WHOLE_WORD_BELOW and not self._is_whole_word(start, end):
            return False
        self._scan()
        for zones in self._kinds:
            zone = _last_at_or_before(zones, start)
            if zone and end <= zone[1] and size < zone[2] and (named or not zone[3]):
                return False
        return True

    def _is_whole_word(self, start: int, end: int) -> bool:
        """Returns whether a value is a whole word: not part of a longer word, number, name, address or path."""
        data = self.data
        if (start and data[start - 1] in _WORD) or (end < len(data) and data[end] in _WORD):
            return False
        if not any(map(_is_word, data[start:end].decode("utf-8", "replace"))):
            return False
        # 16 bytes hold one character and a mark. A character that is cut at the far end is not inspected.
        left = data[max(0, start - 16) : start].decode("utf-8", "replace")
        right = data[end : end + 16].decode("utf-8", "replace")
        if left[-1:] in ("/", "\\", "%", "-") or right[:1] == "/" or _ends_in_word(left) or _starts_with_word(right):
            return False
        if left[-1:] in _JOINTS and _ends_in_word(left[:-1]):
            return False
        rest = data[start : start + 4], data[end + 1 : end + 5]
        if (left[-1:] == "," and _thousands(rest[0])) or (right[:1] == "," and _thousands(rest[1])):
            return False
        return right[:1] not in _JOINTS or not _starts_with_word(right[1:])

    def widened(self, start: int, end: int) -> "tuple[int, int, bool]":
        """Widens a stretch so that it does not split an escape."""
        return self._escape_around(start)[0], self._escape_around(end)[1], False

    def _escape_around(self, place: int) -> "tuple[int, int]":
        """Returns the start and end of the escape that contains a position, or the position twice."""
        data = self.data
        for start in range(max(0, place - _LONGEST_ESCAPE + 1), place):
            if data[start] == 0x5C:
                run = start
                while run > 0 and data[run - 1] == 0x5C:
                    run -= 1
                if (start - run) % 2:
                    continue  # the backslash is itself escaped
            elif data[start] != 0x25:
                continue
            _, size = _escape(data, start)
            if start + size > place:
                return start, start + size
        return place, place

    def in_json(self, secrets: "list[tuple[int, int]]") -> "list[tuple[int, int, bytes]]":
        """Keeps JSON valid: if a bare value contains a secret, a string replaces the whole value."""
        data = self.data
        whole: "list[tuple[int, int, bool]]" = []
        for start, end in secrets:
            text = _last_at_or_before(self._strings, start)
            bare = False
            if not (text and text[0] < start and end <= text[1]):
                first, last = start, end
                while first > 0 and data[first - 1] in _BARE:
                    first -= 1
                while last < len(data) and data[last] in _BARE:
                    last += 1
                before, after = self._before(first), self._after(last)
                in_list = self._is_json and before in (b":", b",", b"[")
                in_object = before == b":" and self._before(data.rindex(b":", 0, first)) == b'"'
                bare = (in_list or in_object) and (after in (b",", b"]", b"}") or (self._is_json and not after))
                if bare:
                    start, end = first, last
            whole.append((start, end, bare))
        mark = MARK.encode()
        return [(start, end, b'"%b"' % mark if bare else mark) for start, end, bare in _merged(whole)]


def _last_at_or_before(stretches: "Sequence[Any]", start: int) -> "Any":
    """Returns the last of the sorted, disjoint stretches that begins at or before a position, or None."""
    from bisect import bisect_right

    at = bisect_right(stretches, start, key=_start)
    return stretches[at - 1] if at else None


def _ends_in_word(text: str) -> bool:
    """Returns whether the text ends in a word. A mark counts, because it may have replaced a word."""
    return _is_word(text[-1:]) or text.endswith(MARK)


def _starts_with_word(text: str) -> bool:
    return _is_word(text[:1]) or text.startswith(MARK)


def _thousands(data: bytes) -> bool:
    """Returns whether a text begins with a group of thousands. Before any other text, a comma separates values."""
    return len(data) >= 3 and data[:3].isdigit() and not data[3:4].isdigit()


def _start(stretch: "tuple[int, ...]") -> int:
    return stretch[0]


def _is_word(char: str) -> bool:
    """Returns whether a character belongs to a word or number. Outside ASCII, all but punctuation does."""
    if char < "\x80":
        return char.isalnum() or char == "_"
    return char >= "\xc0" and not "\u2000" <= char <= "\u206f" and not "\u3000" <= char <= "\u303f" and char != "\ufffd"
