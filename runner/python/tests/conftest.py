"""Shared by the tests: the harness on the import path, and a server that keeps every byte that it receives."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


class Server:
    """Sends prepared responses in order, repeats the last one, and keeps the requests as bytes."""

    def __init__(self) -> None:
        self.answers = [answer(b"{}", "Content-Type: application/json")]
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._accept)

    @property
    def targets(self) -> list[str]:
        """Returns the targets of the request lines."""
        return [head.split(b"\r\n")[0].decode("latin-1").split(" ", 1)[1].rpartition(" ")[0] for head in self.heads]

    def header(self, index: int, name: str) -> str | None:
        for line in self.heads[index].decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name.lower():
                return value
        return None

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in self._threads:
            thread.join()

    def _start(self, run, *args) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while head := _head(stream):
                    body = _body(head, stream)
                    with self._lock:
                        self.heads.append(head)
                        self.bodies.append(body)
                        response = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    if response is None:
                        return
                    connection.sendall(response)
                    if b"\r\nConnection: close\r\n" in response:
                        return
            except OSError:
                pass


def _head(stream) -> bytes:  # type: ignore[no-untyped-def]
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _body(head: bytes, stream) -> bytes:  # type: ignore[no-untyped-def]
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        chunks = []
        while size := int(stream.readline(), 16):
            chunks.append(stream.read(size))
            stream.readline()
        stream.readline()
        return b"".join(chunks)
    _, found, rest = lower.partition(b"content-length:")
    return stream.read(int(rest.split(b"\r\n")[0])) if found else b""


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
