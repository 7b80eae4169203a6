"""A served toy engine: real sockets, so that real clients can be used on it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import frozen

from orchestra.api.server import agent_app, serve_unix

from .toy_engine import ToyEngine, ToyNode


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


@contextmanager
def served_in_a_thread() -> Iterator[Served]:
    """For clients that block: the server has a thread and a trio of its own."""
    ready: list[Served] = []
    started = threading.Event()
    ends: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with served() as it:
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
        token, scope = ends[0]
        trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join()


@pytest.fixture
def toy() -> Iterator[Served]:
    with served_in_a_thread() as it:
        yield it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
