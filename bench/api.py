"""A client as quick as it can be: one kept connection, requests written by hand.

What is measured through it is the agent's time, not a client library's. `attach` and `exec_start`
take a connection of their own, as every client's do, because it becomes the stream.
"""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self


class Api:
    """Docker's API on a Unix socket; any answer of 400 or more raises RuntimeError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = self._connect()
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType
    ) -> None:
        self._socket.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self._socket.sendall(_request(method, path, body))
        head, self._data = _head(self._socket, self._data)
        content = self._content(head)
        if int(head.split(b" ", 2)[1]) >= 400:
            raise RuntimeError(f"{method} {path}: {content.decode()}")
        return json.loads(content) if content else None

    def start(self, container: str) -> None:
        """Ask for the start; `finish` reads the answer."""
        self._socket.sendall(_request("POST", f"/containers/{container}/start"))

    def finish(self) -> None:
        head, self._data = _head(self._socket, self._data)
        if int(head.split(b" ", 2)[1]) >= 400:
            raise RuntimeError(self._content(head).decode())

    def attach(self, container: str) -> socket.socket:
        """A stream of the container's output."""
        return self._hijack(f"/containers/{container}/attach?stream=1&stdout=1", None)

    def exec_start(self, exec_id: str) -> socket.socket:
        """The stream of an exec that starts now."""
        return self._hijack(f"/exec/{exec_id}/start", {"Detach": False, "Tty": False})

    def _hijack(self, path: str, body: Any) -> socket.socket:
        stream = self._connect()
        upgrade = "Upgrade: tcp\r\nConnection: Upgrade\r\n"
        stream.sendall(_request("POST", path, body, upgrade))
        head, rest = _head(stream, b"")
        if b" 101 " not in head or rest:
            raise RuntimeError(f"{path}: {head.decode()}{rest.decode()}")
        return stream

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(self._path)
        return connection

    def _content(self, head: bytes) -> bytes:
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            content = b""
            while size := int(self._until(b"\r\n"), 16):
                content += self._exactly(size + 2)[:-2]
            self._until(b"\r\n")
            return content
        if b"content-length: " not in lower:
            return b""
        return self._exactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += self._socket.recv(65536)
        content, self._data = self._data[:size], self._data[size:]
        return content

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._data += self._socket.recv(65536)
        found, _, self._data = self._data.partition(end)
        return found


def _request(method: str, path: str, body: Any = None, headers: str = "") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    if content or method == "POST":
        kind = "Content-Type: application/json\r\n" if content else ""
        headers += f"{kind}Content-Length: {len(content)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n".encode() + content


def _head(stream: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    while b"\r\n\r\n" not in data:
        received = stream.recv(65536)
        if not received:
            raise RuntimeError("the agent closed the connection")
        data += received
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n", rest
