"""Slots of one service get nodes: where, on which volumes, and the steps that bring them there.

What a slot needs is decided in `rollout`; here it is tried. Where it cannot be done nothing is
started or stopped, and the draft says why: what may come by itself `wait`s, what needs somebody's
hand is `block`ed.
"""

from __future__ import annotations

from attrs import evolve

from orchestra.model.cluster import (
    Blocked,
    CreateVolume,
    Difference,
    RemoveTask,
    ResumeTask,
    StackRecord,
    StartTask,
    Waiting,
)
from orchestra.model.node import Availability, NodeState
from orchestra.model.service import Service
from orchestra.plan import demand as ask
from orchestra.plan.board import Board
from orchestra.plan.explain import node_away
from orchestra.plan.schedule import Demand, NoNode
from orchestra.plan.state import TaskRecord


class Places:
    """The places of a service's slots; the scheduler that it shares counts what it gives out."""

    def __init__(self, board: Board, record: StackRecord, service: Service) -> None:
        self.demand = ask.demand_of(board.state, board.view, record, service)
        self._board = board
        self._record = record
        self._service = service
        self._volumes = ask.named_volumes(record.stack, service)

    def start(
        self,
        slot: str,
        number: int,
        because: str,
        replaces: TaskRecord | None = None,
        changes: tuple[Difference, ...] = (),
    ) -> bool:
        """Place the slot and write its start; False (and why) where no node can take it."""
        away = self.volume_away()
        if away:
            self.wait(slot, away)
            return False
        try:
            node = self._node_for(slot, replaces.task.node if replaces else "")
        except NoNode as error:
            self.block(slot, str(error))
            return False
        self._bind(node)
        self._board.draft.actions.append(
            StartTask(
                self._record.stack.name,
                self._service.name,
                slot,
                number,
                node,
                self._board.node_name(node),
                because,
                replaces.task.id if replaces else "",
                changes,
            )
        )
        return True

    def take_over(
        self,
        slot: str,
        number: int,
        current: TaskRecord,
        because: str,
        changes: tuple[Difference, ...] = (),
    ) -> None:
        """Start a successor of a task of which nothing runs any more, and forget that one."""
        if self.start(slot, number, because, current, changes):
            self._board.draft.actions.append(RemoveTask(current.task.id, slot, because))

    def stop_first(
        self, slot: str, current: TaskRecord, because: str, changes: tuple[Difference, ...]
    ) -> None:
        node = current.task.node
        self._board.scheduler.count(node, self.demand, -1)
        try:
            self._node_for(slot)
        except NoNode as error:
            self._board.scheduler.count(node, self.demand)
            self.block(slot, str(error))
            return
        text = because + "".join(f"\n    {change}" for change in changes)
        self._board.retire(current, text)

    def resume(self, slot: str, held: TaskRecord) -> str:
        """Start a stopped task where it is; "" or why its node cannot have it any more."""
        node = held.task.node
        leave = self._board.scheduler.stays(node, self.demand)
        if leave:
            return leave
        try:
            self._board.scheduler.place_on(node, self._pinned())
        except NoNode as error:
            return str(error)
        task, name = held.task, self._board.node_name(node)
        self._board.draft.actions.append(
            ResumeTask(task.id, task.stack, task.service, slot, name, "it was started")
        )
        return ""

    def volume_away(self) -> str:
        """Why the service must wait for a volume: all nodes that hold it are away."""
        if ask.is_global(self._service):
            return ""
        for name, holders in self.demand.pinned.items():
            nodes = [self._board.view.nodes[h] for h in holders if h in self._board.view.nodes]
            if holders and not any(n.state is NodeState.READY for n in nodes):
                where = "; ".join(node_away(n, ", which is") for n in nodes)
                where = where or "a node that was removed"
                return f"its volume {name} is on {where}; it never starts on an empty volume"
            drained = [n for n in nodes if n.record.availability is Availability.DRAIN]
            if holders and len(drained) == len(nodes):
                names = ", ".join(n.record.name for n in drained)
                return f"its volume {name} is on {names}, which is drained"
        return ""

    def wait(self, slot: str, because: str, until: float = 0.0) -> None:
        stack = self._record.stack.name
        self._board.draft.waiting.append(Waiting(slot, because, until, stack))

    def block(self, slot: str, because: str) -> None:
        self._board.draft.blocked.append(Blocked(slot, because, self._record.stack.name))

    def _node_for(self, slot: str, leaving: str = "") -> str:
        """The node for one more task of the slot, which is counted there. Raises NoNode."""
        if not ask.is_global(self._service):
            return self._board.scheduler.place(self._pinned(), leaving)
        name = slot.removeprefix(f"{self._service.name}.")
        for node in self._board.view.nodes.values():
            if node.record.name == name:
                return self._board.scheduler.place_on(node.record.id, self.demand)
        raise NoNode(f"{name} is no longer a node of the cluster")

    def _pinned(self) -> Demand:
        """The demand with volumes that an earlier slot of this pass has given a place."""
        new = {v: n for v, n in self._board.bound.items() if v in self._volumes}
        return evolve(self.demand, pinned={**new, **self.demand.pinned}) if new else self.demand

    def _bind(self, node: str) -> None:
        """Every named volume of a started slot has a place from now on."""
        for name in self._volumes:
            holders = self._board.bound.get(name) or self._board.state.volumes.get(name, ())
            if node not in holders:
                self._board.bound[name] = (*holders, node)
                self._board.draft.actions.append(
                    CreateVolume(
                        name,
                        self._board.node_name(node),
                        f"{self.demand.service} uses it",
                    )
                )
