"""Tests the table of types in both directions."""

from __future__ import annotations

import copy
import pickle
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import ModuleType
from uuid import UUID

import pytest
from kizen_runtime import globals as step_globals
from kizen_runtime import protocol, values
from kizen_runtime.datatypes import FieldOption, KizenFile, Stage

ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
OPTION = "o<c9bf9e57-1685-4c89-bafb-ff5af830be8a,11111111-1111-4111-8111-111111111111>"
DIGITS = "12345678901234567890123456789012345678901234567890"


def decode(code: str, json: str) -> object:
    """Decodes as a job frame does: JSON numbers arrive as their text."""
    return values.decode(protocol.loads(f'{{"t": "{code}", "v": {json}}}'))


@pytest.mark.parametrize(
    ("code", "json", "expected"),
    [
        ("s", '"a\\"\\n\\u00e9世"', 'a"\né世'),
        ("em", '"a@example.com"', "a@example.com"),
        ("p", '"+13125550142"', "+13125550142"),
        ("n", '"21"', 21),
        ("n", "21", 21),
        ("n", "-0", 0),
        ("n", '"21.0"', 21.0),
        ("n", "2.5", 2.5),
        ("n", "1e3", 1000.0),
        ("n", DIGITS, int(DIGITS)),
        ("n", f'"{DIGITS}"', int(DIGITS)),
        ("b", "true", True),
        ("b", '"false"', False),
        ("d", '"2024-02-29"', date(2024, 2, 29)),
        ("dt", '"2026-01-01 12:00:00Z"', datetime(2026, 1, 1, 12, tzinfo=timezone.utc)),
        ("dt", '"2026-01-01T12:00:00.5+05:30"', datetime(2026, 1, 1, 12, 0, 0, 500000, timezone(timedelta(minutes=330)))),
        ("dt", '"2026-01-01T12:00:00"', datetime(2026, 1, 1, 12)),
        ("u", f'"{ID.upper()}"', UUID(ID)),
        ("e", f'"{ID}"', UUID(ID)),
        ("e<c9bf9e57>", f'"{ID}"', UUID(ID)),
        ("l", '[{"t": "s", "v": "x"}, {"t": "n", "v": 3}, {"t": "l", "v": [{"t": "b", "v": true}]}]', ["x", 3, [True]]),
        ("a[u]", f'["{ID}", null]', [UUID(ID), None]),
        ("a[a[n]]", '[["1"], [2.5]]', [[1], [2.5]]),
    ],
)
def test_decodes(code: str, json: str, expected: object) -> None:
    decoded = decode(code, json)
    assert decoded == expected
    assert type(decoded) is type(expected)


def test_every_type_takes_null_both_ways() -> None:
    for code in ("s", "em", "p", "n", "b", "d", "dt", "u", "e", "e<x>", "f", "l", "a[n]", OPTION):
        assert decode(code, "null") is None
        assert values.encode(code, None) == {"t": code, "v": None}


@pytest.mark.parametrize(
    ("code", "json"),
    [
        ("n", '"abc"'),
        ("n", '""'),
        ("n", "NaN"),
        ("n", '"inf"'),
        ("n", "1e999"),
        ("b", '"yes"'),
        ("b", "1"),
        ("d", '"2024/02/29"'),
        ("d", '"20240229"'),
        ("d", '"2024-W09-4"'),
        ("d", '"2023-02-29"'),
        ("d", '"2024-02-29T00:00:00"'),
        ("dt", '"tomorrow"'),
        ("u", '"7d44"'),
        ("f", '"http://x"'),
        ("l", '"x"'),
        ("a[n]", '["1", "x"]'),
        (OPTION, "{}"),
        ("mail", '"x"'),
    ],
)
def test_refuses(code: str, json: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        decode(code, json)


@pytest.mark.parametrize(
    ("code", "value", "expected"),
    [
        ("s", "é\n", "é\n"),
        ("s", UUID(ID), ID),
        ("n", 42, "42"),
        ("n", 42.0, "42.0"),
        ("n", int(DIGITS), DIGITS),
        ("n", 0.1, "0.1"),
        ("n", Decimal("12.50"), "12.50"),
        ("n", Decimal("1E+2"), "100"),
        ("n", " 12.50", "12.50"),
        ("b", False, False),
        ("b", "true", True),
        ("d", date(2024, 2, 29), "2024-02-29"),
        ("d", "2024-02-29", "2024-02-29"),
        ("dt", datetime(2026, 1, 1, 12, tzinfo=timezone.utc), "2026-01-01T12:00:00+00:00"),
        ("dt", "2026-01-01 12:00:00Z", "2026-01-01T12:00:00+00:00"),
        ("u", ID.upper(), ID),
        ("e<x>", UUID(ID), ID),
        ("a[d]", (date(2024, 2, 29),), ["2024-02-29"]),
        ("l", ["x", 1, True, None, [date(2024, 2, 29)], UUID(ID)],
         [{"t": "s", "v": "x"}, {"t": "n", "v": "1"}, {"t": "b", "v": True}, {"t": "s", "v": None},
          {"t": "l", "v": [{"t": "d", "v": "2024-02-29"}]}, {"t": "u", "v": ID}]),
    ],
)  # fmt: skip
def test_encodes(code: str, value: object, expected: object) -> None:
    assert values.encode(code, value) == {"t": code, "v": expected}


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("s", 5),
        ("s", {"a": 1}),
        ("n", "abc"),
        ("n", True),
        ("n", float("nan")),
        ("n", float("inf")),
        ("n", Decimal("NaN")),
        ("n", object()),
        ("b", 1),
        ("d", datetime(2026, 1, 1)),
        ("d", "2026/01/01"),
        ("dt", date(2026, 1, 1)),
        ("u", "x"),
        ("u", 5),
        ("f", {"url": "x"}),
        ("l", "text"),
        ("l", [{"a": 1}]),
        ("a[n]", [1, "x"]),
        ("f", KizenFile("u", size=float("nan"))),
        ("f", KizenFile("u", size=True)),
        ("f", KizenFile("u", size=10**5000)),
        ("f", KizenFile("u", name=b"n")),  # type: ignore[arg-type]
        (OPTION, FieldOption(ID, order=float("inf"))),
        (OPTION, FieldOption(ID, order=object())),
    ],
)
def test_refuses_to_encode(code: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        values.encode(code, value)


def test_an_error_inside_a_list_names_the_element() -> None:
    with pytest.raises(ValueError, match="element 1: element 0"):
        values.encode("a[a[n]]", [[1], ["x"]])


def test_an_error_of_any_class_names_its_element() -> None:
    with pytest.raises(ValueError, match="element 1: the text has half of a surrogate pair at character 0"):
        values.encode("l", ["x", "\ud800"])
    with pytest.raises(TypeError, match="size: expected a number, got object"):
        values.encode("f", KizenFile("u", size=object()))  # type: ignore[arg-type]


def test_a_number_of_any_class_is_written_as_a_number() -> None:
    class Size(int):
        __repr__ = object.__repr__

    file = values.encode("f", KizenFile("u", size=Size(5)))
    assert type(file["v"]["size"]) is int and protocol.dumps(file) == '{"t":"f","v":{"url":"u","size":5}}'


def test_a_large_number_leaves_pythons_limit_of_digits_as_it_was() -> None:
    digits = "1" + "0" * 4299
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert values.encode("n", values.decode({"t": "n", "v": digits}))["v"] == digits
        assert sys.get_int_max_str_digits() == 640
    finally:
        sys.set_int_max_str_digits(before)


def test_numpy_scalars_are_written_as_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class float64(float):
        ndim = 0

        def item(self) -> float:
            return float(self)

    float64.__module__ = "numpy"
    monkeypatch.setitem(sys.modules, "numpy", ModuleType("numpy"))
    assert values.encode("n", float64(1.5)) == {"t": "n", "v": "1.5"}
    assert values.encode("l", [float64(1.5)]) == {"t": "l", "v": [{"t": "n", "v": "1.5"}]}


def test_a_file_survives_the_round_trip() -> None:
    wire = {"id": ID, "url": "https://files.example.com/a?sig=1", "name": "a.pdf", "size": 1024, "content_type": "application/pdf"}
    file = values.decode({"t": "f", "v": {**wire, "size": "1024"}})
    assert isinstance(file, KizenFile)
    assert (file.url, file.name, file.size, file.content_type) == (wire["url"], "a.pdf", 1024, "application/pdf")
    assert values.encode("f", file) == {"t": "f", "v": wire}
    assert values.encode("f", KizenFile("u", "n", 1, "t"))["v"] == {"url": "u", "name": "n", "size": 1, "content_type": "t"}


def test_an_option_is_its_uuid_and_has_fields() -> None:
    wire = {"id": ID, "name": "Gold", "order": "2", "code": "gold"}
    option = values.decode({"t": OPTION, "v": wire})
    assert type(option) is FieldOption
    assert (option.name, option.order, option.code) == ("Gold", 2, "gold")
    assert str(option) == ID and option == ID and option == ID.upper() and option == UUID(ID) and UUID(ID) == option
    assert option != "x" and hash(option) == hash(UUID(ID)) and {UUID(ID): 1}[option] == 1
    assert values.encode(OPTION, option) == {"t": OPTION, "v": {**wire, "order": 2}}
    assert values.encode("u", option) == {"t": "u", "v": ID}
    assert values.encode("l", [option])["v"][0]["t"] == OPTION
    assert values.encode(OPTION, ID)["v"] == {"id": ID}


def test_a_stage_is_an_option_with_a_status() -> None:
    wire = {"id": ID, "name": "Won", "order": "3", "status": "won", "percentage_chance_to_close": "99.5"}
    stage = values.decode({"t": OPTION, "v": wire})
    assert type(stage) is Stage
    assert (stage.name, stage.order, stage.status, stage.percentage_chance_to_close) == ("Won", 3, "won", 99.5)
    assert values.encode(OPTION, stage)["v"] == {**wire, "order": 3, "percentage_chance_to_close": 99.5}


def test_options_and_files_can_be_copied_and_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kizen", step_globals.Kizen("", ""))
    option = FieldOption(ID, OPTION, name="Gold", order=1)
    file = KizenFile("u", "n", 1, "t")
    for value in (option, file):
        assert copy.deepcopy(value) == value and pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(option)).name == "Gold"


def test_an_option_refuses_a_field_it_does_not_have() -> None:
    with pytest.raises(TypeError, match="colour"):
        FieldOption(ID, colour="red")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1} x', "[1,]", '{"a" 1}', "nul"])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        protocol.loads(text)


def test_the_encoder_agrees_with_the_standard_librarys() -> None:
    import json

    value = {"a": [1, 2.5, True, False, None, "\x00\"\\é世😀"], "": {}}
    assert json.loads(protocol.dumps(value)) == value
    assert protocol.loads(json.dumps(value)) == {"a": ["1", "2.5", True, False, None, "\x00\"\\é世😀"], "": {}}
