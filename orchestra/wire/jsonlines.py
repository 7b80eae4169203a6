"""JSON values one after another, each ending in CRLF: progress, events, statistics.

One whole value per HTTP chunk is what Docker's clients rely on. Pure; the blocking client uses
the same decoder.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any


def json_line(value: Any) -> bytes:
    """Return one line of a JSON stream."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\r\n"


class LineDecoder:
    """Cut bytes into the JSON values of their lines; empty lines mean nothing."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """Return the values whose lines `data` completes. ValueError where one is no JSON."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]

    def end(self) -> list[Any]:
        """Return the last value, if its line has no end."""
        rest, self._rest = self._rest, b""
        return [json.loads(rest)] if rest.strip() else []


async def json_values(chunks: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    """Yield the values of a JSON stream."""
    decoder = LineDecoder()
    async for chunk in chunks:
        for value in decoder.feed(chunk):
            yield value
    for value in decoder.end():
        yield value
