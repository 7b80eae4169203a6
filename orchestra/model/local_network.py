"""A network that was made by hand on one node (`docker network create`); no other node has it."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class LocalNetwork:
    """`index` names its subnet among those that every node keeps for its own networks."""

    id: str  # 64 hex digits
    name: str
    index: int
    created: float  # Unix seconds
    internal: bool = False
    labels: Mapping[str, str] = field(factory=dict)
    options: Mapping[str, str] = field(factory=dict)
