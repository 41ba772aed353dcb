"""Tests that secrets are removed in every spelling, before a text is cut."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from kizen_runtime.redact import MARK, Redactor, head, names_secret, tail

NASTY = "p'a\"s\\s wö/r+d=\n\t&%世"


def spellings(secret: str) -> dict[str, str]:
    data = secret.encode()
    return {
        "raw": secret,
        "json": json.dumps(secret)[1:-1],
        "json unicode": json.dumps(secret, ensure_ascii=False)[1:-1],
        "json in json": json.dumps(json.dumps({"k": secret})),
        "repr": repr({"k": secret}),
        "repr beside an apostrophe": repr("it's " + secret),
        "repr beside both quotes": repr("it's \"" + secret),
        "bytes repr": repr(data),
        "quoted": quote(secret, safe=""),
        "path quoted": quote(secret),
        "plus quoted": quote_plus(secret),
        "form": urlencode({"k": secret}),
        "lower case quoted": re.sub("%..", lambda m: m[0].lower(), quote(secret, safe="")),
        "requests quoted": quote(secret, safe="!#$%&'()*+,/:;=?@[]~"),
        "base64": base64.b64encode(data).decode(),
        "base64 urlsafe": base64.urlsafe_b64encode(data).decode(),
        "basic auth 1": base64.b64encode(b"u:" + data + b"x").decode(),
        "basic auth 2": base64.b64encode(b"us:" + data + b"xy").decode(),
        "basic auth 3": base64.b64encode(b"use:" + data).decode(),
    }


@pytest.mark.parametrize("secret", ["s3cr3t-value-91f2", NASTY, "dG9rZW4tNzc=", "ΑΒΓ", "a b"])
def test_every_spelling_is_hidden(secret: str) -> None:
    redact = Redactor([secret])
    for name, text in spellings(secret).items():
        if "base64" in name or "basic" in name:
            if len(secret.encode()) < 6:
                continue
        shown = redact(f"before {text} after")
        assert MARK in shown, name
        # Only the text around the secret is left.
        assert len(shown.replace(MARK, "")) <= len("before  after") + 24, (name, shown)


# The sidecar's own redaction must pass the same cases.
CORPUS = json.loads((Path(__file__).parents[3] / "telemetry/testdata/redaction.json").read_text())


def test_the_mark_is_the_sidecars() -> None:
    assert CORPUS["mark"] == MARK


@pytest.mark.parametrize("case", CORPUS["texts"], ids=lambda case: case["text"][:40])
def test_texts_are_redacted_as_by_the_sidecar(case: dict[str, Any]) -> None:
    redact = Redactor(case["secrets"])
    assert redact(case["text"]) == case["want"]
    assert redact(case["want"]) == case["want"]


@pytest.mark.parametrize("case", CORPUS["names"], ids=lambda case: case["text"])
def test_names_are_redacted_as_by_the_sidecar(case: dict[str, Any]) -> None:
    assert Redactor(case["secrets"]).name(case["text"], 64) == case["want"]


@pytest.mark.parametrize("name", CORPUS["fields"])
def test_names_of_credentials_are_the_same_as_for_the_sidecar(name: str) -> None:
    assert names_secret(name) == CORPUS["fields"][name]


def test_more_secrets_than_are_searched_for_one_by_one() -> None:
    secrets = [f"sk_live_{number:06}" for number in range(1000)]
    redact = Redactor([*secrets, "7", "äß"])
    assert redact(f"{secrets[7]} x{secrets[999]} {secrets[0].upper()} sk_live_0000 7 77 äß") == f"{MARK} x{MARK} {MARK} sk_live_0000 {MARK} 77 {MARK}"
    assert redact("_".join(secrets)) == "_".join([MARK] * 1000)
    # This secret begins within a window and ends after it.
    for before in range((64 << 10) - 20, (64 << 10) + 3):
        assert redact("." * before + secrets[5] + ".") == "." * before + MARK + "."
        assert redact("." * before + "%73k_live_000005.") == "." * before + MARK + "."


def test_a_secret_that_overlaps_another_leaves_no_part_behind() -> None:
    assert Redactor(["abcd", "cdef"])("xabcdefx") == f"x{MARK}x"
    assert Redactor(["abc", "abcdef"])("abcdef") == MARK


def test_an_alias_is_shown_instead_of_a_text() -> None:
    redact = Redactor(["capability"], {"http://127.0.0.1:99/capability": "https://api/root", "127.0.0.1:99": "api"})
    assert redact("GET http://127.0.0.1:99/capability/x at 127.0.0.1:99 /capability") == f"GET https://api/root/x at api /{MARK}"


@pytest.mark.parametrize("offset", range(-12, 13))
def test_a_secret_across_the_cut_leaves_no_beginning(offset: int) -> None:
    secret = "s3cr3t-value"
    limit = 100
    text = "." * (limit + offset) + secret + "." * 500
    cut = Redactor([secret]).cut(text, limit)
    assert len(cut) <= limit
    assert "s3" not in cut


def test_many_secrets_before_the_cut_do_not_let_half_a_secret_in() -> None:
    secret = "s" * 5 + "3cr3t" * 20
    cut = Redactor([secret]).cut(f"{secret} " * 50, 1000)
    assert "s3" not in cut and "cr3t" not in cut


@pytest.mark.parametrize("limit", range(8))
def test_head_and_tail_cut_between_characters(limit: int) -> None:
    assert len(head("é世😀" * 3, limit).encode()) <= limit
    if limit > 3:
        assert len(tail("é世😀" * 3, limit).encode()) <= limit


def test_tail_says_that_something_is_missing() -> None:
    assert tail("abc", 3) == "abc"
    assert tail("0123456789", 5) == "...89"
    assert tail("é" * 10, 10) == "...ééé"


def test_lone_surrogates_do_not_stop_anything() -> None:
    assert head("\ud800é", 20) == "\\ud800é"
    assert tail("\ud800", 20) == "\\ud800"
    assert Redactor(["\ud800xyz"])("a\ud800xyzb") == f"a{MARK}b"
