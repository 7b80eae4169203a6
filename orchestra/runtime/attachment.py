"""A client at a container's streams: its output is read from the log, its input goes to stdin.

So a client that does not read lags behind in a file, and one that comes before the start misses
nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from orchestra.runtime.log import OpenLog, follow
from orchestra.runtime.stdin import Stdin, write_all


class ContainerAttachment:
    """A client at a container's streams; its output is read from the log, from now on."""

    def __init__(
        self,
        log: OpenLog,
        streams: frozenset[int],
        writer: Callable[[], Stdin | int | None] | None,
        end_stdin: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._log, self._streams = log, streams
        self._writer, self._end_stdin = writer, end_stdin
        self._position = log.log.index_size
        self._ends = log.log.ends
        self._reading = self._gone = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1 stdout | 2 stderr, bytes) until the run ends; of a terminal all is 1."""
        self._reading = True
        try:
            async for item in follow(self._log.log, self._position, self._streams, self._over):
                yield item
        finally:
            self._reading = False
            self._log.close()

    def _over(self) -> bool:
        return self._gone or self._log.log.ends != self._ends

    async def write(self, data: bytes) -> None:
        """To the process's stdin; a terminal that is not there yet is waited for."""
        if self._writer is None:
            return
        log = self._log.log
        while (target := self._writer()) is None:
            if log.running or self._over():
                return
            await log.changed.park()
        if isinstance(target, int):
            await write_all(target, data)
        else:
            await target.write(data)

    async def close_stdin(self) -> None:
        """The client's half-close: ends stdin where the container was made with StdinOnce."""
        if self._writer is not None and self._end_stdin is not None:
            await self._end_stdin()

    async def aclose(self) -> None:
        """The client is gone; the process lives on."""
        await self.close_stdin()
        self._gone = True
        self._log.log.changed.unpark_all()
        if not self._reading:
            self._log.close()
