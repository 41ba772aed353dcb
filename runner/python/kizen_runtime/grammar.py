"""The grammar of values that are sent as text. Each type has one function, which returns the normal form or raises
ValueError.

The sidecar implements the same grammar in runner/grammar.go; the table runner/testdata/values.json tests both. This
module does not use `re`, because importing it would slow a cold start more than all functions here.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

MAX_DIGITS = 4300  # the digits of a number: CPython's default limit for converting text
MAX_NESTING = 64  # lists in lists
MAX_ELEMENTS = 100_000  # the total over all lists of a value

_SPACE = " \t\r\n"  # ignored around every value except text
_HEX = frozenset("0123456789abcdef")


def number(text: str) -> str:
    """Reads a number in JSON's grammar; a plus sign, leading zeros and a missing digit before or after the point are
    allowed too."""
    body = text.strip(_SPACE)
    sign = "-" if body[:1] == "-" else ""
    mantissa, mark, exponent = body[body[:1] in ("+", "-") :].replace("E", "e").partition("e")
    whole, point, fraction = mantissa.partition(".")
    power = exponent[exponent[:1] in ("+", "-") :]
    if not (_digits(whole + fraction) and (not mark or _digits(power))):
        raise ValueError("expected a number")
    if len(whole) + len(fraction) + len(power) > MAX_DIGITS:
        raise ValueError(f"a number has at most {MAX_DIGITS} digits")
    normal = sign + (whole.lstrip("0") or "0") + (point and "." + (fraction or "0")) + mark + exponent
    if (point or mark) and float(normal) in (float("inf"), float("-inf")):
        raise ValueError("a number with a fraction or an exponent is at most 1.8e308")
    return normal


def boolean(text: str) -> bool:
    """Reads true or false, in any case."""
    word = text.strip(_SPACE).lower()
    if word not in ("true", "false"):
        raise ValueError("expected true or false")
    return word == "true"


def date(text: str) -> str:
    """Reads YYYY-MM-DD."""
    day = text.strip(_SPACE)
    _check_date(day, "expected a date as YYYY-MM-DD")
    return day


def datetime(text: str) -> str:
    """Reads ISO 8601 with T or a space; seconds and an offset of whole minutes are optional. Truncates to
    microseconds."""
    wanted = "expected a datetime in ISO 8601, like 2026-01-01T12:00:00Z"
    body = text.strip(_SPACE)
    _check_date(body[:10], wanted)
    if body[10:11] not in ("T", "t", " "):
        raise ValueError(wanted)
    clock, offset = _split_offset(body[11:], wanted)
    whole, point, fraction = clock.replace(",", ".").partition(".")
    parts = whole.split(":")
    if point and (len(parts) != 3 or not _digits(fraction)):
        raise ValueError(wanted)
    if len(parts) == 2:
        parts.append("00")
    if len(parts) != 3 or not all(_below(part, most) for part, most in zip(parts, (24, 60, 60))):
        raise ValueError(wanted)
    return f"{body[:10]}T{':'.join(parts)}{point}{fraction[:6]}{offset}"


def phone(text: str) -> str:
    """Reads a phone number in E.164."""
    body = text.strip(_SPACE)
    if not (body[:1] == "+" and _digits(body[1:]) and body[1] != "0" and 3 <= len(body) <= 16):
        raise ValueError("expected a phone number in E.164, like +13125550142")
    return body


def uuid(text: str) -> str:
    """Reads a UUID in any case, with all dashes or none."""
    body = text.strip(_SPACE).lower()
    if len(body) == 32:
        body = f"{body[:8]}-{body[8:12]}-{body[12:16]}-{body[16:20]}-{body[20:]}"
    if [len(part) for part in body.split("-")] != [8, 4, 4, 4, 12] or not _HEX.issuperset(body.replace("-", "")):
        raise ValueError("expected a UUID")
    return body


def _digits(text: str) -> bool:
    """Returns whether a text consists of ASCII digits; str.isdigit() also accepts the digits of other scripts."""
    return text.isascii() and text.isdigit()


def _below(text: str, most: int) -> bool:
    return len(text) == 2 and _digits(text) and int(text) < most


def _check_date(day: str, wanted: str) -> None:
    if not (len(day) == 10 and day[4] == day[7] == "-" and _digits(day[:4] + day[5:7] + day[8:])):
        raise ValueError(wanted)
    year, month, number = int(day[:4]), int(day[5:7]), int(day[8:])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    length = 0 if not 1 <= month <= 12 else 28 + leap if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    if year == 0 or not 1 <= number <= length:
        raise ValueError(wanted)


def _split_offset(clock: str, wanted: str) -> "tuple[str, str]":
    """Returns the time of day, and its offset as +HH:MM or an empty text."""
    if clock[-1:] in ("Z", "z"):
        return clock[:-1], "+00:00"
    at = max(clock.rfind("+"), clock.rfind("-"))
    if at < 0:
        return clock, ""
    offset = clock[at + 1 :]
    if offset[2:3] == ":":
        offset = offset[:2] + offset[3:] if len(offset) == 5 else _refuse(wanted)
    hours, minutes = offset[:2], offset[2:] or "00"
    if not (_below(hours, 24) and _below(minutes, 60)):
        raise ValueError(wanted)
    sign = "+" if hours == minutes == "00" else clock[at]
    return clock[:at], f"{sign}{hours}:{minutes}"


def _refuse(wanted: str) -> "NoReturn":
    raise ValueError(wanted)
