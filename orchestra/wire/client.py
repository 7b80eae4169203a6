"""An HTTP/1.1 client over whatever opens a byte stream: a socket, an SSH channel, memory.

`HttpClient` keeps a few idle connections for requests that may be repeated; a POST always gets a
connection of its own, so that one lost to a restarted server is never sent twice. Bodies are
streamed both ways; `upgrade` gives the raw stream after `101`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import h11
import trio
from attrs import frozen

from orchestra.wire.message import BodyTooLarge, Disconnected, Headers, ProtocolViolation
from orchestra.wire.prefixed import PrefixedStream

Opener = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]

READ = 64 << 10
READ_BODY = 256 << 10
IDLE_LIMIT = 4
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class _Connection:
    def __init__(self, stream: trio.abc.HalfCloseableStream, host: str) -> None:
        self.stream = stream
        self.host = host
        self.machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 << 10)
        self.used = False

    async def send(self, *events: h11.Event) -> None:
        pieces = [p for e in events for p in self.machine.send_with_data_passthrough(e) or ()]
        if sum(map(len, pieces)) <= READ:
            await self.stream.send_all(b"".join(pieces))
        else:
            for piece in pieces:
                await self.stream.send_all(piece)

    async def next_event(self, size: int) -> h11.Event | type[h11.PAUSED]:
        data = b"?"
        try:
            while (event := self.machine.next_event()) is h11.NEED_DATA:
                data = bytes(await self.stream.receive_some(size))
                self.machine.receive_data(data)
        except h11.RemoteProtocolError as error:
            if not data:
                raise Disconnected("the server hung up before its answer was complete") from None
            raise ProtocolViolation(f"the server does not speak HTTP/1.1: {error}") from None
        except trio.BrokenResourceError as error:
            raise Disconnected(f"the connection to the server broke: {error}") from error
        return cast("h11.Event | type[h11.PAUSED]", event)

    async def head(self) -> h11.Response | h11.InformationalResponse:
        """Receive the answer's head, or a 101; other informational ones are skipped."""
        while True:
            event = await self.next_event(READ)
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return event
                continue
            raise Disconnected("the server hung up before it answered")

    async def request(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterable[bytes]
    ) -> h11.Response | h11.InformationalResponse:
        self.used = True
        all_headers = [("Host", self.host), *headers]
        if isinstance(body, bytes):
            if body or method in ("POST", "PUT"):
                all_headers.append(("Content-Length", str(len(body))))
        else:
            all_headers.append(("Transfer-Encoding", "chunked"))
        start = h11.Request(method=method, target=target, headers=all_headers)
        try:
            if isinstance(body, bytes):
                events: list[h11.Event] = [h11.Data(data=body)] if body else []
                await self.send(start, *events, h11.EndOfMessage())
            else:
                await self.send(start)
                async for chunk in body:
                    await self.send(h11.Data(data=chunk))
                await self.send(h11.EndOfMessage())
        except trio.BrokenResourceError:
            pass  # a server that refuses a body early may have said why: read its answer
        return await self.head()

    def reusable(self) -> bool:
        """Whether the exchange is over on both sides; an unread rest of the body makes it not."""
        if self.machine.their_state is h11.SEND_BODY:
            while isinstance(self.machine.next_event(), h11.Data):
                pass
        return self.machine.our_state is h11.DONE and self.machine.their_state is h11.DONE


class Answer:
    """A response. Its body is read from the connection as it is iterated."""

    def __init__(self, connection: _Connection, head: h11.Response) -> None:
        self._connection = connection
        self.status = head.status_code
        self.headers: Mapping[str, str] = {
            k.decode("latin-1"): v.decode("latin-1") for k, v in head.headers
        }

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            event = await self._connection.next_event(READ_BODY)
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def read(self, limit: int = 256 << 20) -> bytes:
        """Return the whole body; BodyTooLarge beyond `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self._chunks():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"the answer is longer than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)


@frozen
class Refused:
    """The server answered a request to upgrade with an ordinary response."""

    status: int
    body: bytes


class HttpClient:
    """Requests to the server that `host` names. Errors: WireError, and whatever `opener` raises."""

    def __init__(self, opener: Opener, host: str = "orchestra") -> None:
        self._opener = opener
        self._host = host
        self._idle: list[_Connection] = []

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Headers = (),
        body: bytes | AsyncIterable[bytes] = b"",
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer's body may be read within the context."""
        async with AsyncExitStack() as stack:
            connection, head = await self._send(stack, method, target, headers, body)
            if not isinstance(head, h11.Response):
                raise ProtocolViolation("the server switched protocols without being asked")
            answer = Answer(connection, head)
            yield answer
            if connection.reusable() and len(self._idle) < IDLE_LIMIT:
                connection.machine.start_next_cycle()
                self._idle.append(connection)
                stack.pop_all()

    async def _send(
        self,
        stack: AsyncExitStack,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | AsyncIterable[bytes],
    ) -> tuple[_Connection, h11.Response | h11.InformationalResponse]:
        repeatable = method in REPEATABLE and isinstance(body, bytes)
        while repeatable and self._idle:
            connection = self._idle.pop()
            try:
                head = await connection.request(method, target, headers, body)
            except Disconnected:
                # Closed while idle (the server restarted): the next one, at last a fresh one.
                await trio.aclose_forcefully(connection.stream)
                continue
            except BaseException:
                await trio.aclose_forcefully(connection.stream)
                raise
            stack.push_async_callback(trio.aclose_forcefully, connection.stream)
            return connection, head
        stream = await self._opener()
        stack.push_async_callback(trio.aclose_forcefully, stream)
        connection = _Connection(stream, self._host)
        return connection, await connection.request(method, target, headers, body)

    async def upgrade(
        self, method: str, target: str, *, headers: Headers = (), body: bytes = b""
    ) -> trio.abc.HalfCloseableStream | Refused:
        """Ask for the raw stream; its first bytes are those that came behind the head."""
        stream = await self._opener()
        connection = _Connection(stream, self._host)
        upgrade = (("Connection", "Upgrade"), ("Upgrade", "tcp"))
        try:
            head = await connection.request(method, target, (*headers, *upgrade), body)
            if isinstance(head, h11.Response):
                answer = await Answer(connection, head).read()
                await trio.aclose_forcefully(stream)
                return Refused(head.status_code, answer)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        leftover = connection.machine.trailing_data[0]
        return PrefixedStream(stream, leftover) if leftover else stream

    async def aclose(self) -> None:
        """Close the idle connections; requests in flight are their callers' own."""
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop().stream)
