"""Plays the sidecar in tests: starts the harness as Go does, sends a job, collects the frames."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
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
        entries = {frame["i"]: frame["e"] for frame in self.of("http")}
        return [entries[index] for index in sorted(entries)]

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
    ours, theirs = socket.socketpair()
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8", **(env or {})}
    command = [python, "-I", "-S", *(f"-W{option}" for option in sys.warnoptions), "-c", (PYTHON / "loader.py").read_text(), str(theirs.fileno())]
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], env=environment, cwd="/tmp", text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    theirs.close()
    try:
        with ours:
            ours.settimeout(timeout)
            send(ours, bundle())
            send(ours, json.dumps(job(script, **fields)).encode())
            frames = list(receive(ours))
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return Result(frames, process, out, err)


def send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(struct.pack(">I", len(payload)) + payload)


def receive(connection: socket.socket) -> Any:
    with connection.makefile("rb") as stream:
        while header := stream.read(4):
            yield json.loads(stream.read(*struct.unpack(">I", header)))
