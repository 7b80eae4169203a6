"""What happened on this node, for whoever asks: a ring of the last events and its live readers.

Law: an event is published after the state it tells of is stored and before the request that
caused it is answered, so a client that reads events and then looks sees at least what it read.
A reader gets every event of its span once and in order, replayed or live.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

import trio

from orchestra.model.event import Event

KEPT = 2048  # Docker keeps 256; clients that reconnect after a pause lose less here


class Events:
    """The ring. Times are made strictly rising, so that a time names a place in it."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._published = 0  # how many ever; the ring holds the last of them
        self._more = trio.Event()

    def publish(self, type: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        now = time.time_ns()
        if self._ring:
            now = max(now, self._ring[-1].time_ns + 1)
        self._ring.append(Event(type, action, id, dict(attributes), now))
        self._published += 1
        self._more.set()
        self._more = trio.Event()

    def read(self, since: float = 0.0, until: float = 0.0) -> AsyncIterator[Event]:
        """Iterate events from `since` (Unix seconds; 0 = new ones) to `until` (0 = for ever).

        The place is taken now, not at the first step: what is published in between is not lost.
        A reader slower than the ring is long loses the oldest, never the order.
        """
        return self._read(
            self._published - (len(self._ring) if since else 0), int(since * 1e9), until
        )

    async def _read(self, position: int, since_ns: int, until: float) -> AsyncIterator[Event]:
        end_ns = int(until * 1e9) if until else math.inf
        while True:
            more = self._more
            while (position := max(position, self._published - len(self._ring))) < self._published:
                event = self._ring[position - self._published]
                position += 1
                if event.time_ns > end_ns:
                    return
                if event.time_ns >= since_ns:
                    yield event
            if until and time.time() >= until:
                return
            with trio.move_on_after(max(0.0, until - time.time()) if until else math.inf):
                await more.wait()
