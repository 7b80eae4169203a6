"""HTTP/1.1 for an application, over any trio stream: one state machine per connection.

h11 holds the protocol's state, this file moves the bytes: keep-alive, streamed bodies both ways,
`100 Continue`, hijacked connections, and a watch on clients that leave while a response is being
streamed. Law: whatever a client does, only its own connection ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from email.utils import formatdate
from fcntl import ioctl
from functools import partial
from http import HTTPStatus
from struct import unpack
from typing import cast

import h11
import trio

from orchestra.wire.message import (
    App,
    BodyTooLarge,
    Disconnected,
    Hijack,
    Request,
    Response,
)
from orchestra.wire.prefixed import PrefixedStream

log = logging.getLogger(__name__)

HEAD_LIMIT = 64 << 10
READ = 64 << 10
READ_BODY = 256 << 10
DRAIN_LIMIT = 1 << 30  # of an unread request body, before the answer; beyond it we hang up
PIPELINE_LIMIT = 64 << 10
LINGER = 2.0  # seconds that a hijacked stream's client has to close its side
SIOCOUTQ = 0x5411  # unix(7): bytes that the peer has not read yet


async def serve_http(
    listeners: Sequence[trio.SocketListener],
    app: App,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on the listeners until cancelled; connections are served side by side."""
    await trio.serve_listeners(
        partial(serve_connection, app=app), list(listeners), task_status=task_status
    )


async def serve_connection(stream: trio.abc.HalfCloseableStream, app: App) -> None:
    """Serve one connection until either side ends it; the stream is closed afterwards."""
    connection = _Connection(stream)
    try:
        while await connection.exchange(app):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError, Disconnected):
        pass  # the client left: nobody is there to be told
    except h11.RemoteProtocolError as error:
        await connection.refuse(error)
    except Exception:
        log.exception("a connection ended by a defect of ours")
    finally:
        await trio.aclose_forcefully(stream)


class _RequestBody:
    """The body of the request at hand; parsed as it is read, never held whole."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self.ended:
            event = await self._connection.next_event(READ_BODY)
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                self.ended = True

    async def read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self._chunks():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"the request's body is longer than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    async def drain(self) -> None:
        """Read what the application left: many clients read no answer before they sent all."""
        size = 0
        while not self.ended and size < DRAIN_LIMIT:
            if self._connection.machine.they_are_waiting_for_100_continue:
                return
            async for chunk in self._chunks():
                size += len(chunk)
                if size >= DRAIN_LIMIT:
                    return


class _Connection:
    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.machine = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)

    async def next_event(self, size: int) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.machine.next_event()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            if self.machine.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            data = bytes(await self.stream.receive_some(size))
            if not data and self.machine.their_state is h11.SEND_BODY:
                raise Disconnected("the client left in the middle of its request")
            self.machine.receive_data(data)

    async def send(self, *events: h11.Event) -> None:
        pieces = [p for e in events for p in self.machine.send_with_data_passthrough(e) or ()]
        if sum(map(len, pieces)) <= READ:
            await self.stream.send_all(b"".join(pieces))
        else:
            for piece in pieces:
                await self.stream.send_all(piece)

    async def exchange(self, app: App) -> bool:
        """Serve one request; False where the connection is over."""
        event = await self.next_event(READ)
        if not isinstance(event, h11.Request):
            return False
        path, _, query = event.target.decode("latin-1").partition("?")
        body = _RequestBody(self)
        request = Request(
            method=event.method.decode("ascii"),
            path=path,
            query=query,
            headers={k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers},
            body=body,
        )
        try:
            reply = await app(request)
        except (h11.RemoteProtocolError, trio.BrokenResourceError, Disconnected):
            raise
        except Exception:
            log.exception("%s %s failed by a defect of ours", request.method, request.path)
            reply = Response(500, (("Content-Type", "text/plain"),), b"internal error\n")
        await body.drain()
        if isinstance(reply, Hijack):
            await self.hijack(request, reply)
            return False
        await self.respond(reply, only_head=request.method == "HEAD")
        if (self.machine.our_state, self.machine.their_state) != (h11.DONE, h11.DONE):
            return False
        self.machine.start_next_cycle()
        return True

    async def respond(self, reply: Response, only_head: bool = False) -> None:
        headers: list[tuple[str, str]] = [*reply.headers, ("Date", http_date())]
        if isinstance(reply.body, bytes):
            if reply.status >= 200 and reply.status not in (204, 304):
                headers.append(("Content-Length", str(len(reply.body))))
            head = _head(reply.status, headers)
            content = [h11.Data(data=reply.body)] if reply.body and not only_head else []
            await self.send(head, *content, h11.EndOfMessage())
            return
        headers.append(("Transfer-Encoding", "chunked"))
        try:
            # The head goes out before the first chunk exists: `docker run` starts the container
            # only after it has seen the head of /wait.
            await self.send(_head(reply.status, headers))
            if not only_head and not await self.watched(partial(self.stream_body, reply.body)):
                raise Disconnected("the client left during the response")
            await self.send(h11.EndOfMessage())
        finally:
            close = getattr(reply.body, "aclose", None)
            if close is not None:
                with trio.CancelScope(shield=True):
                    await close()

    async def stream_body(self, body: AsyncIterator[bytes]) -> None:
        async for chunk in body:
            if chunk:
                await self.send(h11.Data(data=chunk))

    async def watched(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Run `work` and cancel it as soon as the client leaves; True where it ended by itself."""
        early: list[bytes] = []
        finished = False
        failure: Exception | None = None

        async def watch(scope: trio.CancelScope) -> None:
            # Bytes that come now are the next, pipelined request.
            while sum(map(len, early)) < PIPELINE_LIMIT:
                try:
                    data = bytes(await self.stream.receive_some(READ))
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    scope.cancel()
                    return
                early.append(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            try:
                await work()
                finished = True
            except Exception as error:
                failure = error  # raised outside the nursery: there it would come in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        for data in early:
            self.machine.receive_data(data)
        return finished

    async def hijack(self, request: Request, reply: Hijack) -> None:
        if request.upgrade:
            status = "101 UPGRADED"
            headers = (*reply.headers, ("Connection", "Upgrade"), ("Upgrade", "tcp"))
        else:
            status = "200 OK"
            headers = reply.headers
        # Written by hand: h11 would frame the 200 form, which Docker's has not.
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await _taken_by_peer(self.stream)
        leftover = self.machine.trailing_data[0]
        stream = PrefixedStream(self.stream, leftover) if leftover else self.stream
        await reply.run(stream)
        # The peer learns the end by our half-close; closing with its bytes unread would reach it
        # as a reset instead (unix(7) sockets too).
        with trio.move_on_after(LINGER):
            await self.stream.send_eof()
            while await self.stream.receive_some(READ_BODY):
                pass

    async def refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP, where an answer is still possible; then the stream closes."""
        if self.machine.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        text = f"this is not HTTP/1.1: {error}\n".encode()
        with trio.move_on_after(LINGER):
            try:
                await self.respond(
                    Response(
                        error.error_status_hint,
                        (("Content-Type", "text/plain"), ("Connection", "close")),
                        text,
                    )
                )
            except (trio.BrokenResourceError, h11.LocalProtocolError):
                return


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)


async def _taken_by_peer(stream: trio.abc.Stream) -> None:
    """Wait, for 20 ms at most, until the peer has read what was sent.

    docker-py reads the raw socket beneath a buffered reader: output that arrives in the same
    recv(2) as the head would be lost to it.
    """
    if not isinstance(stream, trio.SocketStream):
        return
    for attempt in range(60):
        (waiting,) = unpack("i", ioctl(stream.socket.fileno(), SIOCOUTQ, b"\0" * 4))
        if not waiting:
            return
        # A client that waits takes it within some 100 us: shorter than a sleep can be.
        await (trio.lowlevel.checkpoint() if attempt < 40 else trio.sleep(0.001))


_date: tuple[int, str] = (0, "")


def http_date() -> str:
    """The time now, as HTTP writes it (RFC 9110, 5.6.7); made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]
