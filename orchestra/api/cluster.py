"""What the controller's routes call: the cluster as the controller implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import trio

from orchestra.api.engine import Images
from orchestra.model.cluster import (
    ControllerInfo,
    ImageNeed,
    NodeStatus,
    Plan,
    Progress,
    StackRecord,
    TaskStatus,
)
from orchestra.model.event import Event
from orchestra.model.node import Availability, InventoryNode
from orchestra.model.service import Stack


class Cluster(Protocol):
    images: Images  # the controller's own store, from which it ships to nodes

    def info(self) -> ControllerInfo: ...

    # nodes (bootstrapping a host is done before `put_node`, by the CLI's session)
    def nodes(self) -> Sequence[NodeStatus]: ...
    async def put_node(self, node: InventoryNode) -> NodeStatus:
        """Add or change a node; Conflict where two nodes report the same underlay or id."""
        ...

    async def remove_node(self, name: str, force: bool = False) -> None: ...
    async def set_availability(self, name: str, availability: Availability) -> None: ...
    async def set_labels(self, name: str, labels: Mapping[str, str | None]) -> None:
        """None removes a label."""
        ...

    # stacks
    def stacks(self) -> Sequence[StackRecord]: ...
    def stack(self, name: str) -> StackRecord: ...
    async def image_needs(self, stack: Stack) -> Sequence[ImageNeed]: ...
    async def plan(self, stack: Stack) -> Plan: ...
    async def apply(self, stack: Stack, generation: int | None = None) -> int:
        """Make `stack` desired; the new generation. Conflict where the state moved since
        `generation`; NotFound naming both ways out where an image is found nowhere."""
        ...

    async def remove_stack(self, name: str, volumes: bool = False) -> None: ...
    async def scale(self, name: str, replicas: Mapping[str, int]) -> None: ...
    async def stop_services(self, name: str, services: Sequence[str]) -> None: ...
    async def start_services(self, name: str, services: Sequence[str]) -> None: ...
    async def restart_services(self, name: str, services: Sequence[str]) -> None: ...
    def tasks(self, name: str) -> Sequence[TaskStatus]: ...
    def progress(self, name: str) -> AsyncIterator[Progress]:
        """Live progress until converged, failed or removed."""
        ...

    def events(self) -> AsyncIterator[Event]: ...

    async def open_agent(self, node: str) -> trio.abc.HalfCloseableStream:
        """A byte stream to the agent's socket of that node (Unavailable with the reason)."""
        ...

    async def adopt(self) -> Sequence[str]:
        """Rebuild the store from what the nodes hold; what was taken over, as text."""
        ...
