"""The CLI's clients: blocking sockets and the stdlib, because `orchestra ps` must be quick.

`ClusterClient` mirrors `api.cluster.Cluster`, `DockerClient` speaks to one engine. Every request
has a connection of its own, so that a client may be used from several threads at once. Imports
neither trio nor h11 (a test says so).
"""

from __future__ import annotations

import calendar
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from attrs import frozen

from orchestra.api.refusal import refusal, target
from orchestra.model.codec import from_json, to_json
from orchestra.model.errors import Failed, Unavailable
from orchestra.model.task import TaskStatus
from orchestra.wire.frames import FrameDecoder
from orchestra.wire.jsonlines import LineDecoder

if TYPE_CHECKING:  # making these classes takes longer than asking for one of them
    from orchestra.model.cluster import (
        ControllerInfo,
        ImageNeed,
        NodeStatus,
        Plan,
        Progress,
        StackRecord,
    )
    from orchestra.model.event import Event
    from orchestra.model.node import Availability, InventoryNode
    from orchestra.model.service import Stack

Connect = Callable[[], socket.socket]
T = TypeVar("T")

READ = 64 << 10
READ_BODY = 256 << 10
HEAD_LIMIT = 64 << 10
NANO = 1_000_000_000


@contextmanager
def _translated() -> Iterator[None]:
    """What the network raises is Unavailable; a TimeoutError is the caller's own deadline."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unavailable(f"the connection to the server broke: {reason}") from error


class RawStream:
    """A hijacked connection: raw bytes both ways, of which the first may be here already."""

    def __init__(self, connection: socket.socket, leftover: bytes, multiplexed: bool) -> None:
        self.socket = connection
        self.multiplexed = multiplexed  # whether output comes in frames
        self._leftover = leftover

    def recv(self, size: int = READ) -> bytes:
        """b"" at the end."""
        if self._leftover:
            data, self._leftover = self._leftover[:size], self._leftover[size:]
            return data
        with _translated():
            return self.socket.recv(size)

    def send(self, data: bytes) -> None:
        with _translated():
            self.socket.sendall(data)

    def send_eof(self) -> None:
        """End our direction: the process's stdin ends, its output goes on."""
        with _translated():
            self.socket.shutdown(socket.SHUT_WR)

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield (1 stdout | 2 stderr, bytes) until the end; of a terminal everything is 1."""
        decoder = FrameDecoder()
        while data := self.recv(READ):
            if self.multiplexed:
                yield from decoder.feed(data)
            else:
                yield 1, data

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Reply:
    """An answer whose body is read from its connection as it is iterated."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        status, *lines = self._head().decode("latin-1").split("\r\n")
        self.status = int(status.split(" ", 2)[1])
        self.headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def _head(self) -> bytes:
        while True:
            head = self._until(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 100"):
                return head

    def _receive(self, size: int = READ) -> bytes:
        data = self._socket.recv(size)
        if not data:
            raise ConnectionResetError("the server hung up before its answer was complete")
        return data

    def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise ConnectionError("the server does not speak HTTP/1.1")
            self._buffer += self._receive()
        head = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return head

    def _take(self, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes, as they come."""
        while length:
            if self._buffer:
                data = bytes(self._buffer[:length])
                del self._buffer[:length]
            else:
                data = self._receive(min(length, READ_BODY))
            length -= len(data)
            yield data

    def __iter__(self) -> Iterator[bytes]:
        with _translated():
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                    yield from self._take(size)
                    self._until(b"\r\n")
                return
            if "content-length" in self.headers:
                yield from self._take(int(self.headers["content-length"]))
            elif self.status not in (204, 304):
                yield bytes(self._buffer)
                while data := self._socket.recv(READ_BODY):
                    yield data

    def read(self) -> bytes:
        return b"".join(self)

    def hijacked(self) -> RawStream:
        """Take over the connection after the head."""
        kind = self.headers.get("content-type", "")
        leftover = bytes(self._buffer)
        self._buffer.clear()
        return RawStream(self._socket, leftover, kind.endswith("multiplexed-stream"))


def _send(
    connection: socket.socket,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | Iterable[bytes],
) -> None:
    lines = [f"{method} {path} HTTP/1.1", "Host: orchestra"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if isinstance(body, bytes):
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if isinstance(body, bytes):
        connection.sendall(head + body)
        return
    connection.sendall(head)
    for chunk in body:
        if chunk:
            connection.sendall(b"%x\r\n" % len(chunk))
            connection.sendall(chunk)
            connection.sendall(b"\r\n")
    connection.sendall(b"0\r\n\r\n")


class HttpClient:
    """Requests over sockets that `connect` opens. What `connect` raises passes through."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def _ask(
        self,
        connection: socket.socket,
        method: str,
        path: str,
        query: Mapping[str, object],
        value: Any,
        body: bytes | Iterable[bytes],
        headers: Mapping[str, str],
    ) -> Reply:
        if value is not None:
            body = json.dumps(value).encode()
            headers = {"Content-Type": "application/json", **headers}
        with _translated():
            try:
                _send(connection, method, target(path, query), headers, body)
            except BrokenPipeError:
                pass  # a server that refuses a body early may have said why
            return Reply(connection)

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
        body: bytes | Iterable[bytes] = b"",
    ) -> Iterator[Reply]:
        """Send a request; the answer, which was no error, can be read within the context.

        `value` is sent as JSON, `body` (whole or in chunks) as it is. Raises the model's errors.
        """
        with self._connect() as connection:
            reply = self._ask(connection, method, path, query, value, body, {"Connection": "close"})
            if reply.status >= 400:
                raise refusal(reply.status, reply.read())
            yield reply

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
    ) -> Any:
        """The answer's JSON, None where it has no body."""
        with self.request(method, path, query=query, value=value) as reply:
            content = reply.read()
        return json.loads(content) if content.strip() else None

    def lines(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        body: bytes | Iterable[bytes] = b"",
    ) -> Iterator[Any]:
        """The values of a stream of JSON lines, as they arrive."""
        decoder = LineDecoder()
        with self.request(method, path, query=query, body=body) as reply:
            for chunk in reply:
                yield from decoder.feed(chunk)
            yield from decoder.end()

    def hijack(
        self,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
    ) -> RawStream:
        """POST and take over the connection."""
        connection = self._connect()
        try:
            upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
            reply = self._ask(connection, "POST", path, query, value, b"", upgrade)
            if reply.status != 101:
                raise refusal(reply.status, reply.read())
            return reply.hijacked()
        except BaseException:
            connection.close()
            raise


@frozen
class LogEntry:
    """A line of a container's log; `data` has its newline if the writer sent one."""

    stream: int  # 1 stdout, 2 stderr
    time_ns: int
    data: bytes


@lru_cache(maxsize=64)  # lines come by the thousand in one second
def _unix(text: bytes) -> int:
    return calendar.timegm(time.strptime(text.decode("ascii"), "%Y-%m-%dT%H:%M:%S"))


def _timed(stream: int, line: bytes) -> LogEntry:
    """Divide "2026-11-24T19:30:00.123456789Z text" into time and text."""
    stamp, _, data = line.partition(b" ")
    whole, _, fraction = stamp.removesuffix(b"Z").partition(b".")
    nanoseconds = int(fraction.ljust(9, b"0")[:9])
    return LogEntry(stream, _unix(whole) * NANO + nanoseconds, data)


class DockerClient(HttpClient):
    """One engine, through Docker's API: an agent's socket, or a tunnel to it."""

    def version(self) -> dict[str, Any]:
        return dict(self.json("GET", "/version"))

    def containers(
        self,
        all: bool = False,
        filters: Mapping[str, Sequence[str]] = {},
    ) -> list[dict[str, Any]]:
        """Rows as `docker ps` shows them."""
        query = {"all": all, "filters": json.dumps({k: list(v) for k, v in filters.items()})}
        return list(self.json("GET", "/containers/json", query=query))

    def inspect(self, ref: str) -> dict[str, Any]:
        return dict(self.json("GET", f"/containers/{quote(ref)}/json"))

    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float = 0.0,
        until: float = 0.0,
        stdout: bool = True,
        stderr: bool = True,
    ) -> Iterator[LogEntry]:
        """The container's log lines with their times; `follow` ends when the container stops."""
        query = {
            "follow": follow,
            "tail": "all" if tail is None else tail,
            "since": since or None,
            "until": until or None,
            "stdout": stdout,
            "stderr": stderr,
            "timestamps": True,
        }
        with self.request("GET", f"/containers/{quote(ref)}/logs", query=query) as reply:
            if reply.headers.get("content-type", "").endswith("multiplexed-stream"):
                decoder = FrameDecoder()
                for chunk in reply:
                    for stream, line in decoder.feed(chunk):
                        yield _timed(stream, line)
                return
            rest = b""
            for chunk in reply:  # a terminal's: raw lines, all of them stdout
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield _timed(1, line + b"\n")
            if rest:
                yield _timed(1, rest)

    def exec_create(
        self,
        ref: str,
        args: Sequence[str],
        *,
        tty: bool = False,
        stdin: bool = False,
        env: Sequence[str] = (),
        user: str = "",
        working_dir: str = "",
        privileged: bool = False,
        detach_keys: str = "",
    ) -> str:
        """The id of a new exec in a running container."""
        value = {
            "Cmd": list(args),
            "Tty": tty,
            "AttachStdin": stdin,
            "AttachStdout": True,
            "AttachStderr": True,
            "Env": list(env),
            "User": user,
            "WorkingDir": working_dir,
            "Privileged": privileged,
            "DetachKeys": detach_keys,
        }
        return str(self.json("POST", f"/containers/{quote(ref)}/exec", value=value)["Id"])

    def exec_start(
        self, exec_id: str, *, tty: bool = False, console_size: tuple[int, int] | None = None
    ) -> RawStream:
        """Start it and take its streams; the exit code is in `exec_inspect` afterwards."""
        value: dict[str, Any] = {"Detach": False, "Tty": tty}
        if console_size is not None:
            value["ConsoleSize"] = list(console_size)
        return self.hijack(f"/exec/{exec_id}/start", value=value)

    def exec_resize(self, exec_id: str, rows: int, columns: int) -> None:
        self.json("POST", f"/exec/{exec_id}/resize", query={"h": rows, "w": columns})

    def exec_inspect(self, exec_id: str) -> dict[str, Any]:
        return dict(self.json("GET", f"/exec/{exec_id}/json"))

    def attach(
        self,
        ref: str,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        logs: bool = False,
        detach_keys: str = "",
    ) -> RawStream:
        query = {
            "stream": True,
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "logs": logs,
            "detachKeys": detach_keys or None,
        }
        return self.hijack(f"/containers/{quote(ref)}/attach", query=query)

    def resize(self, ref: str, rows: int, columns: int) -> None:
        self.json("POST", f"/containers/{quote(ref)}/resize", query={"h": rows, "w": columns})

    def events(
        self,
        since: float = 0.0,
        until: float = 0.0,
        filters: Mapping[str, Sequence[str]] = {},
    ) -> Iterator[dict[str, Any]]:
        query = {
            "since": since or None,
            "until": until or None,
            "filters": json.dumps({k: list(v) for k, v in filters.items()}),
        }
        return self.lines("GET", "/events", query=query)

    # images

    def images(
        self,
        filters: Mapping[str, Sequence[str]] = {},
    ) -> list[dict[str, Any]]:
        query = {"filters": json.dumps({k: list(v) for k, v in filters.items()})}
        return list(self.json("GET", "/images/json", query=query))

    def image(self, ref: str) -> dict[str, Any]:
        return dict(self.json("GET", f"/images/{quote(ref)}/json"))

    def load(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """Load an archive; yields the server's sentences ("Loaded image: busybox:latest")."""
        for value in self.lines("POST", "/images/load", query={"quiet": True}, body=chunks):
            if "error" in value:
                raise Failed(value["error"])
            if text := value.get("stream", "").strip():
                yield text

    def import_rootfs(
        self, chunks: Iterable[bytes], name: str, changes: Sequence[str] = (), message: str = ""
    ) -> str:
        """Make a one-layer image from a root file system's tar; its id."""
        query = {"fromSrc": "-", "repo": name, "changes": list(changes), "message": message}
        image = ""
        for value in self.lines("POST", "/images/create", query=query, body=chunks):
            if "error" in value:
                raise Failed(value["error"])
            image = value.get("status", image)
        return image

    def save(self, refs: Sequence[str]) -> Iterator[bytes]:
        """The chunks of an archive of the images."""
        with self.request("GET", "/images/get", query={"names": list(refs)}) as reply:
            yield from reply

    def tag(self, ref: str, repository: str, tag: str = "") -> None:
        query = {"repo": repository, "tag": tag}
        self.json("POST", f"/images/{quote(ref)}/tag", query=query)

    def remove_image(self, ref: str, force: bool = False) -> list[dict[str, str]]:
        """What was untagged and deleted."""
        return list(self.json("DELETE", f"/images/{quote(ref)}", query={"force": force}))


class ClusterClient(HttpClient):
    """The controller: the methods of `api.cluster.Cluster`, blocking."""

    def __init__(self, connect: Connect) -> None:
        super().__init__(connect)
        self.images = DockerClient(connect)  # the controller's own store

    def _get(self, kind: type[T], path: str) -> T:
        return from_json(kind, self.json("GET", f"/orchestra/v1/{path}"), path)

    def info(self) -> ControllerInfo:
        from orchestra.model.cluster import ControllerInfo

        return self._get(ControllerInfo, "info")

    def nodes(self) -> Sequence[NodeStatus]:
        from orchestra.model.cluster import NodeStatus

        return self._get(tuple[NodeStatus, ...], "nodes")

    def put_node(self, node: InventoryNode) -> NodeStatus:
        from orchestra.model.cluster import NodeStatus

        path = f"/orchestra/v1/nodes/{quote(node.name)}"
        return from_json(NodeStatus, self.json("PUT", path, value=to_json(node)))

    def remove_node(self, name: str, force: bool = False) -> None:
        self.json("DELETE", f"/orchestra/v1/nodes/{quote(name)}", query={"force": force})

    def set_availability(self, name: str, availability: Availability) -> None:
        path = f"/orchestra/v1/nodes/{quote(name)}/availability"
        self.json("POST", path, value={"availability": availability.value})

    def set_labels(self, name: str, labels: Mapping[str, str | None]) -> None:
        """None removes a label."""
        self.json("POST", f"/orchestra/v1/nodes/{quote(name)}/labels", value=dict(labels))

    def tunnel(self, node: str) -> socket.socket:
        """A raw stream to the agent's socket of that node, as if it were here."""
        # An agent never speaks first: nothing can have come behind the head.
        return self.hijack(f"/orchestra/v1/nodes/{quote(node)}/tunnel").socket

    def engine(self, node: str) -> DockerClient:
        """The engine of that node, through the controller."""
        return DockerClient(lambda: self.tunnel(node))

    def stacks(self) -> Sequence[StackRecord]:
        from orchestra.model.cluster import StackRecord

        return self._get(tuple[StackRecord, ...], "stacks")

    def stack(self, name: str) -> StackRecord:
        from orchestra.model.cluster import StackRecord

        return self._get(StackRecord, f"stacks/{quote(name)}")

    def image_needs(self, stack: Stack) -> Sequence[ImageNeed]:
        from orchestra.model.cluster import ImageNeed

        answer = self.json("POST", "/orchestra/v1/image-needs", value=to_json(stack))
        return from_json(tuple[ImageNeed, ...], answer, "image-needs")

    def plan(self, stack: Stack) -> Plan:
        from orchestra.model.cluster import Plan

        return from_json(Plan, self.json("POST", "/orchestra/v1/plan", value=to_json(stack)))

    def apply(self, stack: Stack, generation: int | None = None) -> int:
        """Make `stack` desired; the new generation. Conflict where the state moved since."""
        value = {"stack": to_json(stack), "generation": generation}
        return int(self.json("POST", "/orchestra/v1/apply", value=value)["generation"])

    def remove_stack(self, name: str, volumes: bool = False) -> None:
        self.json("DELETE", f"/orchestra/v1/stacks/{quote(name)}", query={"volumes": volumes})

    def scale(self, name: str, replicas: Mapping[str, int]) -> None:
        self.json("POST", f"/orchestra/v1/stacks/{quote(name)}/scale", value=dict(replicas))

    def stop_services(self, name: str, services: Sequence[str]) -> None:
        self._services(name, "stop", services)

    def start_services(self, name: str, services: Sequence[str]) -> None:
        self._services(name, "start", services)

    def restart_services(self, name: str, services: Sequence[str]) -> None:
        self._services(name, "restart", services)

    def _services(self, name: str, verb: str, services: Sequence[str]) -> None:
        path = f"/orchestra/v1/stacks/{quote(name)}/{verb}"
        self.json("POST", path, value={"services": list(services)})

    def tasks(self, name: str) -> Sequence[TaskStatus]:
        return self._get(tuple[TaskStatus, ...], f"stacks/{quote(name)}/tasks")

    def progress(self, name: str) -> Iterator[Progress]:
        """Live progress until converged, failed or removed."""
        from orchestra.model.cluster import Progress

        for value in self.lines("GET", f"/orchestra/v1/stacks/{quote(name)}/progress"):
            yield from_json(Progress, value)

    def events(self) -> Iterator[Event]:
        from orchestra.model.event import Event

        for value in self.lines("GET", "/orchestra/v1/events"):
            yield from_json(Event, value)

    def adopt(self) -> Sequence[str]:
        """What was taken over from the nodes, as text."""
        return tuple(self.json("POST", "/orchestra/v1/adopt")["adopted"])
