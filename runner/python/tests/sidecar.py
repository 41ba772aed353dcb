"""Replaces the sidecar in tests: starts the harness as Go does, sends a job, and collects the frames."""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).parent.parent
LIMITS = {
    "log_message": 8192,
    "log_total": 102400,
    "http_entries": 100,
    "request_body": 8192,
    "response_body": 1024,
    "result": 6291456,
}


@functools.cache
def compiled_bundle(python: str) -> bytes:
    return subprocess.run([python, "-I", "-S", "-c", (PYTHON / "bundle.py").read_text()], input=bundle(), stdout=subprocess.PIPE, check=True).stdout


def bundle() -> bytes:
    fields = [b"src\n"]
    for path in sorted((PYTHON / "kizen_runtime").glob("*.py")):
        for field in (f"kizen_runtime/{path.name}".encode(), path.read_bytes()):
            fields += [struct.pack(">I", len(field)), field]
    return b"".join(fields)


class Result:
    def __init__(self, frames: list[dict[str, Any]], process: subprocess.Popen[str], out: str, err: str) -> None:
        self.frames = frames
        self.returncode = process.returncode
        self.out, self.err = out, err

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["k"] == kind]

    @property
    def logs(self) -> list[str]:
        return [frame["m"] for frame in self.of("log")]

    @property
    def http(self) -> list[dict[str, Any]]:
        entries = {(frame["p"], frame["i"]): frame["e"] for frame in self.of("http")}
        return list(entries.values())

    @property
    def result(self) -> dict[str, Any]:
        (frame,) = self.of("result")
        return frame

    @property
    def values(self) -> dict[str, Any]:
        assert self.result["ok"], self.result
        return self.result["values"]


def job(script: str, **fields: Any) -> dict[str, Any]:
    return {
        "execution_id": "exec-1",
        "path": "script.py",
        "script": script,
        "filename": "script.py",
        "inputs": {},
        "output_types": {},
        "secrets": {},
        "api_url": "http://127.0.0.1:9/cap-7f3a",
        "api_root": "https://app.go.kizen.com/api",
        "nonce": "nonce-1",
        "traceparent": "",
        "limits": LIMITS,
        **fields,
    }


def run(script: str, *, python: str = sys.executable, timeout: float = 60, env: dict[str, str] | None = None, **fields: Any) -> Result:
    pairs = [socket.socketpair(), socket.socketpair(type=socket.SOCK_SEQPACKET), socket.socketpair()]
    ours = [pair[0] for pair in pairs]
    descriptors = _in_a_row([pair[1] for pair in pairs])
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8", **(env or {})}
    command = [python, "-I", "-S", *(f"-W{option}" for option in sys.warnoptions), "-c", (PYTHON / "loader.py").read_text(), str(descriptors[0])]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, pass_fds=descriptors, env=environment, cwd="/tmp", text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for descriptor in descriptors:
            os.close(descriptor)
        events: list[dict[str, Any]] = []
        follower = threading.Thread(target=lambda: events.extend(datagrams(ours[1])))
        follower.start()
        try:
            ours[0].settimeout(timeout)
            send(ours[0], compiled_bundle(python))
            send(ours[0], json.dumps(job(script, **{"path": f"{folder}/script.py", **fields})).encode())
            frames = list(receive(ours[0]))
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
            follower.join()
            for end in ours:
                end.close()
    return Result([*events, *frames], process, out, err)


def _in_a_row(sockets: list[socket.socket]) -> list[int]:
    """Returns the sockets as consecutive descriptors, as the sidecar passes them."""
    first = next(fd for fd in range(20, 900, 3) if not any(os.path.exists(f"/proc/self/fd/{fd + i}") for i in range(3)))
    for index, end in enumerate(sockets):
        os.dup2(end.fileno(), first + index)
        end.close()
    return [first, first + 1, first + 2]


def datagrams(connection: socket.socket) -> Any:
    while body := connection.recv(1 << 20):
        yield json.loads(body)


def send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(struct.pack(">I", len(payload)) + payload)


def receive(connection: socket.socket) -> Any:
    with connection.makefile("rb") as stream:
        while header := stream.read(4):
            yield json.loads(stream.read(*struct.unpack(">I", header)))
