"""Tests the grammar with the table runner/testdata/values.json, which the sidecar's tests read too."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from kizen_runtime import values
from kizen_runtime.datatypes import FieldOption, KizenFile, Stage

try:
    import numpy as np
except ImportError:  # not available for this version of Python: the rows that need it are skipped
    np = None  # type: ignore[assignment]

TABLE = json.loads((Path(__file__).parents[2] / "testdata" / "values.json").read_text("utf-8"))


class PlainEnum(Enum):
    MEMBER = "a"


class Seven(IntEnum):
    MEMBER = 7


class Index:
    """An object that converts to a whole number through __index__, or raises."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __index__(self) -> int:
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value  # type: ignore[return-value]


def str_enum_member(text: str) -> object:
    return Enum("C", {"MEMBER": text}, type=str).MEMBER  # type: ignore[attr-defined]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NAMES = {
    "date": date, "datetime": datetime, "time": time, "timedelta": timedelta, "timezone": timezone, "Decimal": Decimal,
    "Fraction": Fraction, "UUID": UUID, "KizenFile": KizenFile, "FieldOption": FieldOption, "Stage": Stage, "np": np,
    "PlainEnum": PlainEnum, "IntEnumMember": Seven.MEMBER, "Index": Index, "StrEnumMember": str_enum_member, "nested": nested, "endless": endless,
}  # fmt: skip


def python(row: dict[str, Any]) -> Any:
    if np is None and "np." in row["python"]:
        pytest.skip("numpy is not installed for this Python")
    return eval(row["python"], dict(NAMES))


def name(row: dict[str, Any]) -> str:
    return f"{row['t'][:5]} {row.get('python', json.dumps(row.get('v')))[:60]}"


def scanned(value: Any) -> Any:
    """Decodes as a job frame does: JSON numbers arrive as their text."""
    from kizen_runtime import protocol

    return protocol.loads(protocol.dumps(value))


TEXTS = [row for row in TABLE["inputs"] if not row.get("input_only") and isinstance(row["v"], (str, bool))]
DECODED = [row for row in TABLE["inputs"] if "python" in row]
WRITTEN = [row for row in TABLE["outputs"] if not row.get("refused")]
REFUSED = [row for row in TABLE["outputs"] if row.get("refused")]


@pytest.mark.parametrize("row", TEXTS, ids=name)
def test_a_text_is_the_same_as_an_input_and_as_an_output(row: dict[str, Any]) -> None:
    if row.get("refused"):
        with pytest.raises((TypeError, ValueError)):
            values.encode(row["t"], row["v"])
    else:
        assert values.encode(row["t"], row["v"]) == {"t": row["t"], "v": row["normal"]}


@pytest.mark.parametrize("row", DECODED, ids=name)
def test_an_input_is_decoded(row: dict[str, Any]) -> None:
    expected = python(row)
    decoded = values.decode_as(row["t"], scanned(row["normal"]))
    assert decoded == expected and type(decoded) is type(expected)
    assert values.decode_as(row["t"], scanned(values.encode(row["t"], decoded)["v"])) == decoded


@pytest.mark.parametrize("row", WRITTEN, ids=name)
def test_an_output_is_written_and_can_be_read(row: dict[str, Any]) -> None:
    written = values.encode(row["t"], python(row))
    assert written == {"t": row["t"], "v": row["normal"]}
    again = values.decode(scanned(written))
    assert values.decode_as(row["t"], scanned(values.encode(row["t"], again)["v"])) == again


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_an_output_that_does_not_fit_is_refused_in_a_sentence(row: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="expected|at most|deeper|needs|surrogate"):
        values.encode(row["t"], python(row))
