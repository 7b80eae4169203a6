"""One service: its slots, who is in them, and the steps that bring them to the specification.

Each slot is looked at by itself: empty ones are filled, tasks of lost or drained nodes move,
tasks whose specification changed are replaced, `parallelism` at a time and only as fast as their
successors come to serve. Nothing is stopped before it is known that its successor has a place.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.model.cluster import (
    Difference,
    StackRecord,
)
from orchestra.model.node import Availability, NodeState, ObservedTask
from orchestra.model.service import DependencyCondition, Service, UpdateOrder
from orchestra.plan import demand as ask
from orchestra.plan.board import Board
from orchestra.plan.explain import node_away
from orchestra.plan.places import Places
from orchestra.plan.spec_hash import differences, fingerprint, spec_hash
from orchestra.plan.standing import Standing, settled, stopped
from orchestra.plan.state import TaskRecord

MONITOR = 5.0  # seconds that a replacement without a health check is watched


class Rollout:
    """Plans one service; `gates` are asked before something new of it starts."""

    def __init__(self, board: Board, record: StackRecord, service: Service) -> None:
        self.board = board
        self.record = record
        self.service = service
        self.key = ask.key_of(record.stack.name, service.name)
        self.fingerprint = fingerprint(record, service)
        self.hash = spec_hash(self.fingerprint)
        self.places = Places(board, record, service)
        self.demand = self.places.demand
        tasks = board.by_service.get(self.key, [])
        self.live: dict[str, list[TaskRecord]] = {}
        self.stopping: dict[str, list[TaskRecord]] = {}
        for task in tasks:
            (self.stopping if task.task.stop else self.live).setdefault(task.task.slot, []).append(
                task
            )
        for records in self.live.values():
            records.sort(key=lambda r: (r.task.created, r.generation, r.task.id), reverse=True)
        self.slots = self._slots()
        self._closed: tuple[str, bool] | None = None
        self._order = ask.update_order(record, service)

    # --- what its dependents ask ---------------------------------------------------------

    def gate(self, condition: DependencyCondition) -> tuple[str, bool] | None:
        """Why a dependent may not start yet, and whether only a change can help; None = it may."""
        if self.is_stopped:
            name = self.service.name
            return f"{name} is stopped (`orchestra start {name}` starts it)", False
        for slot in self.slots:
            current = next((r for r in self.live.get(slot, ()) if self._matches(r)), None)
            if current is None:
                return f"{slot} is not started yet", False
            now = self.board.standing(current)
            if now is Standing.FAILED and condition is not DependencyCondition.STARTED:
                return f"{slot} failed{_exit(current, self.board.reports)}", True
            if now is Standing.DONE:
                continue
            if condition is DependencyCondition.COMPLETED:
                return f"{slot} has not completed yet", False
            if now is Standing.SERVING:
                continue
            if condition is DependencyCondition.HEALTHY or now in (
                Standing.PREPARING,
                Standing.LOST,
                Standing.UNHEARD,
            ):
                return f"{slot} is {now.value}", False
        return None

    # --- planning ------------------------------------------------------------------------

    def plan(self, rollouts: Mapping[str, Rollout]) -> None:
        """Write this service's next steps into the draft; `rollouts` are those of its stack."""
        for records in self.stopping.values():
            for record in list(records):
                if not self._kept(record) and self.board.sweep(record):
                    records.remove(record)
        for slot, records in self.live.items():
            if slot not in self.slots:
                for record in records:
                    self.board.retire(record, self._superfluous(record))
        if self.is_stopped:
            self._hold()
            return
        flux = 0
        dirty: list[tuple[bool, int, str, TaskRecord]] = []
        for slot, number in self.slots.items():
            records = self.live.get(slot, [])
            if not records:
                flux += self._fill(slot, number, rollouts)
                continue
            current = next((r for r in records if self._matches(r)), records[0])
            if self._matches(current):
                others = [r for r in records if r is not current]
                flux += self._keep(slot, number, current, others, rollouts)
            else:
                serving = self.board.standing(current) is Standing.SERVING
                dirty.append((serving, number, slot, current))
        for serving, number, slot, current in sorted(dirty, key=lambda d: d[:3]):
            now = self.board.standing(current)
            if now is Standing.UNHEARD:
                self.places.wait(
                    slot, f"{self.board.node_name(current.task.node)} is not heard yet"
                )
            elif serving and flux >= ask.parallelism(self.service):
                self.places.wait(slot, "its turn to be replaced comes when the others serve")
            else:
                flux += 1
                self._replace(slot, number, current, rollouts)

    def _slots(self) -> dict[str, int]:
        """The slots that shall exist, with their numbers; of a global service one per node."""
        name = self.service.name
        if self.record.removing:
            return {}
        if not ask.is_global(self.service):
            return {f"{name}.{n}": n for n in range(1, ask.replicas(self.record, self.service) + 1)}
        eligible = self.board.scheduler.eligible(
            self.demand, (Availability.ACTIVE, Availability.PAUSE)
        )
        slots = {}
        for node in eligible:
            slot = f"{name}.{node.record.name}"
            active = node.record.availability is Availability.ACTIVE
            held = any(r.task.held for r in self.stopping.get(slot, ()))
            if slot in self.live or held or (node.state is NodeState.READY and active):
                slots[slot] = 0
        if not eligible and not self.is_stopped:
            self.places.block(name, self.board.scheduler.why_not(self.demand))
        return slots

    def _hold(self) -> None:
        """Stop what runs; the newest of each slot is kept if it is what `start` would make."""
        because = f"{self.service.name} was stopped"
        for slot, records in self.live.items():
            if slot not in self.slots:
                continue
            for record in records:
                if self.board.standing(record).runs:
                    hold = record is records[0] and self._matches(record)
                    self.board.retire(record, because, hold)

    def _kept(self, record: TaskRecord) -> bool:
        """Whether a task that a user stopped can still be resumed."""
        task = record.task
        if not task.held or task.slot not in self.slots or not self._matches(record):
            return False
        node = self.board.view.nodes.get(task.node)
        return node is not None and (self.is_stopped or node.state is not NodeState.DOWN)

    def _resume(
        self, slot: str, number: int, held: TaskRecord, rollouts: Mapping[str, Rollout]
    ) -> None:
        """Start a stopped task where it is; elsewhere anew if its node cannot have it any more."""
        if not stopped(held, self.board.view, self.board.reports):
            self.places.wait(slot, "it is still stopping")
            return
        if not self._open(slot, rollouts):
            return
        leave = self.places.resume(slot, held)
        if leave:
            self.places.take_over(slot, number, held, leave)

    def _fill(self, slot: str, number: int, rollouts: Mapping[str, Rollout]) -> bool:
        held = next((r for r in self.stopping.get(slot, ()) if self._kept(r)), None)
        if held is not None:
            self._resume(slot, number, held, rollouts)
            return False
        if self.stopping.get(slot):
            self.places.wait(slot, "its predecessor is stopping")
            return True
        updating = any(not self._matches(r) for rs in self.live.values() for r in rs)
        because = "the service changed" if updating else self._first_reason()
        if not self._open(slot, rollouts):
            return updating
        self.places.start(slot, number, because)
        return updating

    def _first_reason(self) -> str:
        if self.record.scale.get(self.service.name, self.service.replicas) > 1 and self.live:
            return f"scaled to {len(self.slots)}"
        return "it shall run"

    def _keep(
        self,
        slot: str,
        number: int,
        current: TaskRecord,
        others: list[TaskRecord],
        rollouts: Mapping[str, Rollout],
    ) -> bool:
        """Look after a task of the wanted specification; say whether its slot is in motion."""
        now = self.board.standing(current)
        node = current.task.node
        if now is Standing.LOST:
            return self._move_lost(slot, number, current, others)
        settled_there = now in (Standing.DONE, Standing.FAILED, Standing.UNHEARD)
        leave = "" if settled_there else self.board.scheduler.stays(node, self.demand)
        if leave:
            away = self.places.volume_away()
            if away:  # its data cannot follow: the node is emptied all the same
                self.board.retire(current, leave)
                self.places.wait(slot, away)
            else:
                self._replace(slot, number, current, rollouts, leave)
            return True
        if now is Standing.FAILED:
            again = self._again(current)
            if again:
                self._replace(slot, number, current, rollouts, again)
            return True
        if now is Standing.DONE:
            again = self._token(current)
            if again:
                self._replace(slot, number, current, rollouts, again)
                return True
        elif now is Standing.SERVING:
            monitor = self.service.update.monitor if self.service.update else MONITOR
            pause = self.service.update.delay if self.service.update else 0.0
            since = self.board.view.serving_since.get(current.task.id, self.board.view.now)
            if others and not settled(current, self.board.view, monitor):
                why = f"it is watched for {monitor:g} s before its predecessor stops"
                self.places.wait(slot, why, since + monitor)
                return True
            if others and pause and self.board.view.now - since < pause:
                self.places.wait(slot, "update_config.delay", since + pause)
                return True
        else:
            self.places.wait(slot, self._describe(current, now))
            return True
        for record in others:
            self.board.retire(record, "its successor has taken over")
        return bool(self.stopping.get(slot))

    def _move_lost(
        self, slot: str, number: int, current: TaskRecord, others: list[TaskRecord]
    ) -> bool:
        """A task whose node is gone: elsewhere, unless its data is on that node."""
        if any(self.board.standing(other) is Standing.SERVING for other in others):
            self.board.retire(current, self._away(current))
            return True
        if ask.is_global(self.service):
            return False
        self.places.take_over(slot, number, current, self._away(current))
        return True

    def _replace(
        self,
        slot: str,
        number: int,
        current: TaskRecord,
        rollouts: Mapping[str, Rollout],
        because: str = "",
    ) -> None:
        """Put a new task in the slot of `current`, in the order that the service allows."""
        changes: tuple[Difference, ...] = ()
        order, why = self._order
        if not because:
            changes = differences(current.fingerprint, self.fingerprint)
            because = f"the service changed ({order.value}: {why})"
            if not self._open(slot, rollouts):
                return
        if not self.board.standing(current).runs or not current.released:
            self.places.take_over(slot, number, current, because, changes)
        elif order is UpdateOrder.START_FIRST and not ask.is_global(self.service):
            serving = self.board.standing(current) is Standing.SERVING
            if self.places.start(slot, number, because, current, changes) and not serving:
                self.board.retire(current, because)
        else:
            self.places.stop_first(slot, current, because, changes)

    def refuse(self, because: str) -> None:
        """Nothing of the service can start; what runs of it is left alone."""
        self.places.block(self.service.name, because)

    @property
    def is_stopped(self) -> bool:
        """A user stopped the service (`orchestra stop`)."""
        return self.service.name in self.record.stopped

    # --- small questions -----------------------------------------------------------------

    def _matches(self, record: TaskRecord) -> bool:
        return record.task.spec_hash == self.hash

    def _open(self, slot: str, rollouts: Mapping[str, Rollout]) -> bool:
        """Whether all dependencies allow a start; else the slot waits or is blocked."""
        if self._closed is None:
            self._closed = ("", False)
            for dependency in self.service.depends_on:
                other = rollouts.get(dependency.service)
                found = other.gate(dependency.condition) if other else None
                if found and not (found[1] and not dependency.required):
                    self._closed = (f"it depends on {dependency.service}: {found[0]}", found[1])
                    break
        because, hopeless = self._closed
        if not because:
            return True
        if hopeless:
            self.places.block(slot, because)
        else:
            self.places.wait(slot, because)
        return False

    def _again(self, current: TaskRecord) -> str:
        """Why a task that failed for good is tried again: somebody asked since."""
        if current.final is not None and current.ended <= self.record.updated:
            return f"it failed before{_exit(current, self.board.reports)}; `up` tries again"
        return self._token(current)

    def _token(self, current: TaskRecord) -> str:
        asked = self.record.restart_tokens.get(self.service.name, 0)
        return "a restart was asked for" if current.task.restart_token < asked else ""

    def _superfluous(self, record: TaskRecord) -> str:
        name = self.service.name
        if self.record.removing:
            return "its stack is being removed"
        if ask.is_global(self.service):
            leave = self.board.scheduler.stays(record.task.node, self.demand)
            return leave or "its node has no such slot"
        return f"{name} shall have {len(self.slots)} replicas"

    def _away(self, record: TaskRecord) -> str:
        node = self.board.view.nodes.get(record.task.node)
        return node_away(node) if node else "its node was removed"

    def _describe(self, record: TaskRecord, now: Standing) -> str:
        where = self.board.node_name(record.task.node)
        report = self.board.reports.get(record.task.id)
        error = f": {report.error}" if report is not None and report.error else ""
        return f"it is {now.value} on {where}{error}"


def _exit(record: TaskRecord, reports: Mapping[str, ObservedTask]) -> str:
    report = record.final or reports.get(record.task.id)
    if report is None:
        return ""
    if report.error:
        return f" ({report.error})"
    return f" (exit code {report.exit_code})" if report.exit_code is not None else ""
