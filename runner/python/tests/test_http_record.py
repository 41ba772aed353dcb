"""The record of calls: one entry for each request on the wire, including retries by urllib3 and calls that are never
sent."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from conftest import Server, answer
from sidecar import Result, run

ROOT = "https://app.go.kizen.com/api"


def step(server: Server, script: str, **fields: Any) -> Result:
    inputs = {"url": {"t": "s", "v": server.url}}
    return run(textwrap.dedent(script), inputs=inputs, **fields)


def retrying(call: str, retry: str) -> str:
    return f"""
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry
session = requests.Session()
session.mount("http://", HTTPAdapter(max_retries={retry}))
try:
    outputs.log(session.{call}.status_code)
except requests.RequestException as error:
    outputs.log(type(error).__name__)
"""


def entries(result: Result, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(entry[name] for name in names) for entry in result.http]


def test_each_retry_of_urllib3_has_an_entry(server: Server) -> None:
    server.answers = [answer(b"busy", "X-Try: 1", status="503 Busy"), answer(b"busier", "X-Try: 2", status="503 Busy"), answer(b"fine", "X-Try: 3")]
    result = step(server, retrying("get(inputs.url + '/x')", "Retry(2, status_forcelist=[503])"))
    assert result.logs == ["200"] and server.targets == ["/x"] * 3
    assert entries(result, "responseStatusCode", "responseBody", "requestErrorType") == [(503, "busy", None), (503, "busier", None), (200, "fine", None)]
    assert [entry["responseHeaders"]["X-Try"] for entry in result.http] == ["1", "2", "3"]
    assert {entry["url"] for entry in result.http} == {server.url + "/x"}
    submitted = [entry["requestSubmittedAt"] for entry in result.http]
    assert submitted == sorted(submitted) and len(set(submitted)) == 3


def test_the_last_retry_says_why_it_was_the_last(server: Server) -> None:
    server.answers = [answer(b"busy", status="503 Busy")]
    result = step(server, retrying("post(inputs.url, b'body')", "Retry(2, status_forcelist=[503], allowed_methods=None)"))
    assert result.logs == ["RetryError"] and len(server.heads) == 3
    assert entries(result, "responseStatusCode", "requestErrorType") == [(503, None), (503, None), (503, "RetryError")]
    assert entries(result, "method", "body") == [("POST", "body")] * 3


def test_retries_that_end_with_an_answer_leave_its_body_to_the_step(server: Server) -> None:
    server.answers = [answer(b"busy", status="503 Busy")]
    result = step(server, retrying("get(inputs.url)", "Retry(1, status_forcelist=[503], raise_on_status=False)"))
    assert result.logs == ["503"]
    assert entries(result, "responseStatusCode", "responseBody") == [(503, "busy")] * 2


def test_a_connection_that_breaks_and_is_tried_again_has_two_entries(server: Server) -> None:
    server.answers = [None, answer(b"fine")]  # type: ignore[list-item]
    result = step(server, retrying("get(inputs.url)", "Retry(1)"))
    assert result.logs == ["200"]
    assert entries(result, "responseStatusCode", "requestErrorType") == [(None, "ProtocolError"), (200, None)]


def test_retries_over_the_limit_are_counted(server: Server) -> None:
    from sidecar import LIMITS

    server.answers = [answer(status="503 Busy")]
    result = step(server, retrying("get(inputs.url)", "Retry(4, status_forcelist=[503])"), limits={**LIMITS, "http_entries": 2})
    assert len(server.heads) == 5 and len(result.http) == 2
    assert sum(frame["c"] for frame in result.of("http_dropped")) == 3


FAILING = [
    ("requests.get('nonsense')", "nonsense", "MissingSchema"),
    ("requests.get('http://')", "http://", "InvalidURL"),
    ("requests.get('http://[x')", "http://[x", "InvalidURL"),
    ("requests.get('foo://x/y')", "foo://x/y", "InvalidSchema"),
    ("requests.get('http://x.example/', headers={'X': 'a\\r\\nb'})", "http://x.example/", "InvalidHeader"),
    ("requests.post('http://x.example/', json=float('nan'))", "http://x.example/", "InvalidJSONError"),
    ("requests.get('http://127.0.0.1:1/')", "http://127.0.0.1:1/", "ConnectionError"),
    ("requests.get('http://no-such-host.invalid/')", "http://no-such-host.invalid/", "ConnectionError"),
    ("requests.Session().send(requests.Request('GET', 'foo://x').prepare())", "foo://x", "InvalidSchema"),
    ("kizen.api.get('/x', headers={'X': 'a\\r\\nb'})", ROOT + "/x", "InvalidHeader"),
    ("kizen.api.post('/x', json=float('nan'))", ROOT + "/x", "InvalidJSONError"),
]


@pytest.mark.parametrize(("call", "url", "error"), FAILING)
def test_a_call_that_fails_before_it_is_sent_has_one_entry(server: Server, call: str, url: str, error: str) -> None:
    result = step(server, f"import requests\ntry:\n    {call}\nexcept Exception as error:\n    outputs.log(type(error).__name__)")
    assert result.logs == [error] and not server.heads
    assert entries(result, "url", "requestErrorType", "responseStatusCode") == [(url, error, None)]
    assert result.http[0]["session"] is call.startswith("kizen") and result.http[0]["method"] in ("GET", "POST")


@pytest.mark.parametrize(("call", "error"), [
    ("kizen.api.get('https://app.go.kizen.com/api/x')", "ValueError"), ("kizen.api.get(url='x', colour=1)", "TypeError"),
])
def test_wrong_use_of_the_client_is_not_recorded_as_a_call(server: Server, call: str, error: str) -> None:
    result = step(server, f"try:\n    {call}\nexcept Exception as error:\n    outputs.log(type(error).__name__)")
    assert result.logs == [error] and not server.heads and not result.http


def test_a_redirect_that_cannot_be_sent_has_an_entry_beside_its_answers(server: Server) -> None:
    server.answers = [answer(b"", "Location: foo://x", status="302 Found")]
    result = step(server, "import requests\ntry:\n    requests.get(inputs.url)\nexcept requests.exceptions.InvalidSchema:\n    pass")
    assert entries(result, "url", "responseStatusCode", "requestErrorType") == [(server.url + "/", 302, None), ("foo://x", None, "InvalidSchema")]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_secret_that_is_read_in_pieces_is_not_recorded(server: Server, size: int) -> None:
    server.answers = [answer("ist pässwörd-日本, pin 4711, 日本".encode())]
    script = f"""
    import requests
    with requests.get(inputs.url, stream=True) as response:
        outputs.log(len(list(response.iter_content({size}))))
    """
    result = step(server, script, secrets={"S": "pässwörd-日本", "N": "4711"})
    assert int(result.logs[0]) > 4
    assert entries(result, "responseBody") == [("ist [REDACTED], pin [REDACTED], 日本",)]
