"""Streams within one process, for simulation: what SSH and sockets are in reality."""

from __future__ import annotations

import math

import trio
import trio.testing

from orchestra.transport.errors import Unreachable

MemoryStream = trio.abc.HalfCloseableStream


class MemoryListener(trio.abc.Listener[MemoryStream]):
    """Accepts the streams that `connect` makes; as a host does, it refuses while it is closed."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[MemoryStream](math.inf)
        self._closed = False

    async def accept(self) -> MemoryStream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the listener was closed") from None

    async def connect(self) -> MemoryStream:
        """Return the client's side of a new connection."""
        if self._closed:
            raise Unreachable("cannot connect: the other side is down")
        ours, theirs = trio.testing.memory_stream_pair()
        await self._send.send(theirs)
        return ours

    async def aclose(self) -> None:
        self._closed = True
        await self._send.aclose()
        await trio.lowlevel.checkpoint()
