"""Values between the wire, `{"t": code, "v": value}`, and Python: one table, both directions."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Text = Callable[[str], str]  # what a text passes through on its way out


def decode(typed: "dict[str, Any]") -> "Any":
    """The Python value of `{"t", "v"}` (JSON numbers as their text). ValueError when the value is not of its type."""
    return decode_as(typed["t"], typed["v"])


def decode_as(code: str, value: "Any") -> "Any":
    """The Python value of a wire value of the type `code`."""
    return None if value is None else _converter(code).decode(code, value)


def encode(code: str, value: "Any", text: "Text" = str) -> "dict[str, Any]":
    """The wire form of a value declared as `code`; TypeError or ValueError, for people, when it has none.

    Texts (not numbers, dates or ids) pass through `text` on their way out.
    """
    return {"t": code, "v": encode_as(code, value, text)}


def encode_as(code: str, value: "Any", text: "Text" = str) -> "Any":
    """The wire value of a Python value of the type `code`."""
    return None if value is None else _converter(code).encode(code, _plain(value), text)


class _Converter:
    """One row of the table."""

    def __init__(self, decode: "Callable[[str, Any], Any]", encode: "Callable[[str, Any, Text], Any]") -> None:
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
    shown = repr(value)
    shown = shown if len(shown) <= 100 else shown[:100] + "..."
    return TypeError(f"expected {wanted}, got {type(value).__name__} {shown}{hint and '; ' + hint}")


def _plain(value: "Any") -> "Any":
    """A NumPy scalar as the Python value it holds."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _decode_text(code: str, value: "Any") -> str:
    return str(value)


def _encode_text(code: str, value: "Any", text: "Text") -> str:
    if isinstance(value, str):
        return text(str(value))
    if _is("uuid", "UUID", value):
        return str(value)
    raise _refuse("text", value, "use str() to turn it into text")


def _decode_number(code: str, value: "Any") -> "int | float":
    literal = str(value).strip()
    if literal.lstrip("+-").isdecimal() and literal.isascii():
        whole: int = _unlimited(int, literal)
        return whole
    number: float = _finite(float(literal), literal)
    return number


def _encode_number(code: str, value: "Any", text: "Text") -> str:
    if isinstance(value, str):
        _decode_number(code, value)
        return value.strip()
    if isinstance(value, bool):
        raise _refuse("a number", value)
    if isinstance(value, float):
        return float.__repr__(_finite(value, value))
    if isinstance(value, int):
        return _digits(value)
    if _is("decimal", "Decimal", value):
        return format(_finite(value, value), "f")
    if hasattr(value, "__index__"):
        return _digits(value.__index__())
    raise _refuse("a number", value)


def _finite(number: "Any", shown: "Any") -> "Any":
    if number - number != 0:  # infinite or not a number
        raise ValueError(f"{shown} is not a finite number")
    return number


def _digits(number: int) -> str:
    digits: str = _unlimited(int.__repr__, number)
    return digits


def _unlimited(convert: "Callable[[Any], Any]", value: "Any") -> "Any":
    """Converts between int and text without Python's limit of 4300 digits."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return convert(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _decode_boolean(code: str, value: "Any") -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise _refuse('true, false, "true" or "false"', value)


def _encode_boolean(code: str, value: "Any", text: "Text") -> bool:
    return _decode_boolean(code, value)


def _decode_date(code: str, value: "Any") -> "Any":
    from datetime import date

    if not (isinstance(value, str) and len(value) == 10 and value[4] == value[7] == "-"):
        raise _refuse("a date as YYYY-MM-DD", value)
    return date.fromisoformat(value)


def _encode_date(code: str, value: "Any", text: "Text") -> str:
    if isinstance(value, str):
        return str(_decode_date(code, value).isoformat())
    if _is("datetime", "datetime", value) or not _is("datetime", "date", value):
        raise _refuse("a date", value, "use .date()" if hasattr(value, "date") else "")
    return str(value.isoformat())


def _decode_datetime(code: str, value: "Any") -> "Any":
    from datetime import datetime

    return datetime.fromisoformat(value)


def _encode_datetime(code: str, value: "Any", text: "Text") -> str:
    if isinstance(value, str):
        value = _decode_datetime(code, value)
    if not _is("datetime", "datetime", value):
        raise _refuse("a datetime", value)
    return str(value.isoformat())


def _decode_uuid(code: str, value: "Any") -> "Any":
    from uuid import UUID

    return UUID(value)


def _encode_uuid(code: str, value: "Any", text: "Text") -> str:
    if isinstance(value, str) or _is("uuid", "UUID", value):
        return str(_decode_uuid(code, str(value)))
    raise _refuse("a UUID", value)


def _decode_file(code: str, value: "Any") -> "Any":
    from .datatypes import KizenFile

    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        raise _refuse("a file with its url", value)
    size = value.get("size")
    fields = {field: value.get(field) for field in ("name", "content_type", "id")}
    return KizenFile(url=value["url"], size=None if size is None else _decode_number("n", size), **fields)


def _encode_file(code: str, value: "Any", text: "Text") -> "dict[str, Any]":
    if not _is("kizen_runtime.datatypes", "KizenFile", value):
        raise _refuse("a KizenFile", value)
    return _encode_fields({field: getattr(value, field) for field in ("id", "url", "name", "size", "content_type")}, text)


def _decode_option(code: str, value: "Any") -> "Any":
    from .datatypes import FieldOption, Stage

    if isinstance(value, str):
        return FieldOption(value, code)
    if not isinstance(value, dict) or "id" not in value:
        raise _refuse("an option", value)
    kind = Stage if "status" in value else FieldOption
    fields = {field: value.get(field) for field in kind._fields}
    for field in ("order", "percentage_chance_to_close"):
        if fields.get(field) is not None:
            fields[field] = _decode_number("n", fields[field])
    return kind(value["id"], code, **fields)


def _encode_option(code: str, value: "Any", text: "Text") -> "str | dict[str, Any]":
    if not _is("kizen_runtime.datatypes", "FieldOption", value):
        return _encode_uuid(code, value, text)
    return {"id": str(value), **_encode_fields(value.as_dict(), text)}


def _encode_fields(fields: "dict[str, Any]", text: "Text") -> "dict[str, Any]":
    """The fields of a file or an option that have a value."""
    encoded = {}
    for field, item in fields.items():
        if item is not None:
            try:
                encoded[field] = text(str(item)) if isinstance(item, str) else _json_number(item)
            except (TypeError, ValueError) as error:
                raise _at(field, error) from None
    return encoded


def _json_number(value: "Any") -> "int | float":
    """A number as JSON has it, of no other class than int or float."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse("text or a number", value)
    number: "int | float" = float.__float__(_finite(value, value)) if isinstance(value, float) else int.__int__(value)
    repr(number)  # raises for more digits than Python writes
    return number


def _decode_list(code: str, value: "Any") -> "list[Any]":
    return _each(value, decode)


def _encode_list(code: str, value: "Any", text: "Text") -> "list[Any]":
    return _each(value, lambda item: encode(_infer(_plain(item)), item, text))


def _decode_array(code: str, value: "Any") -> "list[Any]":
    return _each(value, lambda item: decode_as(code[2:-1], item))


def _encode_array(code: str, value: "Any", text: "Text") -> "list[Any]":
    return _each(value, lambda item: encode_as(code[2:-1], item, text))


def _each(value: "Any", convert: "Callable[[Any], Any]") -> "list[Any]":
    if not isinstance(value, (list, tuple)):
        raise _refuse("a list", value)
    converted = []
    for index, item in enumerate(value):
        try:
            converted.append(convert(item))
        except (TypeError, ValueError) as error:
            raise _at(f"element {index}", error) from None
    return converted


def _at(place: str, error: Exception) -> Exception:
    """The error with the place that it is about; its own class may take more than a message."""
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{place}: {error}")


def _infer(value: "Any") -> str:
    """The code of an element of an untyped list."""
    if value is None:
        return "s"
    code = getattr(value, "type_code", None)
    if isinstance(code, str):
        return code
    for kinds, code in _BUILT_IN:
        if isinstance(value, kinds):
            return code
    for module, name, code in _CLASSES:
        if _is(module, name, value):
            return code
    raise _refuse("a value that has a Kizen type", value)


def _is(module: str, name: str, value: "Any") -> bool:
    """isinstance for a class of a module that may not have been imported yet: then nothing is an instance of it."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


_BUILT_IN: "tuple[tuple[tuple[type, ...], str], ...]" = (
    ((str,), "s"),
    ((bool,), "b"),  # before int, which it is too
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
    "p": _TEXT,
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
