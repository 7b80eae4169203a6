"""The values that a server and its application exchange: requests, responses, hijacks.

They know HTTP's shape but neither sockets nor routes. A response whose body is an iterator is
streamed in chunks, and is what the server watches for a client that went away; a `Hijack` gives
the raw byte stream to its function, as Docker's attach and exec need it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

import trio
from attrs import field, frozen

Headers = tuple[tuple[str, str], ...]


class WireError(Exception):
    """Something is wrong with what came over the wire."""


class Disconnected(WireError):
    """The peer went away in the middle of a message."""


class ProtocolViolation(WireError):
    """The peer sent something that is not HTTP/1.1."""


class BodyTooLarge(WireError):
    """A body is longer than its reader takes."""


class Body(Protocol):
    """A message's body: iterate over it, or read it whole."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self, limit: int) -> bytes:
        """Return everything; BodyTooLarge beyond `limit` bytes."""
        ...


@frozen
class Request:
    """One request. `path` is as it was sent (percent-encoded), without the query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]  # lower-case names; of repeated ones the last
    body: Body

    @property
    def upgrade(self) -> bool:
        """Whether the client asks for a protocol switch; Docker's clients differ in the value."""
        return "upgrade" in self.headers


@frozen
class Response:
    status: int
    headers: Headers = ()
    body: bytes | AsyncIterator[bytes] = field(default=b"", repr=False)


@frozen
class Hijack:
    """Take over the connection's raw bytes after the answer's head.

    The head is `101 UPGRADED` for a client that asked for an upgrade, else `200 OK` without any
    framing. What the client sent beyond its request is the first that `run` receives; when `run`
    returns the stream is closed.
    """

    run: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]
    headers: Headers = ()


App = Callable[[Request], Awaitable[Response | Hijack]]
