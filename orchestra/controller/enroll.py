"""A host that is heard for the first time becomes a node of the cluster, or it is said why not.

Pure: facts and state in, the next state out. Here it is also decided whether the nodes know of
more than the store does, in which case nothing may be changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from orchestra.controller.link import Held
from orchestra.model.errors import Conflict
from orchestra.model.node import InventoryNode, NodeFacts
from orchestra.plan.addresses import pick_range
from orchestra.plan.state import NodeRecord, State


def enrolled(state: State, node: InventoryNode, facts: NodeFacts, held: Held | None) -> State:
    """The state with a record of a new node.

    Raises Conflict for a copy of a known node, an underlay address that is taken, and where no
    range of addresses is free.
    """
    underlay = underlay_of(node, facts.addresses)
    for other in state.nodes.values():
        if other.id == facts.id:
            raise Conflict(
                f"{node.name} reports the same id as {other.name}: it is the same host, or a "
                "copy of it; give a copied host its own id with `orchestra node add` on a "
                "host whose /var/lib/orchestra was removed"
            )
        if other.underlay == underlay:
            raise Conflict(
                f"{node.name} and {other.name} report the same underlay address {underlay}; "
                "give one of them another with `--underlay ADDRESS`"
            )
    identity = state.identity
    if not identity.range:
        identity = evolve(identity, range=pick_range(facts.routes))
    index = identity.last_index + 1
    record = NodeRecord(index, facts.id, node, underlay)
    return evolve(
        state,
        identity=evolve(identity, last_index=index),
        nodes={**state.nodes, facts.id: record},
        generation=max(state.generation, held.generation if held else 0) + 1,
    )


def retold(state: State, told: Iterable[InventoryNode]) -> State:
    """The state with nodes as an inventory tells of them: how to reach them, and their labels."""
    by_name = {node.name: node for node in told}
    return evolve(
        state,
        nodes={
            node_id: evolve(record, node=by_name.get(record.name, record.node))
            for node_id, record in state.nodes.items()
        },
    )


def stranger(record: NodeRecord, facts: NodeFacts) -> str:
    """Why the host that answers for a node is not that node; "" = it is."""
    if record.id == facts.id:
        return ""
    return (
        f"another node answers at {record.node.address}: its id is {facts.id[:12]}, "
        f"{record.name}'s is {record.id[:12]}; `orchestra node rm {record.name}` and add it again"
    )


def underlay_of(node: InventoryNode, addresses: Sequence[str]) -> str:
    """Where the node's tunnel ends: as told, else its SSH address, else its first address."""
    if node.underlay:
        return node.underlay
    plain = [address.partition("/")[0] for address in addresses]
    return node.address if node.address in plain or not plain else plain[0]


def unknown_generation(state: State, held: Iterable[Held | None]) -> int:
    """The highest generation on the nodes that this store does not know of; 0 = none."""
    return max(
        (
            one.generation
            for one in held
            if one is not None
            and one.generation
            and one.cluster
            and (one.cluster != state.identity.id or one.generation > state.generation)
        ),
        default=0,
    )
