"""Whether somebody still uses a session: requests, streams and tunnels under way, and the last one.

It wraps the application that is served; of a reply it only has to know that it may go on after it
was returned, as a stream (`body`) or a taken-over connection (`run`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import evolve


class Usage:
    def __init__(self) -> None:
        self._active = 0
        self._last = trio.current_time()

    def counted(self, app: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """The application with its requests counted, each until its reply has been sent."""

        async def answer(request: Any) -> Any:
            with self._one():
                reply = await app(request)
            if hasattr(reply, "run"):
                return evolve(reply, run=self._taken_over(reply.run))
            if not isinstance(reply.body, bytes):
                return evolve(reply, body=self._streamed(reply.body))
            return reply

        return answer

    async def idle(self, seconds: float) -> None:
        """Return when nobody has used the application for `seconds`."""
        while True:
            rest = self._last + seconds - trio.current_time()
            if not self._active and rest <= 0:
                return
            await trio.sleep(seconds if self._active else rest)

    @contextmanager
    def _one(self) -> Iterator[None]:
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._last = trio.current_time()

    def _taken_over(
        self, run: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]
    ) -> Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]:
        async def counted(stream: trio.abc.HalfCloseableStream) -> None:
            with self._one():
                await run(stream)

        return counted

    async def _streamed(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        with self._one():
            try:
                async for chunk in body:
                    yield chunk
            finally:
                close = getattr(body, "aclose", None)
                if close is not None:
                    await close()
