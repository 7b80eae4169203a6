"""A Unix socket of one's own, whose connections are trio streams."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from orchestra.transport.errors import Unreachable

BACKLOG = 128


@asynccontextmanager
async def listen_unix(path: str) -> AsyncIterator[trio.SocketListener]:
    """A listener at `path`, for this user only; `path` never names a socket that does not listen.

    One left by a dead process is replaced. Unreachable with the reason of bind(2).
    """
    temporary = f"{path}.{os.getpid()}"
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    try:
        try:
            await listening.bind(temporary)
            os.chmod(temporary, 0o600)
            listening.listen(BACKLOG)
            own = os.stat(temporary).st_ino
            os.replace(temporary, path)
        except OSError as error:
            raise Unreachable(f"cannot listen at {path}: {error.strerror or error}") from None
        try:
            yield trio.SocketListener(listening)
        finally:
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == own:  # not a successor's
                    os.unlink(path)
    finally:
        listening.close()
        with suppress(FileNotFoundError):
            os.unlink(temporary)
