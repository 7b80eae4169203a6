"""The links to all nodes, and what they say together: the view, the rows of `node ls`.

One link for each host that is, or may become, a node; by the name that the user gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from orchestra.controller.enroll import unknown_generation
from orchestra.controller.link import Connect, Link
from orchestra.model.cluster import NodeStatus
from orchestra.model.node import Availability, InventoryNode, NodeState
from orchestra.plan.state import NodeRecord, NodeView, State, View


class Links:
    """`changed` is called with every news of any node; `clock` is Unix time."""

    def __init__(
        self, connect: Connect, changed: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._connect = connect
        self._changed = changed
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._serving_since: dict[str, float] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def get(self, name: str) -> Link | None:
        return self._links.get(name)

    def open(self, node: InventoryNode, nursery: trio.Nursery) -> Link:
        """Connect to a node, in place of the link that there may be."""
        self.close(node.name)
        link = self._links[node.name] = Link(node, self._connect, self._changed)
        nursery.start_soon(link.run)
        return link

    def take(self, name: str) -> Link | None:
        """Let go of a link without ending it: nothing more of it is seen here."""
        return self._links.pop(name, None)

    def close(self, name: str) -> None:
        """End a link; the node is left as it is."""
        link = self.take(name)
        if link is not None:
            link.scope.cancel()

    def by_id(self, state: State) -> dict[str, Link]:
        """The links of the state's nodes, by node id."""
        return {
            record.id: self._links[record.name]
            for record in state.nodes.values()
            if record.name in self._links
        }

    @property
    def all_heard(self) -> bool:
        """Every node was heard, or its lease has run out: now planning makes sense."""
        return all(link.state is not NodeState.UNKNOWN for link in self)

    def orphaned(self, state: State) -> int:
        """A generation on the nodes that `state` does not know of; 0 = none."""
        return unknown_generation(state, (link.held for link in self))

    def view(self, state: State) -> View:
        """The nodes of `state` as they are seen now."""
        now = self._clock()
        nodes = {}
        serving = set()
        for node_id, link in self.by_id(state).items():
            record = state.nodes[node_id]
            nodes[node_id] = NodeView(record, link.state, link.observed, link.reason)
            if link.observed is not None:
                serving |= {task.id for task in link.observed.tasks if task.serving}
        since = self._serving_since
        self._serving_since = {task: since.get(task, now) for task in serving}
        return View(now, nodes, self._serving_since)

    def statuses(self, state: State) -> list[NodeStatus]:
        """The rows of `node ls`, also of hosts that are no nodes yet."""
        known = {record.name: record for record in state.nodes.values()}
        return [self._status(link, known.get(link.node.name)) for link in self._by_name()]

    def _by_name(self) -> list[Link]:
        return sorted(self, key=lambda link: link.node.name)

    def _status(self, link: Link, record: NodeRecord | None) -> NodeStatus:
        observed = link.observed
        ago = trio.current_time() - link.last_seen
        return NodeStatus(
            node=record.node if record else link.node,
            state=link.state,
            id=record.id if record else "",
            index=record.index if record else 0,
            availability=record.availability if record else Availability.ACTIVE,
            reason=link.reason,
            facts=observed.facts if observed else None,
            applied=observed.applied if observed else 0,
            last_seen=self._clock() - ago if link.last_seen else 0.0,
        )
