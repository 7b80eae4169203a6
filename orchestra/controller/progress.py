"""How far a stack is: what `up` shows while it waits.

Pure functions of state, view and the current plan. A stack has *converged* when nothing is planned,
waits, stops or is blocked and every task has settled; it has *failed* when something will not get
better by itself and nothing else moves any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from orchestra.controller.rows import lacks
from orchestra.controller.ship import Shipment
from orchestra.controller.wish import own_volumes
from orchestra.model.cluster import (
    Blocked,
    Plan,
    Progress,
    ResumeTask,
    SlotPhase,
    SlotProgress,
    StackPhase,
    StackRecord,
    StartTask,
    StopTask,
    Waiting,
)
from orchestra.model.node import NodeState, ObservedTask, TaskState
from orchestra.plan import demand as ask
from orchestra.plan.explain import node_away
from orchestra.plan.standing import SETTLE, Standing, settled, standing
from orchestra.plan.state import State, TaskRecord, View

CRASH_LOOP = 3  # restarts after which a task that does not serve counts as failing

_PHASES = {
    Standing.PREPARING: SlotPhase.STARTING,
    Standing.STARTING: SlotPhase.STARTING,
    Standing.UNHEALTHY: SlotPhase.UNHEALTHY,
    Standing.RESTARTING: SlotPhase.RESTARTING,
    Standing.DONE: SlotPhase.COMPLETED,
    Standing.FAILED: SlotPhase.FAILED,
    Standing.LOST: SlotPhase.WAITING,
    Standing.UNHEARD: SlotPhase.WAITING,
}
_MOVING = (Standing.PREPARING, Standing.STARTING, Standing.RESTARTING, Standing.UNHEARD)


@frozen
class Sight:
    """A stack at one moment: `progress` with every slot, and the tasks whose logs explain."""

    progress: Progress
    failing: tuple[str, ...] = ()


@frozen
class _Look:
    """A stack's tasks with all there is to know of them."""

    state: State
    view: View
    reports: Mapping[str, ObservedTask]
    lacks: Mapping[str, Blocked | Waiting]  # by slot
    notes: Mapping[str, Shipment]  # by task id
    live: Sequence[TaskRecord]
    stopping: Sequence[TaskRecord]

    def standing(self, task: TaskRecord) -> Standing:
        return standing(task, self.view, self.reports)

    def is_up(self, task: TaskRecord) -> bool:
        now = self.standing(task)
        if now is Standing.DONE:
            return True
        report = self.reports.get(task.task.id)
        asked = report is not None and report.restart_token < task.task.restart_token
        return now is Standing.SERVING and not asked and settled(task, self.view, SETTLE)

    def fails(self, task: TaskRecord) -> bool:
        note = self.notes.get(task.task.id)
        if note is not None and note.hopeless:
            return True
        now = self.standing(task)
        if now in (Standing.FAILED, Standing.UNHEALTHY):
            return True
        report = self.reports.get(task.task.id)
        looping = report is not None and report.restarts > CRASH_LOOP
        return looping and now not in (Standing.SERVING, Standing.DONE)

    def moves(self, task: TaskRecord) -> bool:
        """Whether a task may still come to serve by itself."""
        now = self.standing(task)
        return (now in _MOVING and not self.fails(task)) or (
            now is Standing.SERVING and not self.is_up(task)
        )

    def node(self, task: TaskRecord) -> str:
        known = self.state.nodes.get(task.task.node)
        return known.name if known else "a removed node"


def look(state: State, view: View, plan: Plan, name: str, notes: Mapping[str, Shipment]) -> Sight:
    """Return how far a stack is. `notes` are the images that tasks wait for, by task id."""
    record = state.stacks.get(name)
    if record is None:
        return Sight(Progress(view.now, f"stack {name} is removed", StackPhase.REMOVED))
    tasks = [t for t in state.tasks.values() if t.task.stack == name]
    seen = _Look(
        state,
        view,
        view.reports(),
        {lack.slot: lack for lack in reversed(lacks(plan, name))},
        notes,
        [t for t in tasks if not t.task.stop],
        [t for t in tasks if t.task.stop and not (t.task.held and t.final is not None)],
    )
    slots = _slots(seen)
    if record.removing:
        slots = (*slots, *_volumes_away(record, seen))
        text = f"{len(tasks)} tasks to go" if tasks else "networks and volumes to go"
        phase = StackPhase.REMOVING
        return Sight(Progress(view.now, text, phase, running=len(tasks), slots=slots))
    up = {t.task.id: t.task.slot for t in seen.live if seen.is_up(t)}
    running, desired = len(set(up.values())), _desired(record, seen)
    text = f"{running} of {desired} tasks are up"
    failing = [t for t in seen.live if seen.fails(t)]
    # A global slot of a lost node is not missed.
    lacking = any(t.task.id not in up and seen.standing(t) is not Standing.LOST for t in seen.live)
    told = clashes(view, name, state.generation)
    moving = (
        bool(seen.stopping)
        or _moves(plan, name)
        or any(map(seen.moves, seen.live))
        or len(told) < len(clashes(view, name))  # a node will look again
    )
    phase = StackPhase.CONVERGING
    if not (lacking or seen.lacks or moving):
        phase = StackPhase.CONVERGED
    hopeless = [
        *(_failure(t, seen) for t in failing),
        *(f"cannot place {k.slot}: {k.because}" for k in seen.lacks.values() if _is_blocked(k)),
        *told,
    ]
    if hopeless and not moving:
        phase, text = StackPhase.FAILED, "\n".join(hopeless)
    return Sight(
        Progress(view.now, text, phase, running, desired, slots),
        tuple(t.task.id for t in failing if t.released),
    )


def _volumes_away(record: StackRecord, seen: _Look) -> list[SlotProgress]:
    """Volumes that shall go with their stack, but whose nodes cannot be asked to remove them."""
    if not record.remove_volumes:
        return []
    return [
        SlotProgress(f"volume {name}", SlotPhase.WAITING, text=node_away(node))
        for name in own_volumes(record)
        for holder in seen.state.volumes.get(name, ())
        if (node := seen.view.nodes.get(holder)) and node.state is not NodeState.READY
    ]


def behind(view: View, generation: int) -> list[str]:
    """Ready nodes whose kernel does not have `generation` yet, each with what hinders it."""
    return [
        f"{node.record.name} is told" + "".join(f": {p}" for p in node.observed.problems[:1])
        for node in view.nodes.values()
        if node.state is NodeState.READY and node.observed and node.observed.applied < generation
    ]


def clashes(view: View, stack: str, generation: int = 0) -> list[str]:
    """Published ports of a stack that a node cannot hold, in the node's own words.

    Of nodes only that have applied `generation`: it may be better since.
    """
    return [
        f"on {node.record.name}: {problem}"
        for node in view.nodes.values()
        if node.state is NodeState.READY and node.observed and node.observed.applied >= generation
        for problem in node.observed.problems
        if problem.startswith("cannot publish ") and f" for service {stack}/" in problem
    ]


def _is_blocked(lack: Blocked | Waiting) -> bool:
    return isinstance(lack, Blocked)


def _slots(seen: _Look) -> tuple[SlotProgress, ...]:
    """Every slot that has a task or lacks one; of several tasks the newest that shall run."""
    out: dict[str, SlotProgress] = {}
    for task in seen.stopping:
        slot = task.task.slot
        out[slot] = SlotProgress(slot, SlotPhase.STOPPING, seen.node(task))
    for task in sorted(seen.live, key=lambda t: (t.task.created, t.generation)):
        out[task.task.slot] = _slot(task, seen)
    for slot, lack in seen.lacks.items():
        if slot not in out or out[slot].phase is SlotPhase.STOPPING:
            out[slot] = _without_task(lack)
    return tuple(out[slot] for slot in sorted(out))


def _slot(task: TaskRecord, seen: _Look) -> SlotProgress:
    slot, node, now = task.task.slot, seen.node(task), seen.standing(task)
    lack = seen.lacks.get(slot)
    note = seen.notes.get(task.task.id)
    if isinstance(lack, Blocked) or (lack is not None and now is Standing.LOST):
        return _without_task(lack)
    if note is not None and note.trouble:
        return SlotProgress(slot, SlotPhase.BLOCKED, node, str(note))
    if note is not None:
        return SlotProgress(slot, SlotPhase.SHIPPING, node, note.image, round(note.share, 2))
    if not task.released:
        return SlotProgress(slot, SlotPhase.PLACED, node)
    report = task.final or seen.reports.get(task.task.id)
    error = report.error if report is not None else ""
    if now is not Standing.SERVING:
        return SlotProgress(slot, _PHASES[now], node, error)
    if report is not None and report.restart_token < task.task.restart_token:
        return SlotProgress(slot, SlotPhase.RESTARTING, node)
    checked = report is not None and report.health is not None
    phase = SlotPhase.HEALTHY if checked else SlotPhase.RUNNING
    return SlotProgress(slot, phase, node, lack.because if lack else "")


def _without_task(lack: Blocked | Waiting) -> SlotProgress:
    phase = SlotPhase.BLOCKED if isinstance(lack, Blocked) else SlotPhase.WAITING
    return SlotProgress(lack.slot, phase, "", lack.because)


def _moves(plan: Plan, stack: str) -> bool:
    """Whether the plan starts or stops anything of a stack."""
    return any(
        isinstance(a, (StartTask, ResumeTask, StopTask)) and a.stack == stack for a in plan.actions
    )


def _desired(record: StackRecord, seen: _Look) -> int:
    services = {n: s for n, s in record.stack.services.items() if n not in record.stopped}
    count = sum(ask.replicas(record, s) for s in services.values() if not ask.is_global(s))
    slots = {t.task.slot for t in seen.live} | set(seen.lacks)
    globals_ = {name for name, service in services.items() if ask.is_global(service)}
    return count + sum(1 for slot in slots if slot.partition(".")[0] in globals_)


def _failure(task: TaskRecord, seen: _Look) -> str:
    report = task.final or seen.reports.get(task.task.id)
    text = f"{task.task.slot} on {seen.node(task)}"
    note = seen.notes.get(task.task.id)
    if note is not None:
        return f"{task.task.slot}: {note}"
    if report is None:
        return f"{text} failed"
    if report.state is TaskState.RUNNING:
        return f"{text} is unhealthy" + (f": {report.error}" if report.error else "")
    code = f"exit code {report.exit_code}" if report.exit_code is not None else ""
    why = "; ".join(filter(None, (code, report.error)))
    again = f", {report.restarts} restarts" if report.restarts else ""
    return f"{text} failed ({why or report.state.value}{again})"
