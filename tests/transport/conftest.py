"""One sshd for the whole package, a socket behind it, and an asyncio loop around each test."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from orchestra.transport.ssh import ssh_loop

from .sshd import Sshd, running_sshd


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    with running_sshd() as server:
        yield server


@pytest.fixture(scope="session")
def guest(sshd: Sshd) -> Iterator[str]:
    """A user without any rights beside its own; removed with its home afterwards."""
    name = "orcguest"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
    subprocess.run(["usermod", "--password", "*", name], check=True)  # not locked: keys may enter
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--remove", "--force", name], check=True, capture_output=True)


async def echo(stream: trio.SocketStream) -> None:
    """Send everything back, and after the client's half-close "." before closing."""
    async with stream:
        try:
            async for data in stream:
                await stream.send_all(data)
            await stream.send_all(b".")
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def echoing(
    path: str, handler: Callable[[trio.SocketStream], Awaitable[None]] = echo
) -> AsyncIterator[str]:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen(200)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, [trio.SocketListener(sock)])
            yield path
            nursery.cancel_scope.cancel()
    finally:
        Path(path).unlink(missing_ok=True)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with ssh_loop():
            with trio.fail_after(30):
                await main()

    trio.run(limited)
