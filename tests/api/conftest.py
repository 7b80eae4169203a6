"""A served toy engine: real sockets, so that real clients can be used on it."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar

import pytest
import trio
from attrs import frozen

from orchestra.api.server import agent_app, controller_app, serve_unix

from .toy_cluster import ToyCluster
from .toy_engine import ToyEngine, ToyNode

T = TypeVar("T")


@frozen
class Served:
    path: str
    engine: ToyEngine
    node: ToyNode

    @property
    def opener(self) -> partial[object]:
        return partial(trio.open_unix_socket, self.path)


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="orchestra-api-") as folder:
        async with trio.open_nursery() as nursery:
            engine, node = ToyEngine(nursery), ToyNode()
            path = f"{folder}/agent.sock"
            await nursery.start(serve_unix, path, agent_app(engine, node))
            yield Served(path, engine, node)
            nursery.cancel_scope.cancel()


@frozen
class ServedCluster:
    path: str
    cluster: ToyCluster


@asynccontextmanager
async def served_cluster() -> AsyncIterator[ServedCluster]:
    """A controller's socket in front of one node's."""
    async with served() as node, trio.open_nursery() as nursery:
        cluster = ToyCluster({"node-1": node.path})
        path = f"{node.path}.controller"
        await nursery.start(serve_unix, path, controller_app(cluster))
        yield ServedCluster(path, cluster)
        nursery.cancel_scope.cancel()


@contextmanager
def in_a_thread(service: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """For clients that block: the server has a thread and a trio of its own."""
    ready: list[T] = []
    started = threading.Event()
    ends: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with service() as it:
                ready.append(it)
                ends.append((trio.lowlevel.current_trio_token(), scope))
                started.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert started.wait(10)
        yield ready[0]
    finally:
        for token, scope in ends:
            trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join()


@pytest.fixture
def toy() -> Iterator[Served]:
    with in_a_thread(served) as it:
        yield it


@pytest.fixture
def cluster() -> Iterator[ServedCluster]:
    with in_a_thread(served_cluster) as it:
        yield it


def unix(path: str) -> Callable[[], socket.socket]:
    """What a blocking client connects by."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect
