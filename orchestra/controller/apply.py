"""From the desired state to what each node shall hold, and when that is worth a new generation.

An assignment depends on the stored state and on what was observed (who serves). When its content
changes although the state did not, the generation still has to rise, because nodes keep the higher
one. A node whose assignment is unchanged is sent the new generation with no sections: that is the
acknowledgement that it is up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import evolve

from orchestra.controller.link import Link, Wanted
from orchestra.model.assignment import Assignment, ClusterNet, digests, sections
from orchestra.plan.assign import assign
from orchestra.plan.state import NodeRecord, State, View


def next_wanted(
    state: State, view: View, before: Mapping[str, Wanted], links: Mapping[str, Link]
) -> tuple[State, dict[str, Wanted]]:
    """Return the state (its generation raised where needed) and each node's assignment, by id.

    `before` is what was wanted last, `links` are those of the nodes, by id.
    """
    wanted = {node: _wanted(a) for node, a in assign(state, view).items()}
    if any(_stale(node, mine, before, links) for node, mine in wanted.items()):
        state = evolve(state, generation=state.generation + 1)
        wanted = {node: evolve(mine, generation=state.generation) for node, mine in wanted.items()}
    return state, wanted


def _stale(
    node: str, mine: Wanted, before: Mapping[str, Wanted], links: Mapping[str, Link]
) -> bool:
    """Whether other content went out under this generation (or a later one) already."""
    last = before.get(node)
    if last is not None and last.generation >= mine.generation and last.digests != mine.digests:
        return True
    held = links[node].held if node in links else None
    return held is not None and held.generation >= mine.generation and held.digests != mine.digests


def nothing(state: State, node: NodeRecord) -> Wanted:
    """The assignment of a node that leaves the cluster: no tasks, no networks, no cluster."""
    net = ClusterNet("", state.identity.range, state.identity.vni, self_index=node.index)
    return _wanted(Assignment(state.generation, net))


def highest_held(links: Iterable[Link], cluster: str) -> int:
    """The highest generation that nodes got from a controller of `cluster` or of another one."""
    return max(
        (
            link.held.generation
            for link in links
            if link.held is not None and link.held.cluster in (cluster, *_foreign(link, cluster))
        ),
        default=0,
    )


def _foreign(link: Link, cluster: str) -> tuple[str, ...]:
    held = link.held.cluster if link.held else ""
    return (held,) if held and held != cluster else ()


def _wanted(assignment: Assignment) -> Wanted:
    bodies = sections(assignment)
    return Wanted(assignment.generation, digests(bodies), bodies)
