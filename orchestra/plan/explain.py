"""Why something is not possible, as text with counts: what `plan`, `ps` and `up` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from orchestra.model.node import NodeState
from orchestra.plan.state import NodeView


@frozen
class Refusal:
    """What a node would need ("is ready"), and how many nodes that lack it are said to be."""

    need: str
    lack: str  # "are down"


def no_node(refusals: Sequence[Refusal]) -> str:
    """Render the refusals of all nodes.

    "no node satisfies node.labels.disk==ssd: 3 of 3 lack it", or with several reasons
    "no node fits: 2 of 3 lack node.labels.disk==ssd, 1 of 3 are down".
    """
    if not refusals:
        return "the cluster has no nodes; `orchestra node add` adds one"
    total = len(refusals)
    needs = {refusal.need for refusal in refusals}
    if len(needs) == 1:
        need = needs.pop()
        if not need.startswith("is "):
            return f"no node {need}: {total} of {total} lack it"
    counts = Counter(refusal.lack for refusal in refusals)
    start = f"no node {need}" if len({r.need for r in refusals}) == 1 else "no node fits"
    return f"{start}: " + ", ".join(
        f"{count} of {total} {lack}" for lack, count in sorted(counts.items())
    )


def node_away(node: NodeView, verb: str = " is") -> str:
    """Why a node cannot be counted on now: "node-2 is down (connection refused)"."""
    word = {
        NodeState.DOWN: "down",
        NodeState.NOT_READY: "not ready",
        NodeState.UNKNOWN: "not heard yet",
        NodeState.READY: "ready",
    }[node.state]
    reason = f" ({node.reason})" if node.reason else ""
    return f"{node.record.name}{verb} {word}{reason}"
