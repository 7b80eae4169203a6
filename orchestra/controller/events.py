"""What happens in the cluster, told to whoever listens: actions, nodes, stacks.

A listener that does not keep up loses its stream, never the controller its pace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from orchestra.model.cluster import Action, RemoveTask, ResumeTask, StartTask, StopTask
from orchestra.model.event import Event

BACKLOG = 1000  # events that a listener may be behind


class Events:
    def __init__(self) -> None:
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    def emit(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._listeners.discard(listener)
                listener.close()

    def action(self, action: Action, now: float) -> None:
        """Tell of a planned step that was taken."""
        match action:
            case StartTask() | ResumeTask():
                attributes = {"stack": action.stack, "node": action.node_name}
                event = Event("task", "start", action.slot, attributes)
            case StopTask():
                attributes = {"stack": action.stack, "node": action.node_name}
                event = Event("task", "stop", action.slot, attributes)
            case RemoveTask():
                event = Event("task", "remove", action.slot)
            case _:
                event = Event("cluster", type(action).__name__, str(action))
        self._emit_at(event, now, {"because": action.because})

    def node(self, verb: str, name: str, now: float) -> None:
        self._emit_at(Event("node", verb, name), now, {})

    def stack(self, verb: str, name: str, now: float) -> None:
        self._emit_at(Event("stack", verb, name), now, {})

    def _emit_at(self, event: Event, now: float, more: dict[str, str]) -> None:
        self.emit(
            Event(
                event.type,
                event.action,
                event.id,
                {**event.attributes, **more},
                int(now * 1e9),
                event.attributes.get("node", ""),
            )
        )

    async def subscribe(self) -> AsyncIterator[Event]:
        """Events from now on."""
        send, receive = trio.open_memory_channel[Event](BACKLOG)
        self._listeners.add(send)
        try:
            async for event in receive:
                yield event
        finally:
            self._listeners.discard(send)
            send.close()
