"""Noticing that a peer is wholly gone, where a half-close must not be taken for it.

A client of a hijacked stream may end its input and still read: then reads give EOF and only the
poll(2) condition HUP tells that the other direction is gone too. An epoll instance that waits for
nothing else is itself readable when that happens, which is what trio can wait for.
"""

from __future__ import annotations

import select

import trio

from orchestra.wire.prefixed import PrefixedStream


async def vanished(stream: trio.abc.Stream) -> None:
    """Return when the peer of a socket has closed both directions; of other streams never."""
    while isinstance(stream, PrefixedStream):
        stream = stream.inner
    if not isinstance(stream, trio.SocketStream) or not hasattr(select, "epoll"):
        await trio.sleep_forever()
        return
    with select.epoll() as epoll:
        epoll.register(stream.socket.fileno(), 0)  # HUP and ERR are always reported
        await trio.lowlevel.wait_readable(epoll.fileno())
