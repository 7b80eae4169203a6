"""The containers of this node: the table that everything else looks into.

A `Live` is one container with what exists only while the agent runs (its lock, who waits for it,
its wires); its `Record` is what is on disk. Law: `store` is the only way a record changes, and it
commits before the table shows the change; what was promised to a client waits for `persist` too.
References are resolved as Docker does: full id, exact name, unique beginning of an id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import trio
from attrs import evolve

from orchestra.agent.state import Record, State
from orchestra.model.container import Container, ContainerStatus, Endpoint
from orchestra.model.errors import Conflict, Invalid, NotFound

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
ACTIVE = (ContainerStatus.RUNNING, ContainerStatus.PAUSED)


class Wait:
    """One client's wait for an exit or the removal; it is registered the moment it exists."""

    def __init__(self, live: Live, condition: str) -> None:
        self.condition = condition
        self._live = live
        self._done = trio.Event()
        self._outcome = (0, "")
        live.waits.add(self)

    def settle(self, exit_code: int, error: str = "") -> None:
        self._outcome = (exit_code, error)
        self._done.set()
        self.close()

    async def result(self) -> tuple[int, str]:
        await self._done.wait()
        return self._outcome

    def close(self) -> None:
        self._live.waits.discard(self)


class Live:
    """One container; transitions (start, end, removal) hold `lock`, one at a time."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = trio.Lock()
        self.waits: set[Wait] = set()
        self.ended = trio.Event()  # of the current run; a new one for each start
        self.wires: tuple[Endpoint, ...] | None = None  # None: no network of its own is up
        self.back_off = trio.CancelScope()  # the wait before a restart in place
        self.probes = trio.CancelScope()  # the health check's loop

    @property
    def container(self) -> Container:
        return self.record.container

    @property
    def id(self) -> str:
        return self.record.container.id

    @property
    def running(self) -> bool:
        """Whether its process exists (paused included)."""
        return self.record.container.status in ACTIVE

    def settle(self, *conditions: str, error: str = "") -> None:
        """Answer those who wait for one of `conditions` with the exit code."""
        for wait in [w for w in self.waits if w.condition in conditions]:
            wait.settle(self.container.exit_code, error)


class Containers:
    """The table, backed by `state`. `changed` is called after each change of any record."""

    def __init__(self, state: State, changed: Callable[[], None]) -> None:
        self._state = state
        self._changed = changed
        self._by_id = {r.container.id: Live(r) for r in state.records()}
        self._ids = {live.container.name: live.id for live in self}

    async def persist(self) -> None:
        """Return when everything stored so far would outlive a power cut."""
        await self._state.persist()

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._by_id.values()))

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._by_id

    def get(self, container_id: str) -> Live | None:
        return self._by_id.get(container_id)

    def find(self, ref: str) -> Live:
        """Resolve what a user typed. NotFound, or Invalid where it is the beginning of several."""
        name = ref.removeprefix("/")
        container_id = ref if ref in self._by_id else self._ids.get(name)
        if container_id is None:
            found = [i for i in self._by_id if ref and i.startswith(ref)]
            if len(found) > 1:
                raise Invalid(f"multiple IDs found with provided prefix: {ref}")
            if not found:
                raise NotFound(f"No such container: {ref}")
            container_id = found[0]
        return self._by_id[container_id]

    def check_name(self, name: str) -> None:
        """Raise Invalid for a name of the wrong form, Conflict for one that is taken."""
        if not NAME.fullmatch(name):
            raise Invalid(
                f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if holder := self._ids.get(name):
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container '
                f'"{holder}". You have to remove (or rename) that container to be able to reuse '
                "that name."
            )

    @property
    def names(self) -> dict[str, str]:
        """Ids by name."""
        return self._ids

    def reserve(self, name: str, container_id: str) -> None:
        """Hold a name for a container that is being created."""
        self._ids[name] = container_id

    def release(self, name: str) -> None:
        self._ids.pop(name, None)

    def add(self, record: Record) -> Live:
        """Store a new container; its name is the one reserved before."""
        self._state.save(record)
        live = Live(record)
        self._by_id[live.id] = live
        self._ids[live.container.name] = live.id
        self._changed()
        return live

    def store(self, live: Live, *, record: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change the container's fields (`record`: those of the record around it), durably."""
        new = evolve(live.record, container=evolve(live.container, **changes), **(record or {}))
        self._state.save(new)
        live.record = new
        self._changed()

    def show(self, live: Live, **changes: Any) -> None:
        """Change fields that need not survive the agent: probes of unchanged outcome."""
        live.record = evolve(live.record, container=evolve(live.container, **changes))

    def rename(self, live: Live, name: str) -> None:
        self.check_name(name)
        old = live.container.name
        self.store(live, name=name)
        self._ids[name] = live.id
        self._ids.pop(old, None)

    def forget(self, live: Live) -> None:
        self._state.delete([live.id])
        del self._by_id[live.id]
        self._ids.pop(live.container.name, None)
        self._changed()
