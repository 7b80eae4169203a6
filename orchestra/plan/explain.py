"""Why something is not possible, as text with counts: what `plan`, `ps` and `up` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from orchestra.model.node import NodeState
from orchestra.plan.state import NodeView

NAMED = 5  # nodes that are named for each reason


@frozen
class Refusal:
    """What a node would need ("is ready"), and how many nodes that lack it are said to be."""

    need: str
    lack: str  # "are down"


def no_node(refusals: Mapping[str, Refusal]) -> str:
    """Render what all nodes refuse for, by node name.

    "no node satisfies node.labels.disk==ssd: 3 of 3 lack it", or with several reasons
    "no node fits: 2 of 3 lack node.labels.disk==ssd (node-1, node-2), 1 of 3 are down (node-3)".
    """
    if not refusals:
        return "the cluster has no nodes; `orchestra node add` adds one"
    total = len(refusals)
    needs = {refusal.need for refusal in refusals.values()}
    start = f"no node {needs.pop()}" if len(needs) == 1 else "no node fits"
    by_lack: dict[str, list[str]] = {}
    for name, refusal in sorted(refusals.items()):
        by_lack.setdefault(refusal.lack, []).append(name)
    if len(by_lack) == 1:
        (lack,) = by_lack
        its = lack if start.startswith("no node is ") else "lack it"
        return f"{start}: {total} of {total} {its}"
    parts = [f"{len(n)} of {total} {lack} ({_some(n)})" for lack, n in sorted(by_lack.items())]
    return f"{start}: {', '.join(parts)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


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
