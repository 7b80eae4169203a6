"""The node protocol's side of the agent: takes assignments, reports what is.

The report's sequence starts at the agent's start time in milliseconds, so it rises over restarts
too and a controller that waits for "beyond n" is never left waiting by a new agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from orchestra.agent import assigned
from orchestra.agent.containers import Containers
from orchestra.agent.lifecycle import Lifecycle
from orchestra.agent.plumbing import Plumbing
from orchestra.agent.reconcile import Reconciler
from orchestra.model.assignment import Assignment
from orchestra.model.node import NodeFacts, Observed
from orchestra.model.paths import NodePaths
from orchestra.runtime.volumes import Volumes


class Changes:
    """A number that rises with every change, and the waiting for it."""

    def __init__(self) -> None:
        self.sequence = time.time_ns() // 1_000_000
        self._more = trio.Event()
        self._heard: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each change; it must be quick and not fail."""
        self._heard.append(listener)

    def note(self) -> None:
        self.sequence += 1
        self._more.set()
        self._more = trio.Event()
        for listener in self._heard:
            listener()

    async def beyond(self, after: int, timeout: float) -> None:
        """Return when the sequence is not `after` any more, at the latest after `timeout` s."""
        with trio.move_on_after(timeout):
            while self.sequence == after:
                await self._more.wait()


class Node:
    """Implements `api.engine.Node`."""

    def __init__(
        self,
        paths: NodePaths,
        facts: NodeFacts,
        stored: assigned.Stored,
        containers: Containers,
        volumes: Volumes,
        plumbing: Plumbing,
        reconciler: Reconciler,
        lifecycle: Lifecycle,
        changes: Changes,
    ) -> None:
        self._paths = paths
        self._facts = facts
        self._stored = stored
        self._containers = containers
        self._volumes = volumes
        self._plumbing = plumbing
        self._reconciler = reconciler
        self._lifecycle = lifecycle
        self._changes = changes
        self._storing = trio.Lock()

    @property
    def assignment(self) -> Assignment:
        return self._stored.assignment

    def observed(self) -> Observed:
        ports = {
            f"{p.protocol}/{p.published}"
            for live in self._containers
            if live.running and not live.container.task
            for p in live.container.spec.ports
            if p.published
        }
        return Observed(
            sequence=self._changes.sequence,
            facts=self._facts,
            applied=self._plumbing.applied,
            tasks=self._reconciler.observed(),
            volumes=tuple(v.name for v in self._volumes.list() if not v.anonymous),
            ports=tuple(sorted(ports)),
            problems=(
                *self._plumbing.problems,
                *self._reconciler.problems.values(),
                *self._lifecycle.problems.values(),
            ),
        )

    async def wait_observed(self, after: int, timeout: float) -> Observed:
        await self._changes.beyond(after, timeout)
        await self._containers.persist()
        return self.observed()

    def assignment_digests(self) -> tuple[int, Mapping[str, str]]:
        return self.assignment.generation, self._stored.digests

    def assignment_bodies(self) -> Mapping[str, Any]:
        return self._stored.bodies

    async def put_assignment(
        self, generation: int, digests: Mapping[str, str], bodies: Mapping[str, Any]
    ) -> Sequence[str]:
        async with self._storing:
            merged = assigned.merge(self._stored, generation, digests, bodies)
            if not isinstance(merged, assigned.Stored):
                return merged
            if merged.assignment == self._stored.assignment and self._stored.digests:
                return ()
            with trio.CancelScope(shield=True):
                await assigned.store(self._paths.assignment, merged)
            self._stored = merged
            self._plumbing.assign(merged.assignment)
            self._reconciler.wake()
            self._changes.note()
        return ()
