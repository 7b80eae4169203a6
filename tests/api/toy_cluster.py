"""A cluster in memory, for the controller's routes; it keeps what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import attrs
import trio

from orchestra.model.cluster import (
    ControllerInfo,
    Difference,
    ImageNeed,
    NodeStatus,
    Plan,
    Progress,
    StackPhase,
    StackRecord,
    StartTask,
    TaskStatus,
)
from orchestra.model.errors import Conflict, NotFound, Unavailable
from orchestra.model.event import Event
from orchestra.model.node import Availability, InventoryNode, NodeState, TaskState
from orchestra.model.service import Stack

from .toy_engine import ToyImages


class ToyCluster:
    """`agents` maps a node's name to the path of its agent's socket."""

    def __init__(self, agents: Mapping[str, str]) -> None:
        self.images = ToyImages()
        self.agents = agents
        self.generation = 1
        self.rows: dict[str, NodeStatus] = {}
        self.records: dict[str, StackRecord] = {}
        self.told: list[tuple[Any, ...]] = []

    def info(self) -> ControllerInfo:
        return ControllerInfo("toy", "t" * 25, "0", 1, "daemon", self.generation, 1, True)

    def nodes(self) -> Sequence[NodeStatus]:
        return list(self.rows.values())

    async def put_node(self, node: InventoryNode) -> NodeStatus:
        self.rows[node.name] = NodeStatus(node, NodeState.READY, index=len(self.rows) + 1)
        return self.rows[node.name]

    async def remove_node(self, name: str, force: bool = False) -> None:
        self.told.append(("remove_node", name, force))

    async def set_availability(self, name: str, availability: Availability) -> None:
        self.rows[name] = attrs.evolve(self.rows[name], availability=availability)

    async def set_labels(self, name: str, labels: Mapping[str, str | None]) -> None:
        self.told.append(("set_labels", name, dict(labels)))

    def stacks(self) -> Sequence[StackRecord]:
        return list(self.records.values())

    def stack(self, name: str) -> StackRecord:
        if name not in self.records:
            raise NotFound(f"no stack {name}")
        return self.records[name]

    async def image_needs(self, stack: Stack) -> Sequence[ImageNeed]:
        return [ImageNeed(s.image, nodes=("node-1",)) for s in stack.services.values()]

    async def plan(self, stack: Stack) -> Plan:
        differences = (Difference("environment.A", "1", "2"),)
        start = StartTask(
            stack.name, "web", "web.1", 1, "n1", "node-1", "changed", "old", differences
        )
        return Plan(self.generation, (start,))

    async def apply(self, stack: Stack, generation: int | None = None) -> int:
        if generation is not None and generation != self.generation:
            raise Conflict(f"the state moved on to generation {self.generation}")
        self.generation += 1
        self.records[stack.name] = StackRecord(stack, 1, 2.0)
        return self.generation

    async def remove_stack(self, name: str, volumes: bool = False) -> None:
        self.told.append(("remove_stack", name, volumes))

    async def scale(self, name: str, replicas: Mapping[str, int]) -> None:
        self.told.append(("scale", name, dict(replicas)))

    async def stop_services(self, name: str, services: Sequence[str]) -> None:
        self.told.append(("stop", name, tuple(services)))

    async def start_services(self, name: str, services: Sequence[str]) -> None:
        self.told.append(("start", name, tuple(services)))

    async def restart_services(self, name: str, services: Sequence[str]) -> None:
        self.told.append(("restart", name, tuple(services)))

    def tasks(self, name: str) -> Sequence[TaskStatus]:
        self.stack(name)
        return [TaskStatus("1", name, "web", "web.1", "node-1", TaskState.RUNNING, "running")]

    async def progress(self, name: str) -> AsyncIterator[Progress]:
        yield Progress(1.0, "starting", running=0, desired=1)
        yield Progress(2.0, "done", StackPhase.CONVERGED, running=1, desired=1)

    async def events(self) -> AsyncIterator[Event]:
        yield Event("node", "ready", "n1", node="node-1")
        await trio.sleep_forever()

    async def open_agent(self, node: str) -> trio.abc.HalfCloseableStream:
        if node not in self.agents:
            raise Unavailable(f"node {node} is down: no answer for 30 s")
        return await trio.open_unix_socket(self.agents[node])

    async def adopt(self) -> Sequence[str]:
        return ["stack guestbook, revision 3"]
