"""Something that happened on a node or in the cluster, in Docker's terms of type and action."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class Event:
    type: str  # container, image, network, volume, node, task, stack
    action: str
    id: str
    attributes: Mapping[str, str] = field(factory=dict)
    time_ns: int = 0  # Unix time in nanoseconds
    node: str = ""  # name of the node, in cluster-wide streams
