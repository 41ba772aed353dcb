"""`kizen.api`, seen from the wire: a raw server shows every byte it was sent."""

from __future__ import annotations

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


def test_every_verb_goes_out_as_itself(server: Server) -> None:
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


def test_an_unknown_keyword_is_a_type_error(server: Server) -> None:
    assert step(server, "kizen.api.get('/x', colour='red')").result["error"].startswith("TypeError")


@pytest.mark.parametrize("status", ["404 Not Found", "429 Too Many Requests", "500 Oh", "503 Service Unavailable", "418 Teapot"])
def test_no_status_raises_and_headers_come_through(server: Server, status: str) -> None:
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


def test_a_forked_child_uses_connections_of_its_own(server: Server) -> None:
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


def test_the_trace_context_is_carried(server: Server) -> None:
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


@pytest.mark.parametrize("location", ["/api/other?a=%2F", "https://app.go.kizen.com/api/other?a=%2F", "other?a=%2F"])
def test_a_redirect_below_the_api_root_goes_through_the_sidecar(server: Server, location: str) -> None:
    server.answers = [answer(b"", f"Location: {location}", status="302 Found"), answer(b"there")]
    result = step(server, "r = kizen.api.get('/one')\noutputs.log((r.url, r.text, len(r.history)))")
    assert result.logs == [f"('{ROOT}/other?a=%2F', 'there', 1)"]
    assert server.targets == [f"{CAPABILITY}/one", f"{CAPABILITY}/other?a=%2F"]
    assert [entry["session"] for entry in result.http] == [True, True]


def test_a_redirect_elsewhere_goes_there_directly(server: Server) -> None:
    server.answers = [answer(b"", f"Location: {server.url}/storage/file", status="307 Temporary Redirect"), answer(b"file")]
    result = step(server, "outputs.log(kizen.api.get('/download').text)")
    assert result.logs == ["file"]
    assert server.targets == [f"{CAPABILITY}/download", "/storage/file"]
    assert [entry["session"] for entry in result.http] == [True, False]


def test_redirects_can_be_refused(server: Server) -> None:
    server.answers = [answer(b"", "Location: /api/x", status="302 Found")]
    script = "outputs.log((kizen.api.get('/a', allow_redirects=False).status_code, kizen.api.head('/a').status_code))"
    assert step(server, script).logs == ["(302, 302)"]


def test_a_stream_is_read_as_it_comes(server: Server) -> None:
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


# the file by itself


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


def test_the_client_by_itself_says_what_is_missing(tmp_path: Path) -> None:
    done = standalone(tmp_path, "import kizen\nkizen.api.get('/x')")
    assert "RuntimeError: the environment variable KIZEN_API_URL is not set" in done.stderr
