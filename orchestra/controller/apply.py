"""From the desired state to what each node shall hold, and when that is worth a new generation.

An assignment depends on the stored state and on what was observed (who serves). When its content
changes although the state did not, the generation still has to rise, because nodes keep the higher
one. A node whose assignment is unchanged is sent the new generation with no sections: that is the
acknowledgement that it is up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from orchestra.controller.link import Link, Wanted
from orchestra.model.assignment import Assignment, ClusterNet, digests
from orchestra.model.codec import to_json
from orchestra.plan.assign import assign, testament
from orchestra.plan.state import NodeRecord, State, View


class Assembler:
    """Makes assignments; remembers how their larger sections look in JSON while they are the same.

    Networks, ports and the testament are common to many nodes and seldom change: turning them into
    JSON once, not once per node and step, is most of the cost of a step.
    """

    def __init__(self) -> None:
        self._will: tuple[tuple[object, ...], dict[str, Any]] = ((), {})
        self._digests: dict[int, tuple[object, str]] = {}  # by id of a body, which is kept alive
        self._bodies: dict[int, tuple[object, Any]] = {}  # by id of a value, likewise

    def next_wanted(
        self, state: State, view: View, before: Mapping[str, Wanted], links: Mapping[str, Link]
    ) -> tuple[State, dict[str, Wanted]]:
        """Return the state (its generation raised where needed) and each node's assignment, by id.

        `before` is what was wanted last, `links` are those of the nodes, by id.
        """
        wanted = {
            node: self.wanted(a) for node, a in assign(state, view, self._testament(state)).items()
        }
        if any(_stale(node, mine, before, links) for node, mine in wanted.items()):
            state = evolve(state, generation=state.generation + 1)
            wanted = {
                node: evolve(mine, generation=state.generation) for node, mine in wanted.items()
            }
        kept = {id(body) for mine in wanted.values() for body in mine.bodies.values()}
        self._digests = {key: value for key, value in self._digests.items() if key in kept}
        self._bodies = {k: v for k, v in self._bodies.items() if id(v[1]) in kept}
        return state, wanted

    def wanted(self, assignment: Assignment) -> Wanted:
        bodies = {
            "cluster": to_json(assignment.cluster),
            "tasks": to_json(assignment.tasks),
            "published": self._body(assignment.published),
            "stacks": assignment.stacks,
            **{f"network/{n.id}": self._body(n) for n in assignment.networks},
        }
        return Wanted(
            assignment.generation,
            {name: self._digest(name, body) for name, body in bodies.items()},
            bodies,
        )

    def nothing(self, state: State, node: NodeRecord) -> Wanted:
        """The assignment of a node that leaves the cluster: no tasks, no networks, no cluster."""
        net = ClusterNet("", state.identity.range, state.identity.vni, self_index=node.index)
        return self.wanted(Assignment(state.generation, net))

    def _testament(self, state: State) -> dict[str, Any]:
        parts = (
            state.identity,
            state.nodes,
            state.stacks,
            state.networks,
            state.volumes,
            state.ports,
            state.images,
        )
        known, body = self._will
        if len(known) != len(parts) or any(a is not b for a, b in zip(known, parts)):
            fresh = testament(state)
            body = body if fresh == body else fresh
            self._will = (parts, body)
        return body

    def _body(self, value: object) -> Any:
        if id(value) not in self._bodies:
            self._bodies[id(value)] = (value, to_json(value))
        return self._bodies[id(value)][1]

    def _digest(self, name: str, body: Any) -> str:
        if id(body) not in self._digests:
            self._digests[id(body)] = (body, digests({name: body})[name])
        return self._digests[id(body)][1]


def _stale(
    node: str, mine: Wanted, before: Mapping[str, Wanted], links: Mapping[str, Link]
) -> bool:
    """Whether other content went out under this generation (or a later one) already."""
    last = before.get(node)
    if last is not None and last.generation >= mine.generation and last.digests != mine.digests:
        return True
    held = links[node].held if node in links else None
    return held is not None and held.generation >= mine.generation and held.digests != mine.digests
