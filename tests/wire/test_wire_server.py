"""The HTTP server on real sockets: what a client sends, and what comes back byte for byte."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import trio

from orchestra.wire.client import HttpClient, Refused
from orchestra.wire.message import App, BodyTooLarge, Disconnected, Hijack, Request, Response
from orchestra.wire.server import serve_http


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[Callable[[], Coroutine[Any, Any, trio.SocketStream]]]:
    with tempfile.TemporaryDirectory(prefix="orchestra-wire-") as folder:
        path = f"{folder}/s"
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(path)
        sock.listen(100)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, [trio.SocketListener(sock)], app)

            async def connect() -> trio.SocketStream:
                return await trio.open_unix_socket(path)

            yield connect
            nursery.cancel_scope.cancel()


async def hello(request: Request) -> Response:
    return Response(200, (("Content-Type", "text/plain"),), b"hello")


async def raw(connect: Any, request: bytes) -> bytes:
    """Send bytes, end our side, return everything that comes back."""
    async with await connect() as stream:
        await stream.send_all(request)
        await stream.send_eof()
        return b"".join([chunk async for chunk in stream])


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(limited)


def test_requests_on_one_connection_are_answered_in_turn_also_pipelined() -> None:
    async def main() -> None:
        async with serving(hello) as connect:
            answer = await raw(connect, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
            assert answer.count(b"HTTP/1.1 200") == 3
            assert answer.count(b"hello") == 3

    run(main)


def test_a_304_and_a_204_have_no_body_and_keep_the_connection() -> None:
    async def app(request: Request) -> Response:
        return Response(int(request.path[1:]))

    async def main() -> None:
        async with serving(app) as connect:
            requests = b"".join(
                b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % n for n in (304, 204)
            )
            answer = (await raw(connect, requests)).lower()
            assert answer.count(b"http/1.1") == 2
            assert b"content-length" not in answer
            assert b"transfer-encoding" not in answer

    run(main)


def test_head_has_the_length_and_no_body() -> None:
    async def main() -> None:
        async with serving(hello) as connect:
            answer = await raw(connect, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"Content-Length: 5" in answer
            assert answer.endswith(b"\r\n\r\n")

    run(main)


def test_the_head_of_a_stream_is_sent_before_its_first_chunk_exists() -> None:
    release = trio.Event()

    async def app(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            await release.wait()
            yield b"late"

        return Response(200, (), body())

    async def main() -> None:
        async with serving(app) as connect, HttpClient(connect).request("GET", "/") as answer:
            assert answer.status == 200
            release.set()
            assert await answer.read() == b"late"

    run(main)


def test_a_client_that_leaves_a_stream_ends_it_on_the_server() -> None:
    ended = trio.Event()

    async def app(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"one"
                await trio.sleep_forever()
            finally:
                ended.set()

        return Response(200, (), body())

    async def main() -> None:
        async with serving(app) as connect:
            async with await connect() as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await stream.receive_some()
            await ended.wait()

    run(main)


def test_a_request_pipelined_behind_a_stream_is_answered_after_it() -> None:
    async def app(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield request.path.encode()

        return Response(200, (), body())

    async def main() -> None:
        async with serving(app) as connect, await connect() as stream:
            await stream.send_all(b"GET /twice HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            seen = b""
            while seen.count(b"0\r\n\r\n") < 2:
                seen += await stream.receive_some()
            assert seen.count(b"/twice") == 2

    run(main)


def test_100_continue_is_said_only_when_the_body_is_wanted() -> None:
    async def app(request: Request) -> Response:
        if request.path == "/no":
            return Response(400, (), b"not wanted")
        return Response(200, (), await request.body.read(100))

    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"

    async def main() -> None:
        async with serving(app) as connect:
            async with await connect() as stream:
                await stream.send_all(head % b"/yes")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
                await stream.send_all(b"body")
                assert b"body" in await stream.receive_some()
            async with await connect() as stream:
                await stream.send_all(head % b"/no")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
                assert await stream.receive_some() == b""

    run(main)


def test_an_unread_body_is_drained_before_the_answer() -> None:
    async def main() -> None:
        async with serving(hello) as connect:
            client = HttpClient(connect)
            big = b"x" * (8 << 20)
            async with client.request("POST", "/", body=big) as answer:
                assert await answer.read() == b"hello"

    run(main)


def test_a_body_over_its_readers_limit_is_refused_there() -> None:
    async def app(request: Request) -> Response:
        try:
            await request.body.read(10)
        except BodyTooLarge:
            return Response(400, (), b"too large")
        return Response(200)

    async def main() -> None:
        async with (
            serving(app) as connect,
            HttpClient(connect).request("POST", "/", body=b"x" * 11) as answer,
        ):
            assert answer.status == 400

    run(main)


def test_bodies_stream_both_ways_through_a_full_exchange() -> None:
    async def app(request: Request) -> Response:
        size = 0
        async for chunk in request.body:
            size += len(chunk)
        assert size == 32 << 20

        async def body() -> AsyncIterator[bytes]:
            for _ in range(128):
                yield bytes(256 << 10)

        return Response(200, (), body())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield bytes(256 << 10)

    async def main() -> None:
        async with (
            serving(app) as connect,
            HttpClient(connect).request("PUT", "/", body=chunks()) as answer,
        ):
            assert sum([len(c) async for c in answer]) == 32 << 20

    run(main)


def test_a_defect_in_the_application_is_a_500_and_the_server_lives() -> None:
    async def app(request: Request) -> Response:
        if request.path == "/bad":
            raise ValueError("defect")
        return await hello(request)

    async def main() -> None:
        async with serving(app) as connect:
            client = HttpClient(connect)
            async with client.request("GET", "/bad") as answer:
                assert answer.status == 500
            async with client.request("GET", "/") as answer:
                assert answer.status == 200

    run(main)


def test_what_is_not_http_is_refused_and_the_server_lives() -> None:
    async def main() -> None:
        async with serving(hello) as connect:
            assert (await raw(connect, b"\x16\x03\x01 tls?\r\n\r\n")).startswith(b"HTTP/1.1 400")
            huge = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (80 << 10)
            assert (await raw(connect, huge)).startswith(b"HTTP/1.1 431")
            assert b"hello" in await raw(connect, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    run(main)


async def shout(stream: trio.abc.HalfCloseableStream) -> None:
    """Answer in capitals; after the client's half-close say goodbye."""
    async for data in stream:
        await stream.send_all(bytes(data).upper())
    await stream.send_all(b"BYE")


async def hijacking(request: Request) -> Hijack:
    await request.body.read(100)
    return Hijack(shout, (("Content-Type", "application/x"),))


def test_an_upgrade_answers_101_and_passes_on_what_came_early() -> None:
    async def main() -> None:
        async with serving(hijacking) as connect:
            request = (
                b"POST /attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                b"Content-Length: 2\r\n\r\n{}early"
            )
            answer = await raw(connect, request)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
            assert b"Upgrade: tcp" in head
            assert body == b"EARLYBYE"

    run(main)


def test_without_an_upgrade_header_the_raw_stream_follows_a_bare_200() -> None:
    async def main() -> None:
        async with serving(hijacking) as connect:
            request = b"POST /attach HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nabc"
            answer = await raw(connect, request)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"length" not in head.lower()
            assert b"chunked" not in head.lower()
            assert body == b"ABCBYE"

    run(main)


def test_the_clients_upgrade_gives_the_stream_or_the_refusal() -> None:
    async def app(request: Request) -> Response | Hijack:
        return await hijacking(request) if request.path == "/yes" else Response(404, (), b"no")

    async def main() -> None:
        async with serving(app) as connect:
            client = HttpClient(connect)
            stream = await client.upgrade("POST", "/yes")
            assert not isinstance(stream, Refused)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"X"
            await stream.send_eof()
            assert await stream.receive_some() == b"BYE"
            assert await stream.receive_some() == b""
            await stream.aclose()
            assert await client.upgrade("POST", "/no") == Refused(404, b"no")

    run(main)


def test_unread_input_does_not_turn_a_hijacked_streams_end_into_a_reset() -> None:
    async def end_at_once(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"done")

    async def app(request: Request) -> Hijack:
        return Hijack(end_at_once)

    async def main() -> None:
        async with serving(app) as connect:
            stream = await HttpClient(connect).upgrade("POST", "/")
            assert not isinstance(stream, Refused)
            await stream.send_all(b"never read")
            assert await stream.receive_some() == b"done"
            assert await stream.receive_some() == b""
            await stream.aclose()

    run(main)


def test_a_pooled_connection_that_the_server_closed_is_replaced() -> None:
    streams: list[trio.SocketStream] = []

    async def main() -> None:
        async with serving(hello) as connect:

            async def remembered() -> trio.SocketStream:
                streams.append(await connect())
                return streams[-1]

            client = HttpClient(remembered)
            for _ in range(2):
                async with client.request("GET", "/") as answer:
                    await answer.read()
            assert len(streams) == 1
            with socket.socket(fileno=os.dup(streams[0].socket.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)  # as if the server had ended it while idle
            async with client.request("GET", "/") as answer:
                assert await answer.read() == b"hello"
            assert len(streams) == 2
            await client.aclose()

    run(main)


def test_a_server_that_hangs_up_is_a_disconnection() -> None:
    async def app(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"some"
            raise trio.BrokenResourceError

        return Response(200, (), body())

    async def main() -> None:
        async with serving(app) as connect, HttpClient(connect).request("GET", "/") as answer:
            try:
                await answer.read()
            except Disconnected:
                return
            raise AssertionError("a cut answer was taken for a whole one")

    run(main)
