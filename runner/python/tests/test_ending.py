"""Tests how a step ends: its threads, its exit handlers, and the processes that it has started."""

from __future__ import annotations

import pytest
from conftest import Server
from sidecar import LIMITS
from test_step import step

ENDINGS = {
    "a thread": """
        import threading, time
        def work():
            time.sleep(0.2)
            SAY
        threading.Thread(target=work).start()
        """,
    "a thread that a thread starts": """
        import threading, time
        def later():
            time.sleep(0.1)
            SAY
        threading.Thread(target=lambda: (time.sleep(0.1), threading.Thread(target=later).start())).start()
        """,
    "a timer": """
        import threading
        def work(): SAY
        threading.Timer(0.2, work).start()
        """,
    "an executor without with": """
        import time
        from concurrent.futures import ThreadPoolExecutor
        def work():
            time.sleep(0.2)
            SAY
        ThreadPoolExecutor(2).submit(work)
        """,
    "an exit handler of threading": """
        import threading
        def work(): SAY
        threading._register_atexit(work)
        """,
    "atexit": """
        import atexit
        @atexit.register
        def work(): SAY
        """,
    "atexit after another that fails": """
        import atexit
        @atexit.register
        def work(): SAY
        atexit.register(lambda: 1 / 0)
        """,
    "a thread that an exit handler starts": """
        import atexit, threading, time
        def work():
            time.sleep(0.1)
            SAY
        atexit.register(lambda: threading.Thread(target=work).start())
        """,
    "weakref.finalize": """
        import weakref
        class Thing: pass
        thing = Thing()
        def work(): SAY
        weakref.finalize(thing, work)
        """,
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("ends", ["", "raise SystemExit", "raise SystemExit(3)", "raise ValueError('no')"])
def test_a_step_ends_like_any_program(name: str, ends: str) -> None:
    import textwrap

    script = textwrap.dedent(ENDINGS[name]).replace("SAY", "outputs.log('done'); outputs.n = 2") + "outputs.n = 1\n" + ends
    result = step(script, output_types={"n": "n"})
    assert result.logs == ["done"]
    if ends in ("", "raise SystemExit"):
        assert result.values == {"n": {"t": "n", "v": "2"}}
    else:
        assert result.result["error"] in ("SystemExit: 3", "ValueError: no") and "values" not in result.result


def test_a_call_in_a_thread_is_in_the_record(server: Server) -> None:
    result = step(
        """
        from concurrent.futures import ThreadPoolExecutor
        ThreadPoolExecutor(2).submit(kizen.api.post, "/x", json={"n": 1})
        """,
        api_url=server.url,
    )
    assert [(entry["method"], entry["responseStatusCode"]) for entry in result.http] == [("POST", 200)]
    assert result.result["ok"]


@pytest.mark.parametrize(
    "script",
    [
        "import threading\nthreading.Thread(target=lambda: 1 / 0).start()",
        "import atexit\natexit.register(lambda: 1 / 0)",
        "import atexit, sys\natexit.register(sys.exit, 5)",
    ],
)
def test_an_exception_outside_the_body_is_printed_and_does_not_fail_the_step(script: str) -> None:
    result = step(script + "\noutputs.n = 1", output_types={"n": "n"})
    assert result.values == {"n": {"t": "n", "v": "1"}}
    assert "ZeroDivisionError" in result.err or "SystemExit" in result.err


def test_sys_exit_in_a_thread_ends_only_the_thread() -> None:
    result = step("import sys, threading\nthreading.Thread(target=sys.exit, args=(5,)).start()")
    assert result.result["ok"] and result.returncode == 0


def test_a_daemon_thread_is_not_joined() -> None:
    result = step("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\noutputs.n = 1", output_types={"n": "n"})
    assert result.values and result.returncode == 0


def test_files_are_flushed() -> None:
    result = step(
        """
        import gzip, os, threading
        text = open("/dev/stdout", "w"); text.write("text ")
        read, write = os.pipe()
        def copy():
            with open(read) as source: os.write(2, source.read().encode())
        threading.Thread(target=copy, daemon=True).start()
        cycle = [open(write, "w")]; cycle.append(cycle); cycle[0].write("through a pipe"); del cycle
        print("printed", end="")
        """
    )
    assert "text " in result.out and result.out.endswith("printed")


def test_the_harness_reports_what_delays_the_end() -> None:
    result = step(
        """
        import atexit, threading, time
        stop = threading.Event()
        threading._register_atexit(stop.set)
        threading.Thread(target=stop.wait, name="sleeper").start()
        threading.Thread(target=stop.wait, daemon=True).start()
        atexit.register(print)
        raise ValueError("no")
        """
    )
    first, second = result.of("ending")
    assert [name for _, name in first["threads"]] == ["sleeper"] and int(first["threads"][0][0], 16)
    assert second["handlers"] and first["error"] == second["error"] == "ValueError: no" and "line 8" in first["detail"]


def test_a_signal_handler_that_raises_at_the_end_does_not_fail_the_step() -> None:
    result = step(
        """
        import signal, threading, time
        def late(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        threading.Thread(target=lambda: (time.sleep(0.3), outputs.log("done"))).start()
        """
    )
    assert result.result["ok"] and result.logs == ["done"]


# processes


def test_a_forked_child_logs_but_sends_no_result() -> None:
    result = step(
        """
        import os
        child = os.fork()
        if child == 0:
            outputs.log("from the child")
            outputs.n = 13
            raise SystemExit  # runs off the end of the body, as the parent does
        outputs.log(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        child = os.fork()
        if child == 0:
            import atexit
            atexit.register(outputs.log, "the child's handler")
            raise ValueError("in the child")
        outputs.log(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        outputs.n = 7
        """,
        output_types={"n": "n"},
    )
    assert result.logs == ["from the child", "0", "the child's handler", "1"] and result.values["n"]["v"] == "7"
    assert "ValueError: in the child" in result.err and "kizen_runtime" not in result.err


WAYS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("way", WAYS)
def test_children_log_and_call_as_the_step_does(way: str, server: Server) -> None:
    result = step(
        f"""
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        import requests

        def work(n):
            outputs.log(f"{{inputs.name}} {{n}} {{secrets['s']}}")
            print("printed in a child")
            assert kizen.api.post("/x", json=n).status_code == 200
            return requests.get({server.url!r} + "/y").status_code

        if __name__ == "__main__":
            with get_context({way!r}).Pool(2) as pool:
                outputs.log(pool.map(work, [1, 2]))
            with ProcessPoolExecutor(2, mp_context=get_context({way!r})) as pool:
                outputs.log(list(pool.map(work, [3])))
        """,
        api_url=server.url,
        inputs={"name": {"t": "s", "v": "input"}},
        secrets={"s": "hidden-value"},
    )
    assert result.result["ok"], (result.result.get("error"), result.result.get("detail"), result.err)
    assert sorted(result.logs[:2]) == ["input 1 [REDACTED]", "input 2 [REDACTED]"]
    assert result.logs[2:] == ["[200, 200]", "input 3 [REDACTED]", "[200]"]
    assert sorted((entry["method"], entry["responseStatusCode"]) for entry in result.http) == [("GET", 200)] * 3 + [("POST", 200)] * 3
    assert "printed in a child" in result.out


@pytest.mark.parametrize("way", WAYS)
def test_a_started_process_ends_like_any_program(way: str) -> None:
    result = step(
        f"""
        import threading, time
        from multiprocessing import get_context
        def later():
            time.sleep(0.2)
            outputs.log("done")
        def work(): threading.Thread(target=later).start()
        if __name__ == "__main__":
            child = get_context({way!r}).Process(target=work)
            child.start(); child.join()
            outputs.log(child.exitcode)
        """
    )
    assert result.logs == ["done", "0"]


def test_a_pool_without_a_context_needs_no_guard() -> None:
    result = step("import multiprocessing\nwith multiprocessing.Pool(2) as pool: outputs.log(pool.map(abs, [-1, -2]))")
    assert result.logs == ["[1, 2]"]


@pytest.mark.parametrize("way", ["", *WAYS])
def test_a_pool_of_a_method_that_was_set_runs_functions_of_the_step(way: str) -> None:
    result = step(
        f"""
        import multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor
        factor = int(inputs.n)
        def work(n):
            outputs.log("working")
            return factor * n
        def main():
            if {way!r}: multiprocessing.set_start_method({way!r})
            with multiprocessing.Pool(2) as pool: outputs.log(pool.map(work, [1]))
            with ProcessPoolExecutor(2) as pool: outputs.log(list(pool.map(work, [2])))
        if __name__ == "__main__": main()
        """,
        inputs={"n": {"t": "n", "v": "3"}},
    )
    assert result.logs == ["working", "[3]", "working", "[6]"], result.err


def test_starting_processes_while_the_source_is_imported_says_what_to_do() -> None:
    result = step("from multiprocessing import get_context\np = get_context('spawn').Process(target=abs, args=(1,))\np.start(); p.join(); outputs.log(p.exitcode)")
    assert result.logs == ["1"] and "if __name__ == '__main__':" in result.err


def test_frames_of_many_processes_and_threads_arrive_whole() -> None:
    result = step(
        """
        import os, signal, threading
        def work(n):
            for i in range(40): outputs.log(f"{n}:{i}" + "x" * 6000)
        def child(n):
            threads = [threading.Thread(target=work, args=(f"{n}{k}",)) for k in "ab"]
            [t.start() for t in threads]; [t.join() for t in threads]
            os._exit(0)
        children = []
        for n in range(4):
            children.append(os.fork())
            if children[-1] == 0: child(n)
        killed = os.fork()
        if killed == 0:
            while True: outputs.log("killed in the middle" + "x" * 6000)
        work("p")
        os.kill(killed, signal.SIGKILL)
        for pid in [*children, killed]: os.waitpid(pid, 0)
        """,
        limits={**LIMITS, "log_total": 10**9},
    )
    told = {message for message in result.logs if not message.startswith("killed")}
    assert told == {f"{n}:{i}" + "x" * 6000 for n in ("p", *(f"{n}{k}" for n in range(4) for k in "ab")) for i in range(40)}
    assert result.result["ok"]


def test_a_fork_while_another_thread_logs_does_not_hang() -> None:
    result = step(
        """
        import os, threading
        stop = threading.Event()
        def chat():
            while not stop.is_set(): outputs.log("x" * 3000)
        threads = [threading.Thread(target=chat) for _ in range(3)]
        [t.start() for t in threads]
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                outputs.log("child")
                os._exit(0)
            os.waitpid(pid, 0)
        stop.set()
        """,
        limits={**LIMITS, "log_total": 10**9},
    )
    assert result.logs.count("child") == 30


@pytest.mark.parametrize("end, counted", [("os._exit(0)", 6 + 64), ("raise SystemExit", 6 + 100), ("raise ValueError", 6 + 100)])
def test_a_child_counts_what_it_drops(end: str, counted: int) -> None:
    result = step(
        f"""
        import os
        for _ in range(7): outputs.log("x" * 100)
        if os.fork() == 0:
            for _ in range(100): outputs.log("x")
            {end}
        os.wait()
        """,
        limits={**LIMITS, "log_total": 100},
    )
    frames = result.of("logs_dropped")
    assert sum(frame["c"] for frame in frames) == counted
    assert len(frames) <= 12  # not one report for each message


# the source


def test_the_source_can_be_read_from_file() -> None:
    script = (
        "import inspect, os, stat\n"
        "def f(): return 1\n"
        "class C: pass\n"
        "assert open(__file__).read() == inspect.getsource(__import__('__main__'))\n"
        "assert not os.stat(__file__).st_mode & 0o222\n"
        "outputs.log(inspect.getsource(f)); outputs.log(inspect.getsource(C))\n"
        "os.chdir('/'); outputs.log(len(open(__file__).read()))\n"
    )
    assert step(script).logs == ["def f(): return 1\n", "class C: pass\n", str(len(script))]
