"""Docker's multiplexed streams: an 8-byte header before each piece of output.

Header: one byte stream (0 stdin, 1 stdout, 2 stderr, 3 system error), three zero bytes, the
payload's length in four bytes, big endian (Docker Engine API, "Stream format" of attach). Pure;
blocking and asynchronous readers share the decoder.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterable, AsyncIterator

STDIN, STDOUT, STDERR, SYSTEM_ERROR = range(4)

_HEADER = struct.Struct(">BxxxI")


def frame(stream: int, data: bytes) -> bytes:
    """Return `data` as one frame of `stream`."""
    return _HEADER.pack(stream, len(data)) + data


class FrameDecoder:
    """Cut bytes, in whatever pieces they arrive, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames completed by `data` as (stream, payload)."""
        self._buffer += data
        frames = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            stream, length = _HEADER.unpack_from(self._buffer, at)
            end = at + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((stream, bytes(self._buffer[at + _HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return frames

    @property
    def complete(self) -> bool:
        """Whether no frame is left half read."""
        return not self._buffer


async def frames(chunks: AsyncIterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the (stream, payload) frames of a byte stream."""
    decoder = FrameDecoder()
    async for chunk in chunks:
        for item in decoder.feed(chunk):
            yield item
