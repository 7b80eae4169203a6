"""A stream to a Unix socket of this host."""

from __future__ import annotations

import trio

from orchestra.transport.errors import Unreachable


async def connect_unix(path: str) -> trio.SocketStream:
    """Connect to the stream socket at `path`. Unreachable with the reason of connect(2)."""
    try:
        return await trio.open_unix_socket(path)
    except OSError as error:
        raise Unreachable(f"cannot connect to {path}: {error.strerror or error}") from None
