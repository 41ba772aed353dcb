"""Tests `kizen.api` on the wire: a raw server keeps every byte that it receives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, answer
from sidecar import PYTHON, Result, run

ROOT = "https://app.go.kizen.com/api"
CAPABILITY = "/3f9c2b7a6d5e4f30"


def step(server: Server, script: str, **fields: Any) -> Result:
    return run(textwrap.dedent(script), api_url=server.url + CAPABILITY, **fields)


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", status=status).replace(b"\r\n\r\n", b"\r\nLocation: " + location.encode("latin-1") + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/custom-objects", "/custom-objects"),
        ("custom-objects", "/custom-objects"),
        ("/api/custom-objects", "/api/custom-objects"),
        ("/a%2Fb%2fc%21!:%7e~", "/a%2Fb%2fc%21!:%7e~"),
        ("/a/../b/./c", "/a/../b/./c"),
        ("//a//b/", "//a//b/"),
        ("/..", "/.."),
        ("/x?", "/x?"),
        ("/x?a=1&a=2&b=%20+%2B&c", "/x?a=1&a=2&b=%20+%2B&c"),
        ("/x?url=https://other/%zz", "/x?url=https://other/%zz"),
        ("?a=1", "/?a=1"),
        ("", "/"),
        ("/100%", "/100%"),
        ("/a;b=c,d@e$f'(g)*[h]", "/a;b=c,d@e$f'(g)*[h]"),
        ("/é 世", "/%C3%A9%20%E4%B8%96"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/a\r\nX-Evil: 1\r\n\r\nGET /b", "/a%0D%0AX-Evil:%201%0D%0A%0D%0AGET%20/b"),
        ("/x#fragment?a", "/x"),
        ("/external-integrations/proxy/a/b/v4/rooms/Sales%20%26%20Ops%2FEU%21/messages:send?notify=true",
         "/external-integrations/proxy/a/b/v4/rooms/Sales%20%26%20Ops%2FEU%21/messages:send?notify=true"),
    ],
)  # fmt: skip
def test_paths_arrive_byte_for_byte(server: Server, path: str, target: str) -> None:
    result = step(server, "kizen.api.get(inputs.path)", inputs={"path": {"t": "s", "v": path}})
    assert result.result["ok"], result.result
    assert server.targets == [CAPABILITY + target]


@pytest.mark.parametrize(
    ("path", "params", "target"),
    [
        ("/x", "{'a': 'b c', 'd': ['1', '2'], 'e': None}", "/x?a=b+c&d=1&d=2"),
        ("/x?a=%21", "{'b': '/!é'}", "/x?a=%21&b=%2F%21%C3%A9"),
        ("/x?", "[('a', 1)]", "/x?&a=1"),
        ("/x", "'raw=%2f'", "/x?raw=%2f"),
        ("/x", "b'a=1'", "/x?a=1"),
        ("/x#y", "{'a': 1}", "/x?a=1"),
        ("/x", "{}", "/x"),
    ],
)
def test_params_are_appended_to_the_query(server: Server, path: str, params: str, target: str) -> None:
    step(server, f"kizen.api.get('{path}', params={params})\nkizen.api.get('{path}', {params})")
    assert server.targets == [CAPABILITY + target] * 2


def test_every_verb_sends_its_own_method(server: Server) -> None:
    verbs = ["get", "post", "put", "patch", "delete", "head", "options"]
    step(server, f"for verb in {verbs}:\n    call = getattr(kizen.api, verb)\n    assert call('/x').status_code == 200")
    assert [head.split(b" ")[0].decode().lower() for head in server.heads] == verbs


def test_the_keyword_arguments_of_requests_work(server: Server) -> None:
    result = step(
        server,
        """
        api = kizen.api
        api.post("/json", json={"a": "é"}, headers={"X-Note": "kept", "Host": "evil.example.com"}, timeout=(3, 5))
        api.post("/form", {"a": "1"})
        api.patch("/bytes", b"raw", cookies={"c": "1"}, verify=False, proxies={"http": "http://127.0.0.1:1"}, cert=None)
        api.put("/file", files={"f": ("name.txt", b"content", "text/plain")})
        api.post("/generator", data=(part for part in (b"one", b"two")))
        seen = []
        api.get("/hook", hooks={"response": lambda r, **k: seen.append(r.status_code)}, auth=("u", "p"))
        assert seen == [200]
        """,
    )
    assert result.result["ok"], result.result
    json_body, form, raw, upload, generated, _ = server.bodies
    assert json_body == b'{"a": "\\u00e9"}' and form == b"a=1" and raw == b"raw" and generated == b"onetwo"
    assert b'filename="name.txt"' in upload and b"content" in upload
    assert server.header(0, "Host") == f"127.0.0.1:{server.port}" and server.header(0, "X-Note") == "kept"
    assert server.header(2, "Cookie") == "c=1"


def test_arguments_may_be_given_by_position_and_the_path_as_url(server: Server) -> None:
    result = step(
        server,
        """
        note = {"X-Note": "kept"}
        for verb in ("get", "delete", "head", "options"):
            getattr(kizen.api, verb)("/x", {"a": 1}, note)
        for verb in ("post", "put", "patch"):
            getattr(kizen.api, verb)("/x", None, {"b": 1}, note)
            getattr(kizen.api, verb)("/x", "text", None, note)
        kizen.api.get(url="/by-name", params={"a": 1})
        """,
    )
    assert result.result["ok"], result.result
    assert server.targets == [f"{CAPABILITY}/x?a=1"] * 4 + [f"{CAPABILITY}/x"] * 6 + [f"{CAPABILITY}/by-name?a=1"]
    assert server.bodies[4:10] == [b'{"b": 1}', b"text"] * 3
    assert [server.header(index, "X-Note") for index in range(10)] == ["kept"] * 10


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("get()", "kizen.api.get takes a path as text, not NoneType"),
        ("get(7)", "kizen.api.get takes a path as text, not int"),
        ("put('/a', url='/b')", "kizen.api.put takes one path, not both path and url"),
    ],
)
def test_exactly_one_path_is_taken(server: Server, call: str, error: str) -> None:
    assert step(server, f"kizen.api.{call}").result["error"] == f"TypeError: {error}"


def test_an_unknown_keyword_is_a_type_error(server: Server) -> None:
    assert step(server, "kizen.api.get('/x', colour='red')").result["error"].startswith("TypeError")


@pytest.mark.parametrize("status", ["404 Not Found", "429 Too Many Requests", "500 Oh", "503 Service Unavailable", "418 Teapot"])
def test_no_status_raises_and_headers_are_kept(server: Server, status: str) -> None:
    server.answers = [answer(b'{"detail": "x"}', "Retry-After: 7", status=status)]
    result = step(
        server,
        """
        import requests
        response = kizen.api.get("/x")
        assert type(response) is requests.Response
        outputs.log(f"{response.status_code} {response.headers['retry-after']} {response.json()['detail']}")
        """,
    )
    assert result.logs == [f"{status.split()[0]} 7 x"]


def test_the_response_shows_the_api_root_and_not_the_sidecar(server: Server) -> None:
    result = step(server, "r = kizen.api.get('/x?a=%21', params={'b': 1})\nprint(r.url, r.request.url, vars(r))")
    assert result.out.startswith(f"{ROOT}/x?a=%21&b=1 {ROOT}/x?a=%21&b=1 ")
    assert CAPABILITY not in result.out and str(server.port) not in result.out


def test_connections_are_kept(server: Server) -> None:
    step(server, "for _ in range(5): kizen.api.post('/x', json={})")
    assert len(server.heads) == 5 and server.connections == 1


def test_a_connection_that_the_sidecar_closed_is_replaced(server: Server) -> None:
    server.answers = [answer(b"", "Connection: close"), answer(b"")]
    assert step(server, "kizen.api.get('/a')\nkizen.api.get('/b')").result["ok"]
    assert server.connections == 2


def test_threads_share_the_client(server: Server) -> None:
    result = step(
        server,
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(16) as pool:
            urls = list(pool.map(lambda n: kizen.api.get(f"/t/{n}%2F").url, range(64)))
        assert urls == [f"https://app.go.kizen.com/api/t/{n}%2F" for n in range(64)]
        """,
    )
    assert result.result["ok"], result.result
    assert sorted(server.targets) == sorted(f"{CAPABILITY}/t/{n}%2F" for n in range(64))


def test_a_forked_child_opens_its_own_connections(server: Server) -> None:
    result = step(
        server,
        """
        import multiprocessing
        kizen.api.get("/parent")
        with multiprocessing.Pool(2) as pool:
            statuses = pool.map(lambda_ := kizen.api.get, ["/a", "/b"]) if False else pool.map(len, ["a", "b"])
        import os
        child = os.fork()
        if not child:
            os._exit(0 if kizen.api.get("/child").status_code == 200 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert kizen.api.get("/parent").status_code == 200
        """,
    )
    assert result.result["ok"], result.result
    assert server.targets == [CAPABILITY + path for path in ("/parent", "/child", "/parent")] and server.connections == 2


def test_the_environments_proxies_and_netrc_do_not_apply(server: Server, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine app.go.kizen.com login u password p\nmachine 127.0.0.1 login u password p\n")
    dead = "http://127.0.0.1:1"
    env = {"HTTP_PROXY": dead, "http_proxy": dead, "HTTPS_PROXY": dead, "ALL_PROXY": dead, "NETRC": str(tmp_path / "netrc")}
    assert step(server, "kizen.api.get('/x')", env=env).result["ok"]
    assert server.header(0, "Authorization") is None


def test_the_trace_context_is_sent(server: Server) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    step(server, "kizen.api.get('/x')\nkizen.api.get('/x', headers={'traceparent': 'own'})", traceparent=trace)
    step(server, "kizen.api.get('/x')")
    assert [server.header(index, "traceparent") for index in range(3)] == [trace, "own", None]


@pytest.mark.parametrize(
    ("url", "right", "other_host"),
    [
        ("https://app.fmo.kizen.com/api/custom-objects", 'kizen.api.get("/custom-objects")', False),
        ("HTTPS://app.go.kizen.com/api/x?a=%21", 'kizen.api.get("/x?a=%21")', False),
        (" http://other.example.com/records/1", 'kizen.api.get("/records/1")', True),
        ("https://app.go.kizen.com", 'kizen.api.get("/")', False),
        ("ftp://x/apiary", 'kizen.api.get("/apiary")', True),
    ],
)
def test_a_full_url_is_refused_with_the_right_path(server: Server, url: str, right: str, other_host: bool) -> None:
    failure = step(server, "kizen.api.get(inputs.url)", inputs={"url": {"t": "s", "v": url}})
    error = failure.result["error"]
    assert error.startswith("ValueError: kizen.api.get takes a path relative to the API root, not a full URL")
    assert right in error and ("requests.get(" in error) is other_host
    assert not server.heads and not failure.http


# redirects


def test_the_target_of_a_redirect_is_resolved_as_the_sidecar_does(server: Server) -> None:
    rows = json.loads((PYTHON.parent.parent / "proxy" / "testdata" / "locations.json").read_text())
    script = """
    from kizen_runtime.client import _below, _resolve
    import json
    for row in json.loads(inputs.rows):
        target = _resolve("https://app.example.com/api/records/1?q=/..", row["location"])
        below = _below("https://app.example.com/api", target) is not None
        if (target, below) != (row["target"], not row.get("outside", False)):
            outputs.log((row, target, below))
    """
    result = step(server, script, inputs={"rows": {"t": "s", "v": json.dumps(rows)}})
    assert len(rows) > 20 and result.result["ok"] and not result.logs


@pytest.mark.parametrize(
    ("location", "target", "url"),
    [
        ("/api/other?a=%2F", "/other?a=%2F", f"{ROOT}/other?a=%2F"),
        ("https://app.go.kizen.com/api/other?a=%2F", "/other?a=%2F", f"{ROOT}/other?a=%2F"),
        ("HTTPS://app.go.kizen.com:443/api/other", "/other", "HTTPS://app.go.kizen.com:443/api/other"),
        ("//app.go.kizen.com/api/other", "/other", f"{ROOT}/other"),
        ("other?a=%2F", "/records/other?a=%2F", f"{ROOT}/records/other?a=%2F"),
        ("?page=2", "/records/1%21?page=2", f"{ROOT}/records/1%21?page=2"),
        ("/api/a%2Fb%21!:%7e~/%zz//c", "/a%2Fb%21!:%7e~/%zz//c", f"{ROOT}/a%2Fb%21!:%7e~/%zz//c"),
        ("/api/x#there", "/x", f"{ROOT}/x#there"),
        ("/api/\xe4 \u20ac".encode().decode("latin-1"), "/%C3%A4%20%E2%82%AC", f"{ROOT}/%C3%A4%20%E2%82%AC"),
        ("/api/\xff", "/%FF", f"{ROOT}/%FF"),
        ("/api", "", ROOT),
        ("/api?x", "?x", f"{ROOT}?x"),
    ],
)
def test_a_redirect_below_the_api_root_goes_through_the_sidecar(
    server: Server, location: str, target: str, url: str
) -> None:
    server.answers = [redirect(location), answer(b"there")]
    result = step(
        server,
        """
        r = kizen.api.get("/records/1%21")
        first, = r.history
        outputs.log(repr((r.url, r.request.url, r.text, first.url, first.request.url, first.headers["Location"])))
        """,
    )
    first = f"{ROOT}/records/1%21"
    assert result.logs == [repr((url, url, "there", first, first, location))]
    assert server.targets == [f"{CAPABILITY}/records/1%21", CAPABILITY + target]
    assert [(entry["session"], entry["url"]) for entry in result.http] == [(True, first), (True, url)]
    assert result.http[0]["responseHeaders"]["Location"] == location
    assert [server.header(index, "X-Kizen-Location") for index in (0, 1)] == ["as-is", "as-is"]


@pytest.mark.parametrize(
    ("method", "status", "then", "body"),
    [
        ("get", "301 Moved Permanently", "GET", b""),
        ("get", "308 Permanent Redirect", "GET", b""),
        ("post", "301 Moved Permanently", "GET", b""),
        ("post", "302 Found", "GET", b""),
        ("put", "302 Found", "GET", b""),
        ("post", "303 See Other", "GET", b""),
        ("post", "307 Temporary Redirect", "POST", b"body"),
        ("patch", "308 Permanent Redirect", "PATCH", b"body"),
        ("head", "302 Found", "HEAD", b""),
    ],
)
def test_a_redirect_changes_the_method_as_requests_does(
    server: Server, method: str, status: str, then: str, body: bytes
) -> None:
    server.answers = [redirect("/api/b", status), answer()]
    data = {"data": "body"} if method in ("post", "put", "patch") else {}
    assert step(server, f"kizen.api.{method}('/a', allow_redirects=True, **{data})").result["ok"]
    assert [head.split(b" ")[0].decode() for head in server.heads] == [method.upper(), then]
    assert server.targets[1] == CAPABILITY + "/b" and server.bodies[1] == body


def test_fragments_are_inherited_and_not_sent(server: Server) -> None:
    server.answers = [redirect("/api/b#one"), redirect("/api/c"), redirect("/api/d#two"), answer()]
    result = step(server, "r = kizen.api.get('/a')\noutputs.log([hop.url for hop in [*r.history, r]])")
    assert result.logs == [str([f"{ROOT}/a", f"{ROOT}/b#one", f"{ROOT}/c#one", f"{ROOT}/d#two"])]
    assert server.targets == [CAPABILITY + path for path in ("/a", "/b", "/c", "/d")]


def test_a_redirect_that_never_ends_is_too_many_redirects(server: Server) -> None:
    server.answers = [redirect("/api/loop")]
    script = """
    import requests
    try:
        kizen.api.get("/loop")
    except requests.TooManyRedirects as error:
        outputs.log((str(error), error.response.url, error.response.request.url))
    """
    result = step(server, script)
    assert result.logs == [str(("Exceeded 30 redirects.", f"{ROOT}/loop", f"{ROOT}/loop"))]
    assert server.targets == [f"{CAPABILITY}/loop"] * 31 and len(result.http) == 31


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted"])
def test_the_location_of_a_created_object_is_the_apis(server: Server, status: str) -> None:
    server.answers = [answer(b"", "Location: https://app.go.kizen.com/api/jobs/1%2F2", status=status), answer(b"done")]
    result = step(
        server,
        """
        location = kizen.api.post("/jobs").headers["Location"]
        outputs.log(location)
        outputs.log(kizen.api.get(location.removeprefix("https://app.go.kizen.com/api")).text)
        """,
    )
    assert result.logs == [f"{ROOT}/jobs/1%2F2", "done"] and server.targets[1] == f"{CAPABILITY}/jobs/1%2F2"


def test_a_redirect_elsewhere_goes_there_directly(server: Server) -> None:
    server.answers = [redirect(f"{server.url}/storage/file?sig=a%2Fb", "307 Temporary Redirect"), answer(b"file")]
    result = step(
        server,
        """
        credentials = {"X-API-KEY": "k", "x-business-id": "b", "X-USER-ID": "u", "Authorization": "a", "Cookie": "c", "X-Note": "kept"}
        r = kizen.api.post("/download", b"body", headers=credentials, cookies={"d": "1"})
        outputs.log((r.text, r.history[0].url))
        """,
    )
    assert result.logs == [str(("file", f"{ROOT}/download"))]
    assert server.targets == [f"{CAPABILITY}/download", "/storage/file?sig=a%2Fb"] and server.bodies[1] == b"body"
    assert CAPABILITY.encode() not in server.heads[1]
    names = {line.partition(":")[0].lower() for line in server.heads[1].decode().split("\r\n")}
    assert "x-note" in names
    assert not names & {"x-api-key", "x-business-id", "x-user-id", "authorization", "cookie", "x-kizen-location"}
    assert [entry["session"] for entry in result.http] == [True, False]


def test_a_redirect_back_to_the_root_goes_through_the_sidecar(server: Server) -> None:
    server.answers = [redirect(f"{server.url}/elsewhere"), redirect(f"{ROOT}/back"), answer(b"back")]
    result = step(server, "r = kizen.api.get('/a')\noutputs.log((r.url, r.text))")
    assert result.logs == [str((f"{ROOT}/back", "back"))]
    assert server.targets == [f"{CAPABILITY}/a", "/elsewhere", f"{CAPABILITY}/back"]


def test_a_redirect_elsewhere_takes_the_environments_proxy(server: Server) -> None:
    server.answers = [redirect("http://files.example/x"), answer(b"file")]
    result = step(server, "outputs.log(kizen.api.get('/a').text)", env={"http_proxy": server.url})
    assert result.logs == ["file"] and server.targets == [f"{CAPABILITY}/a", "http://files.example/x"]


@pytest.mark.parametrize(
    ("location", "error"),
    [("ftp://files.example/x", "InvalidSchema"), ("http://[x/", "InvalidURL"), ("mailto:x", "InvalidSchema")],
)
def test_a_redirect_that_cannot_be_followed_is_an_error_of_requests(server: Server, location: str, error: str) -> None:
    server.answers = [redirect(location)]
    script = "import requests\ntry:\n    kizen.api.get('/a')\nexcept requests.RequestException as e:\n    outputs.log(type(e).__name__)"
    assert step(server, script).logs == [error]


def test_a_redirect_without_a_target_is_returned(server: Server) -> None:
    server.answers = [redirect("")]
    assert step(server, "outputs.log(kizen.api.get('/a').status_code)").logs == ["302"]


def test_redirects_can_be_refused(server: Server) -> None:
    server.answers = [redirect("/api/x")]
    script = "r = kizen.api.get('/a', allow_redirects=False)\noutputs.log((r.status_code, r.next.url, kizen.api.head('/a').status_code))"
    assert step(server, script).logs == [str((302, f"{ROOT}/x", 302))]


@pytest.mark.parametrize("script", ["kizen.api.get('/a')", "r = kizen.api.get('/a', stream=True)\nlist(r.iter_content(2))"])
def test_a_truncated_response_raises(server: Server, script: str) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n12345"]
    failure = step(server, script)
    assert failure.result["error"].startswith("requests.exceptions.ChunkedEncodingError:") and "995 more expected" in failure.result["error"]
    assert failure.http[0]["requestErrorType"] == "ChunkedEncodingError"


def test_a_stream_is_read_as_it_arrives(server: Server) -> None:
    server.answers = [answer(b"line\n" * 1000)]
    result = step(server, "with kizen.api.get('/x', stream=True) as r:\n    outputs.log(sum(1 for _ in r.iter_lines()))")
    assert result.logs == ["1000"]


def test_a_failure_says_what_was_called_and_why(server: Server) -> None:
    result = run("kizen.api.get('/x')", api_url="http://127.0.0.1:9/cap-0123456789abcdef")
    assert result.result["error"].startswith(f"requests.exceptions.ConnectionError: GET {ROOT}/x: ")
    assert "Connection refused" in result.result["error"]
    assert "cap-0123" not in str(result.frames) and "127.0.0.1" not in str(result.frames)


def test_a_timeout_is_requests_timeout(server: Server) -> None:
    server.answers = [b""]
    script = """
    import requests
    try:
        kizen.api.get("/x", timeout=0.05)
    except requests.ReadTimeout as error:
        outputs.log(error)
        assert error.request.url.endswith("/x")
    """
    assert step(server, script).logs == [f"GET {ROOT}/x: timed out"]


def test_a_connection_that_breaks_is_a_connection_error(server: Server) -> None:
    server.answers = [None]  # type: ignore[list-item]
    assert step(server, "kizen.api.get('/x')").result["error"].startswith(f"requests.exceptions.ConnectionError: GET {ROOT}/x: ")


def test_without_requests_the_error_names_the_interpreter_and_the_remedy() -> None:
    script = "import sys\nsys.modules['requests'] = None\nkizen.api.get('/x')"
    failure = run(script).result
    assert failure["error"] == (
        f'ImportError: kizen.api needs the package "requests", which {sys.executable} does not have; '
        f"install it with: {sys.executable} -m pip install requests"
    )
    assert failure["detail"].count("ImportError") == 1 and "script.py" in failure["detail"]


# the client as a single file


def standalone(tmp_path: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(PYTHON / "kizen_runtime" / "client.py", tmp_path / "kizen.py")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), **env}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=60)


def test_the_client_works_by_itself_as_the_module_kizen(server: Server, tmp_path: Path) -> None:
    script = "import kizen\nr = kizen.api.get('/a%2F!', params={'b': 1})\nprint(r.status_code, r.url)"
    done = standalone(tmp_path, script, KIZEN_API_URL=server.url + CAPABILITY, KIZEN_API_ROOT=ROOT)
    assert done.stdout == f"200 {ROOT}/a%2F!?b=1\n", done.stderr
    assert server.targets == [CAPABILITY + "/a%2F!?b=1"]


def test_the_client_by_itself_needs_only_the_address(server: Server, tmp_path: Path) -> None:
    done = standalone(tmp_path, "import kizen\nprint(kizen.api.get('/x').json())", KIZEN_API_URL=server.url + CAPABILITY + "/")
    assert done.stdout == "{}\n", done.stderr
    assert server.targets == [CAPABILITY + "/x"]


def test_the_client_by_itself_follows_a_rewritten_redirect(server: Server, tmp_path: Path) -> None:
    server.answers = [redirect(f"{CAPABILITY}/one"), redirect(f"{server.url}{CAPABILITY}/two"), answer(b"there")]
    script = "import kizen\nr = kizen.api.get('/x')\nprint(r.text, r.url)"
    done = standalone(tmp_path, script, KIZEN_API_URL=server.url + CAPABILITY)
    assert done.stdout == f"there {server.url}{CAPABILITY}/two\n", done.stderr
    assert server.targets == [CAPABILITY + path for path in ("/x", "/one", "/two")]
    assert server.header(0, "X-Kizen-Location") is None


def test_the_client_by_itself_names_the_missing_variable(tmp_path: Path) -> None:
    done = standalone(tmp_path, "import kizen\nkizen.api.get('/x')")
    assert "RuntimeError: the environment variable KIZEN_API_URL is not set" in done.stderr
