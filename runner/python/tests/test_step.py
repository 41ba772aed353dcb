"""Runs steps in a real harness process, and tests their globals, results and failures."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from sidecar import LIMITS, Result, run


def step(script: str, **fields: Any) -> Result:
    return run(textwrap.dedent(script), **fields)


def text(value: str | None) -> dict[str, Any]:
    return {"t": "s", "v": value}


# inputs


def test_inputs_that_were_not_supplied_do_not_exist() -> None:
    result = step(
        """
        outputs.log(inputs.given)
        outputs.log(inputs.null)
        outputs.log(getattr(inputs, "missing", "default"))
        outputs.log(hasattr(inputs, "missing"))
        outputs.log(sorted(vars(inputs)))
        inputs.missing
        """,
        inputs={"given": text("x"), "null": text(None)},
    )
    assert result.logs == ["x", "None", "default", "False", "['given', 'null']"]
    assert result.result["error"].startswith("AttributeError: input 'missing' was not supplied; supplied: given, null")
    assert "line 7" in result.result["detail"]


def test_inputs_may_have_any_name() -> None:
    script = "outputs.log([getattr(inputs, name) for name in ('class', 'self', 'values', '__init__')])"
    names = ("class", "self", "values", "__init__")
    assert step(script, inputs={name: text(name) for name in names}).logs == [str(list(names))]


# outputs


def test_assigned_outputs_are_written_in_the_declared_order_and_others_are_not() -> None:
    result = step("outputs.b = 1; outputs.a = 'x'; outputs.b += 1; del outputs.a; outputs.a = 'y'",
                  output_types={"a": "s", "b": "n", "c": "s"})  # fmt: skip
    assert result.values == {"a": {"t": "s", "v": "y"}, "b": {"t": "n", "v": "2"}}
    assert list(result.values) == ["a", "b"]


def test_an_undeclared_output_fails_the_step_and_names_what_is_declared() -> None:
    result = step("outputs.one = 1\noutputs.other = 1", output_types={"one": "n", "two": "n"})
    assert result.result["error"] == "AttributeError: output 'other' is not declared; declared: one, two"
    assert "values" not in result.result


def test_an_output_that_was_not_assigned_cannot_be_read() -> None:
    assert "output 'one' has not been assigned" in step("outputs.one", output_types={"one": "n"}).result["error"]
    assert "output 'two' is not declared" in step("outputs.two", output_types={"one": "n"}).result["error"]
    assert step("outputs.log(getattr(outputs, 'one', 5))", output_types={"one": "n"}).logs == ["5"]


def test_a_step_that_raises_writes_no_outputs() -> None:
    result = step("outputs.one = 1\nraise ValueError('no')", output_types={"one": "n"})
    assert result.result["ok"] is False and "values" not in result.result


def test_an_output_that_does_not_fit_its_type_fails_the_step_at_the_line_that_assigned_it() -> None:
    result = step("outputs.good = 'x'\nif True:\n    outputs.bad = object()\n", output_types={"good": "s", "bad": "n"})
    failure = result.result
    assert failure["kind"] == "result_not_serialisable"
    assert 'output "bad" cannot be written as \'n\': expected a number, got object' in failure["error"]
    assert failure["detail"].startswith('Traceback (most recent call last):\n  File "script.py", line 3, in <module>\n    outputs.bad = object()\n')
    assert "kizen_runtime" not in failure["detail"]


def test_the_error_of_an_output_that_does_not_fit_can_be_caught() -> None:
    result = step(
        """
        try:
            outputs.n = "1_000"
        except ValueError as error:
            outputs.log(error)
        outputs.log(hasattr(outputs, "n"))
        outputs.n = 1000
        """,
        output_types={"n": "n"},
    )
    assert result.logs == ["output \"n\" cannot be written as 'n': expected a number, got str '1_000'", "False"]
    assert result.values == {"n": {"t": "n", "v": "1000"}}


def test_a_list_may_be_assigned_again_and_again_while_it_grows() -> None:
    script = "l = []\nfor i in range(20_000): l.append(i); outputs.l = l\nassert outputs.l is l"
    assert len(step(script, output_types={"l": "l"}).values["l"]["v"]) == 20_000


def test_a_list_of_too_many_elements_is_refused_at_its_line() -> None:
    result = step("outputs.l = []\noutputs.l = [0] * 100_001", output_types={"l": "a[n]"})
    assert result.result["error"] == "ValueError: output \"l\" cannot be written as 'a[n]': lists have at most 100000 elements together"
    assert "line 2, in <module>" in result.result["detail"]


def test_a_list_that_is_changed_after_its_assignment_is_written_with_the_changes() -> None:
    result = step("outputs.l = l = []\nl.append(1)", output_types={"l": "l"})
    assert result.values["l"]["v"] == [{"t": "n", "v": "1"}]


def test_a_result_over_the_limit_is_not_sent() -> None:
    result = step("outputs.s = 'x' * 2000", output_types={"s": "s"}, limits={**LIMITS, "result": 1000})
    assert result.result["kind"] == "output_limit"


def test_an_output_called_log_does_not_hide_the_log() -> None:
    result = step("outputs.log = 'value'\noutputs.log('message')", output_types={"log": "s"})
    assert result.logs == ["message"] and result.values["log"]["v"] == "value"


# logs


def test_logs_take_any_object() -> None:
    assert step("for x in ('s', 1, None, [1], {'a': 'é世'}): outputs.log(x)").logs == ["s", "1", "None", "[1]", "{'a': 'é世'}"]


def test_a_long_message_is_cut_between_characters_and_the_rest_is_counted() -> None:
    result = step("outputs.log('a' + '世' * 5000)\noutputs.log('a' * 8192)\noutputs.log('a' * 8193)")
    long, full, over = result.of("log")
    assert long["m"] == "a" + "世" * 2730 and long["x"] == 2270
    assert (full["m"], full["x"]) == ("a" * 8192, 0)
    assert (over["m"], over["x"]) == ("a" * 8192, 1)


def test_messages_over_the_total_are_dropped_and_counted() -> None:
    result = step("for _ in range(30): outputs.log('a' * 8192)")
    assert sum(map(len, result.logs)) == 102400
    assert sum(frame["c"] for frame in result.of("logs_dropped")) == 17


def test_empty_messages_use_the_total_up() -> None:
    result = step("for _ in range(300): outputs.log('')", limits={**LIMITS, "log_total": 100})
    assert len(result.logs) == 100 and sum(frame["c"] for frame in result.of("logs_dropped")) == 200


def test_messages_of_threads_arrive_whole() -> None:
    result = step(
        """
        import threading
        def work(n):
            for i in range(50): outputs.log(f"{n}:{i}" + "x" * 500)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        """,
        limits={**LIMITS, "log_total": 10**7},
    )
    assert sorted(result.logs) == sorted(f"{n}:{i}" + "x" * 500 for n in range(8) for i in range(50))


def test_a_message_may_be_logged_in_the_middle_of_another() -> None:
    result = step(
        """
        import posix
        class Message(str):
            def __str__(self): return self
            def __getitem__(self, index):  # the harness cuts the message, its lock held
                outputs.log("as a finaliser would")
                return str.__getitem__(self, index)
        outputs.log(Message("first"))
        write = posix.write
        def interrupted(fd, data):
            posix.write = write
            outputs.log("as a signal handler would")
            return write(fd, data)
        posix.write = interrupted
        outputs.log("second")
        """,
        timeout=10,
    )
    assert result.logs[0] == "as a finaliser would" and result.logs[-3:] == ["first", "as a signal handler would", "second"]


def test_a_lone_surrogate_can_be_logged() -> None:
    assert step(r"outputs.log('\ud800')").logs == ["\\ud800"]


# secrets


def test_secrets_are_a_dict_and_leave_only_in_outputs() -> None:
    result = step(
        """
        assert isinstance(secrets, dict) and {**secrets} == dict(secrets)
        outputs.log(secrets["a"])
        outputs.log(secrets)
        outputs.log(repr(secrets["a"]).encode())
        outputs.kept = 42
        outputs.shown = f"with {secrets['a']}"
        """,
        secrets={"a": "it's \"s3cr3t\"", "b": "42"},
        output_types={"kept": "n", "shown": "s"},
    )
    assert "s3cr3t" not in str(result.logs)
    assert result.logs[0] == "[REDACTED]"
    assert result.values == {"kept": {"t": "n", "v": "42"}, "shown": {"t": "s", "v": "with it's \"s3cr3t\""}}


def test_a_secret_that_was_not_granted_is_a_key_error_that_names_the_right_key() -> None:
    granted = {"my_plugin__api_key": "s3cr3t-value-91f2"}
    failure = step("secrets['api_key']", secrets=granted).result
    assert failure["error"] == (
        "KeyError: secret 'api_key' was not granted; granted: my_plugin__api_key; this step reads it as secrets['my_plugin__api_key']"
    )
    assert "line 1, in <module>" in failure["detail"] and "kizen_runtime" not in failure["detail"]
    assert step("secrets['x']").result["error"] == "KeyError: secret 'x' was not granted; granted: none"
    caught = "try:\n    secrets['x']\nexcept KeyError as error:\n    outputs.log(error.args[0])\noutputs.log(secrets.get('x'))"
    assert step(caught, secrets=granted).logs == ["x", "None"]


def test_a_failure_shows_no_part_of_a_secret() -> None:
    result = step("raise ValueError('a' * 8180 + secrets['a'] + 'b' * 8180 + secrets['a'])", secrets={"a": "s3cr3t-value-91f2"})
    assert "s3" not in result.result["error"] and "91f2" not in result.result["detail"]
    assert len(result.result["error"].encode()) <= 8192 and len(result.result["detail"].encode()) <= 8192


def test_the_sidecars_address_is_shown_as_the_api_root() -> None:
    capability = "0123456789abcdef0123456789abcdef"
    result = step(
        """
        import os, requests
        outputs.log(os.environ["KIZEN_API_URL"])
        requests.get(os.environ["KIZEN_API_URL"] + "/x")
        """,
        api_url=f"http://127.0.0.1:9/{capability}",
        api_root="https://app.go.kizen.com/api",
    )
    assert result.logs == ["https://app.go.kizen.com/api"]
    assert capability not in str(result.frames) and "127.0.0.1:9" not in str(result.frames)
    assert result.http[0]["url"] == "https://app.go.kizen.com/api/x"


# the module


def test_the_step_is_the_main_module() -> None:
    result = step(
        """
        import copy, os, pickle, sys, typing
        from dataclasses import dataclass, field

        assert __name__ == "__main__" and os.path.isabs(__file__) and sys.argv == [__file__]
        assert sys.modules["__main__"].inputs is inputs

        @dataclass
        class Point:
            x: "int"
            y: list["Point"] = field(default_factory=list)

        def local(): return Point(1)
        assert pickle.loads(pickle.dumps(Point(1))) == Point(1) == copy.deepcopy(local())
        assert pickle.loads(pickle.dumps(local)) is local
        assert typing.get_type_hints(Point) == {"x": int, "y": list[Point]}
        class Pair(typing.NamedTuple):
            a: int
        assert pickle.loads(pickle.dumps(Pair(1))) == Pair(1)
        nested = [[y for y in (x, inputs)] for x in (1,)]
        if __name__ == "__main__":
            outputs.log("main")
        """
    )
    assert result.logs == ["main"] and result.result["ok"]


def test_the_harness_leaves_nothing_in_the_steps_namespace() -> None:
    names = step("outputs.log(sorted(n for n in globals() if not n.startswith('__')))").logs
    assert names == ["['inputs', 'kizen', 'outputs', 'secrets']"]


def test_kizen_can_be_imported_too() -> None:
    assert step("import kizen as k; from kizen import api, KizenFile\nassert k is kizen and api is kizen.api").result["ok"]


def test_the_steps_own_traceback_has_its_source_lines() -> None:
    script = "import traceback\ntry:\n    1 / 0  # here\nexcept Exception:\n    outputs.log(traceback.format_exc())"
    assert "1 / 0  # here" in step(script).logs[0]


def test_a_byte_order_mark_is_accepted() -> None:
    assert step("\ufeffoutputs.log(1)").logs == ["1"]


# tracebacks


def test_a_traceback_starts_at_the_steps_frames_and_shows_their_lines() -> None:
    result = step("def deep():\n    raise ValueError('é')\n\ndeep()\n")
    assert result.result["kind"] == "exception"
    assert result.result["error"] == "ValueError: é"
    lines = [line for line in result.result["detail"].splitlines() if "^" not in line]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "script.py", line 4, in <module>',
        "    deep()",
        '  File "script.py", line 2, in deep',
        "    raise ValueError('é')",
        "ValueError: é",
    ]


RAISERS = {
    "output": "outputs.x = 1",
    "input": "inputs.x",
    "log": "class A:\n    def __str__(self): raise ValueError\noutputs.log(A())",
    "kizen.api wrong use": "kizen.api.get('https://app.fmo.kizen.com/api/custom-objects')",
    "kizen.api unreachable": "kizen.api.get('/x')",
    "kizen.api bad argument": "kizen.api.get('/x', colour='red')",
    "kizen.api path": "kizen.api.get(None)",
    "kizen": "kizen.nothing",
    "requests": "import requests\nrequests.get('http://127.0.0.1:9/')",
    "requests bad url": "import requests\nrequests.get('nonsense')",
    "chained": "try:\n    inputs.x\nexcept Exception as e:\n    raise ValueError(1) from e",
    "context": "try:\n    kizen.api.get('/x')\nexcept Exception:\n    outputs.x = 1",
    "group": "try:\n    inputs.x\nexcept Exception as e:\n    raise ExceptionGroup('many', [e, ValueError(2)])",
    "missing module": "import nothing_of_this_name",
    "failing module": "import requests.nothing",
    "recursion": "def f(): f()\nf()",
    "thread": "from concurrent.futures import ThreadPoolExecutor as T\nT().submit(lambda: inputs.x).result()",
}


@pytest.mark.parametrize("name", RAISERS)
def test_no_frame_of_the_runtime_is_shown(name: str) -> None:
    failure = step(RAISERS[name]).result
    assert failure["kind"] == "exception"
    assert 'File "script.py", line ' in failure["detail"]
    assert "kizen_runtime" not in str(failure) and "importlib" not in str(failure) and "<string>" not in str(failure)
    assert failure["detail"].rstrip().endswith(failure["error"]) or name == "group"


def test_chained_exceptions_and_groups_are_shown_whole() -> None:
    chained = step(RAISERS["chained"]).result["detail"]
    assert "was not supplied" in chained and "direct cause" in chained and chained.rstrip().endswith("ValueError: 1")
    group = step(RAISERS["group"]).result
    assert group["error"].startswith("ExceptionGroup: many") and "ValueError: 2" in group["detail"]


def test_a_long_traceback_keeps_its_end() -> None:
    failure = step("class E(Exception): pass\nE.__name__ = E.__qualname__ = 'Loud'\nraise E('x' * 20000 + 'the end')").result
    assert len(failure["detail"].encode()) <= 8192 and failure["detail"].rstrip().endswith("the end")
    assert len(failure["error"]) <= 8192 and failure["error"].startswith("Loud: xxx")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("x = 1\ny = = 2\n", "SyntaxError: invalid syntax"),
        ("if True:\nx = 1", "IndentationError: expected an indented block after 'if' statement on line 1"),
        ("return 5", "SyntaxError: 'return' outside function"),
        ("x = 'a\0b'", None),
        ("await x", "SyntaxError: 'await' outside function"),
    ],
)
def test_a_syntax_error_shows_the_line(script: str, error: str | None) -> None:
    result = step(script)
    assert result.result["kind"] == "syntax_error" and not result.of("started")
    if error:
        assert result.result["error"] == error
        assert 'File "script.py", line ' in result.result["detail"]


def test_a_syntax_error_raised_by_the_step_is_an_exception() -> None:
    failure = step("compile('a b', 'other.py', 'exec')").result
    assert failure["kind"] == "exception" and failure["error"] == "SyntaxError: invalid syntax"
    assert 'File "script.py", line 1' in failure["detail"] and 'File "other.py", line 1' in failure["detail"]


@pytest.mark.parametrize(
    "script",
    [
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
        "class E(Exception):\n    def __str__(self): return 5\nraise E",
        "class M(type):\n    __module__ = property(lambda c: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E",
        "class E(BaseException): pass\nraise E('x')",
        "raise KeyboardInterrupt",
        "e = ValueError('x'); e.__notes__ = 5; raise e",
        "e = ValueError('x'); e.__cause__ = e; raise e",
        "import linecache, traceback\nlinecache.getline = traceback.TracebackException = None\nraise ValueError('x')",
        "import sys\nsys.setrecursionlimit(20)\nraise ValueError('x')",
        "import builtins\nbuiltins.len = None\nraise ValueError('x')",
    ],
)
def test_an_exception_that_cannot_be_formatted_is_still_a_failure(script: str) -> None:
    result = step(script)
    assert result.result["ok"] is False if result.of("result") else result.returncode != 0


# ways to end


@pytest.mark.parametrize("script", ["import sys; sys.exit()", "import sys; sys.exit(0)", "raise SystemExit", "exit(0)", "quit()"])
def test_exiting_with_zero_is_success(script: str) -> None:
    result = step(f"outputs.n = 1\n{script}\noutputs.n = 2", output_types={"n": "n"})
    assert result.values == {"n": {"t": "n", "v": "1"}}


@pytest.mark.parametrize(
    ("script", "error", "code"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3", 3),
        ("import sys; sys.exit('no luck')", "SystemExit: no luck", 1),
        ("exit(True)", "SystemExit: True", 1),
        ("raise SystemExit(-1)", "SystemExit: -1", 255),
        ("raise SystemExit(256)", "SystemExit: 256", 1),
        ("raise SystemExit(10 ** 5000)", "SystemExit: <exception str() failed>", 1),
    ],
)
def test_exiting_with_anything_else_is_a_failure(script: str, error: str, code: int) -> None:
    result = step(script)
    failure = result.result
    assert (failure["kind"], failure["error"], result.returncode) == ("exited", error, code)
    assert 'File "script.py", line 1' in failure["detail"]


TAMPERING = {
    "prints": "print('x' * 100)",
    "writes to descriptors": "import os\nfor fd in (1, 2): os.write(fd, b'x')",
    "closes standard streams": "import sys, os\nsys.stdout.close()\nos.close(2)",
    "replaces standard streams": "import sys\nsys.stdout = sys.stderr = None\nsys.__stdout__ = 5",
    "replaces json": "import json, os\njson.dumps = json.loads = None\nos.write = os.getpid = None",
    "clears the modules": "import sys\nsys.modules.clear()",
    "traces": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)",
    "closes descriptor 3": "import os\ntry:\n    os.close(3)\nexcept OSError: pass\nos.closerange(3, 60)",
    "writes to descriptor 3": "import os\nfor fd in range(3, 60):\n    try:\n        os.write(fd, b'\\0\\0\\0\\2{}')\n    except OSError: pass",
    "changes directory": "import os\nos.chdir('/')",
    "leaves a handler": "import atexit\natexit.register(lambda: 1 / 0)",
}


@pytest.mark.parametrize("name", TAMPERING)
def test_the_result_does_not_depend_on(name: str) -> None:
    result = step(TAMPERING[name] + "\noutputs.n = 7", output_types={"n": "n"})
    assert result.values == {"n": {"t": "n", "v": "7"}}


def test_printed_output_is_flushed() -> None:
    assert step("print('kept', end='')").out == "kept"


def test_a_result_that_cannot_be_sent_has_its_own_exit_code() -> None:
    result = step("import os\nos.closerange(3, 4096)")
    assert not result.of("result") and result.returncode == 74


def test_a_program_the_step_starts_does_not_inherit_the_socket() -> None:
    result = step("import subprocess\noutputs.log(subprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True).stdout.split())")
    assert not {"'95'", "'96'", "'97'"} & set(result.logs[0].strip("[]").split(", ")) and "'3'" in result.logs[0]  # 3 is the directory that ls reads


def test_asyncio_works() -> None:
    assert step("import asyncio\nasync def f(): return 5\noutputs.log(asyncio.run(f()))").logs == ["5"]
