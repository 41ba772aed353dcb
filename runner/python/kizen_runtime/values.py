"""Converts values between their wire form, `{"t": code, "v": value}`, and Python. One table serves both directions."""

import sys

from . import grammar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class TooManyElements(ValueError):
    """The lists of a value have too many elements together."""


class Room:
    """How many more elements and levels the lists of one value may have."""

    def __init__(self, elements: int = grammar.MAX_ELEMENTS) -> None:
        self.elements = elements
        self.depth = 0


def decode(typed: "dict[str, Any]") -> "Any":
    """Returns the Python value of `{"t", "v"}`, in which JSON numbers are text. Raises ValueError if the value does not
    match its type."""
    return decode_as(typed["t"], typed["v"])


def decode_as(code: str, value: "Any") -> "Any":
    """Returns the Python value of a wire value of the type `code`."""
    return None if value is None else _converter(code).decode(code, value)


def encode(code: str, value: "Any", room: "Room | None" = None) -> "dict[str, Any]":
    """Returns the wire form of a value declared as `code`. If the value does not fit, raises TypeError or ValueError
    with a message for people."""
    return {"t": code, "v": encode_as(code, value, room or Room())}


def encode_as(code: str, value: "Any", room: Room) -> "Any":
    """Returns the wire value of a Python value of the type `code`."""
    return None if value is None else _converter(code).encode(code, _plain(value), room)


def changes(code: str) -> bool:
    """Returns whether values of the type `code` are mutable."""
    return code in ("l", "f") or code.startswith("a[")


class _Converter:
    """One row of the table."""

    def __init__(self, decode: "Callable[[str, Any], Any]", encode: "Callable[[str, Any, Room], Any]") -> None:
        self.decode = decode
        self.encode = encode


def _converter(code: str) -> _Converter:
    if code in _TABLE:
        return _TABLE[code]
    for start, end, converter in _PARAMETERISED:
        if code.startswith(start) and code.endswith(end):
            return converter
    raise ValueError(f"unknown type {code!r}")


def _refuse(wanted: str, value: "Any", hint: str = "") -> TypeError:
    return TypeError(f"expected {wanted}, got {_shown(value)}{hint and '; ' + hint}")


def _shown(value: "Any") -> str:
    """Returns a refused value for an error message: in full or not at all, because redaction would not recognise half a
    secret."""
    name = type(value).__name__
    if isinstance(value, (str, bytes, bytearray)) and len(value) > 100:
        return f"{name} of {len(value)} {'characters' if isinstance(value, str) else 'bytes'}"
    if isinstance(value, (list, tuple, dict, set, frozenset)) or (isinstance(value, int) and value.bit_length() > 256):
        return name
    try:
        shown = repr(value)
    except Exception:  # raised by a class of the step
        return name
    return f"{name} {shown}" if len(shown) <= 100 else name


def _plain(value: "Any") -> "Any":
    """Returns the Python value of a NumPy scalar, and the text of an enumeration member."""
    if isinstance(value, str):
        return str.__str__(value)  # str() would name the member of an enumeration
    if type(value).__module__ != "numpy" or getattr(value, "ndim", None) != 0:
        return value
    if type(value).__name__ == "datetime64":
        return _moment(value)
    item = value.item()
    return item if type(item).__module__ != "numpy" else value


def _moment(value: "Any") -> "Any":
    """Returns the date or datetime of a numpy.datetime64, truncated to microseconds, as a text would be."""
    item = value.item()
    if isinstance(item, int):  # finer than a microsecond, or beyond Python's years
        item = value.astype("datetime64[us]").item()
    if item is None or isinstance(item, int):
        raise _refuse("a date of the years 1 to 9999", value)
    return item


def _read(value: "Any", wanted: str, grammar: "Callable[[str], Any]") -> "Any":
    """Reads a text by its grammar; the error quotes the text."""
    if not isinstance(value, str):
        raise _refuse(wanted, value)
    try:
        return grammar(value)
    except ValueError as error:
        raise ValueError(f"{error}, got {_shown(value)}") from None


def _decode_text(code: str, value: "Any") -> str:
    return str(value)


def _encode_text(code: str, value: "Any", room: Room) -> str:
    if _is("uuid", "UUID", value):
        return str(value)
    if not isinstance(value, str):
        hint = "use .decode()" if isinstance(value, (bytes, bytearray)) else "use str() to turn it into text"
        raise _refuse("text", value, hint)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text has half of a surrogate pair at character {error.start}") from None
    return value


def _decode_phone(code: str, value: "Any") -> str:
    return str(_read(value, "a phone number", grammar.phone))


def _encode_phone(code: str, value: "Any", room: Room) -> str:
    return _decode_phone(code, value)


def _decode_number(code: str, value: "Any") -> "int | float":
    literal = _number_text(value)
    if "." in literal or "e" in literal:
        return float(literal)
    whole: int = _unlimited(int, literal)
    return whole


def _encode_number(code: str, value: "Any", room: Room) -> str:
    return _number_text(value)


def _number_text(value: "Any") -> str:
    if isinstance(value, str):
        return str(_read(value, "a number", grammar.number))
    if isinstance(value, bool):
        raise _refuse("a number", value)
    if isinstance(value, float):
        if value - value != 0:
            raise _refuse("a finite number", value)
        return float.__repr__(value)
    if _is("decimal", "Decimal", value):
        return _decimal_text(value)
    if not isinstance(value, int):
        value = _index(value)
    if int.bit_length(value) > _MAX_BITS:
        raise ValueError(f"a number has at most {grammar.MAX_DIGITS} digits")
    digits: str = _unlimited(int.__repr__, value)
    return grammar.number(digits) if len(digits) >= grammar.MAX_DIGITS else digits


_MAX_BITS = 14285  # every number of MAX_DIGITS digits has at most this many bits


def _index(value: "Any") -> int:
    """Returns the whole number that an object of another class represents."""
    kind = type(value)
    if not hasattr(kind, "__index__") or hasattr(kind, "tolist"):
        hint = "take one of its elements, or declare a list and use .tolist()"
        raise _refuse("a number", value, hint * hasattr(kind, "tolist"))
    try:
        return int(kind.__index__(value))
    except (Exception, SystemExit) as error:
        raise _refuse("a number", value, f"its __index__ raised {_describe(error)}") from None


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an exception that cannot be formatted
        return type(error).__name__


def _decimal_text(value: "Any") -> str:
    if not value.is_finite():
        raise _refuse("a finite number", value)
    if value and abs(value.adjusted()) > grammar.MAX_DIGITS:
        raise ValueError(f"a number has at most {grammar.MAX_DIGITS} digits")
    return str(_read(format(value if value else value * 0, "f"), "a number", grammar.number))


def _unlimited(convert: "Callable[[Any], Any]", value: "Any") -> "Any":
    """Converts between int and text even if the step has lowered Python's limit on digits."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return convert(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _decode_boolean(code: str, value: "Any") -> bool:
    return value if isinstance(value, bool) else bool(_read(value, "true or false", grammar.boolean))


def _encode_boolean(code: str, value: "Any", room: Room) -> bool:
    return _decode_boolean(code, value)


def _decode_date(code: str, value: "Any") -> "Any":
    from datetime import date

    return date.fromisoformat(_read(value, "a date as YYYY-MM-DD", grammar.date))


def _encode_date(code: str, value: "Any", room: Room) -> str:
    if not isinstance(value, str):
        if _is("datetime", "datetime", value) or not _is("datetime", "date", value):
            raise _refuse("a date", value, "use .date()" if hasattr(value, "date") else "")
        value = value.isoformat()
    return str(_read(value, "a date", grammar.date))


def _decode_datetime(code: str, value: "Any") -> "Any":
    from datetime import datetime

    return datetime.fromisoformat(_read(value, "a datetime", grammar.datetime))


def _encode_datetime(code: str, value: "Any", room: Room) -> str:
    if not isinstance(value, str):
        if not _is("datetime", "datetime", value):
            raise _refuse("a datetime", value)
        offset = value.utcoffset()
        if offset is not None and offset.total_seconds() % 60:
            raise _refuse("a datetime with an offset of whole minutes", value)
        value = value.isoformat()
    return str(_read(value, "a datetime", grammar.datetime))


def _decode_uuid(code: str, value: "Any") -> "Any":
    from uuid import UUID

    return UUID(_read(value, "a UUID", grammar.uuid))


def _encode_uuid(code: str, value: "Any", room: Room) -> str:
    return str(_read(str(value) if _is("uuid", "UUID", value) else value, "a UUID", grammar.uuid))


def _decode_file(code: str, value: "Any") -> "Any":
    from .datatypes import KizenFile

    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        raise _refuse("a file with its url", value)
    size = value.get("size")
    fields = {field: value.get(field) for field in ("name", "content_type", "id")}
    return KizenFile(url=value["url"], size=None if size is None else _decode_number("n", size), **fields)


def _encode_file(code: str, value: "Any", room: Room) -> "dict[str, Any]":
    if not _is("kizen_runtime.datatypes", "KizenFile", value):
        raise _refuse("a KizenFile", value)
    fields = _encode_fields({field: getattr(value, field) for field in ("id", "url", "name", "size", "content_type")})
    if not fields.get("url"):
        raise ValueError("url: a file needs its presigned URL")
    return fields


def _decode_option(code: str, value: "Any") -> "Any":
    from .datatypes import FieldOption, Stage

    if isinstance(value, str):
        return FieldOption(_decode_uuid(code, value), code)
    if not isinstance(value, dict) or "id" not in value:
        raise _refuse("an option", value)
    kind = Stage if "status" in value else FieldOption
    fields = {field: value.get(field) for field in kind._fields}
    for field in ("order", "percentage_chance_to_close"):
        if fields.get(field) is not None:
            fields[field] = _decode_number("n", fields[field])
    return kind(_decode_uuid(code, value["id"]), code, **fields)


def _encode_option(code: str, value: "Any", room: Room) -> "dict[str, Any]":
    fields = {"id": _encode_uuid(code, value, room)}
    if _is("kizen_runtime.datatypes", "FieldOption", value):
        fields.update(_encode_fields(value.as_dict()))
        if fields.get("status", "open") not in ("open", "won", "lost"):
            raise ValueError(f"status: expected open, won or lost, got {_shown(fields['status'])}")
    return fields


_NUMBERS = ("size", "order", "percentage_chance_to_close")


def _encode_fields(fields: "dict[str, Any]") -> "dict[str, Any]":
    """Returns the fields of a file or an option that have a value."""
    encoded = {}
    for field, item in fields.items():
        if item is not None:
            try:
                item = _plain(item)
                encoded[field] = _decode_number("n", item) if field in _NUMBERS else _encode_text("s", item, Room())
            except (TypeError, ValueError) as error:
                raise _at(field, error) from None
    return encoded


def _decode_list(code: str, value: "Any") -> "list[Any]":
    return [decode(item) for item in value]


def _encode_list(code: str, value: "Any", room: Room) -> "list[Any]":
    return _each(value, room, _encode_inferred)


def _encode_inferred(item: "Any", room: Room) -> "dict[str, Any]":
    item = _plain(item)
    return encode(_infer(item), item, room)


def _decode_array(code: str, value: "Any") -> "list[Any]":
    return [decode_as(code[2:-1], item) for item in value]


def _encode_array(code: str, value: "Any", room: Room) -> "list[Any]":
    element = code[2:-1]
    return _each(value, room, lambda item, room: encode_as(element, item, room))


def _each(value: "Any", room: Room, convert: "Callable[[Any, Room], Any]") -> "list[Any]":
    if not isinstance(value, (list, tuple)):
        raise _refuse("a list", value, "use .tolist()" if hasattr(value, "tolist") else "")
    if room.depth >= grammar.MAX_NESTING:
        raise ValueError(f"lists nest deeper than {grammar.MAX_NESTING}")
    room.elements -= len(value)
    if room.elements < 0:
        raise TooManyElements(f"lists have at most {grammar.MAX_ELEMENTS} elements together")
    room.depth += 1
    converted = []
    for index, item in enumerate(value):
        try:
            converted.append(convert(item, room))
        except TooManyElements:
            raise
        except (TypeError, ValueError) as error:
            raise _at(f"element {index}", error) from None
    room.depth -= 1
    return converted


def _at(place: str, error: Exception) -> Exception:
    """Returns an error whose message begins with the place of the element. It does not keep the class of the original,
    which may need other arguments."""
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{place}: {error}")


def _infer(value: "Any") -> str:
    """Returns the code of an element of an untyped list."""
    if value is None:
        return "s"
    if _is("kizen_runtime.datatypes", "FieldOption", value) and value.type_code is not None:
        return _option_code(value.type_code)
    for kinds, code in _BUILT_IN:
        if isinstance(value, kinds):
            return code
    for module, name, code in _CLASSES:
        if _is(module, name, value):
            return code
    raise _refuse("a value that has a Kizen type", value)


def _option_code(code: "Any") -> str:
    """Returns the code of an option in the sidecar's form. The step may have set the code itself."""
    parts = code[2:-1].split(",") if isinstance(code, str) and code[:2] == "o<" and code[-1:] == ">" else ()
    plain = [part.replace("_", "a").replace("-", "a") for part in parts]
    if len(plain) != 2 or not all(part.isascii() and part.isalnum() for part in plain):
        raise ValueError(f"type_code: expected o<object_id,field_id>, got {_shown(code)}")
    return str.__str__(code)


def _is(module: str, name: str, value: "Any") -> bool:
    """Is isinstance for a class whose module may not have been imported; without the module, it returns False."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


_BUILT_IN: "tuple[tuple[tuple[type, ...], str], ...]" = (
    ((str,), "s"),
    ((bool,), "b"),  # before int, because bool is a subclass of it
    ((int, float), "n"),
    ((list, tuple), "l"),
)

_CLASSES = (
    ("datetime", "datetime", "dt"),
    ("datetime", "date", "d"),
    ("uuid", "UUID", "u"),
    ("kizen_runtime.datatypes", "KizenFile", "f"),
    ("decimal", "Decimal", "n"),
)

_TEXT = _Converter(_decode_text, _encode_text)
_UUID = _Converter(_decode_uuid, _encode_uuid)

_TABLE = {
    "s": _TEXT,
    "em": _TEXT,
    "p": _Converter(_decode_phone, _encode_phone),
    "n": _Converter(_decode_number, _encode_number),
    "b": _Converter(_decode_boolean, _encode_boolean),
    "d": _Converter(_decode_date, _encode_date),
    "dt": _Converter(_decode_datetime, _encode_datetime),
    "u": _UUID,
    "e": _UUID,
    "f": _Converter(_decode_file, _encode_file),
    "l": _Converter(_decode_list, _encode_list),
}

_PARAMETERISED = (
    ("e<", ">", _UUID),
    ("o<", ">", _Converter(_decode_option, _encode_option)),
    ("a[", "]", _Converter(_decode_array, _encode_array)),
)
