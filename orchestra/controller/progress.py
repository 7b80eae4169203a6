"""What users see of a stack: the rows of `ps`, and one line of `up`'s live progress.

Pure functions of state, view and the current plan. A stack has *converged* when nothing is planned,
waits or is blocked and every task has settled; it has *failed* when something will not get better
by itself and nothing else moves any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from orchestra.model.cluster import (
    Blocked,
    Plan,
    Progress,
    StackPhase,
    StackRecord,
    StartTask,
    StopTask,
    TaskStatus,
    Waiting,
)
from orchestra.model.node import ObservedTask, TaskState
from orchestra.model.service import PortMode, Service
from orchestra.plan import demand as ask
from orchestra.plan.enact import port_key
from orchestra.plan.standing import SETTLE, Standing, settled, standing
from orchestra.plan.state import State, TaskRecord, View

CRASH_LOOP = 3  # restarts after which a task that does not serve counts as failing

_MOVING = (Standing.PREPARING, Standing.STARTING, Standing.RESTARTING, Standing.UNHEARD)


def task_rows(
    state: State, view: View, plan: Plan, name: str, notes: Mapping[str, str]
) -> list[TaskStatus]:
    """The tasks of a stack, and a row for each slot that has none yet, with the reason.

    `notes` are texts about tasks that wait for their image, by task id.
    """
    record = state.stacks[name]
    reports = view.reports()
    rows = [
        _row(state, view, record, task, reports, notes)
        for task in state.tasks.values()
        if task.task.stack == name
    ]
    filled = {row.slot for row in rows if row.desired == "running"}
    for lack in _lacks(plan, name):
        service = lack.slot.partition(".")[0]
        if service in record.stack.services and lack.slot not in filled:
            filled.add(lack.slot)
            rows.append(
                TaskStatus(
                    task="",
                    stack=name,
                    service=service,
                    slot=lack.slot,
                    node="",
                    state=TaskState.PENDING,
                    desired="running",
                    image=record.stack.services[service].image,
                    error=lack.because,
                )
            )
    waits = {lack.slot: lack.because for lack in _lacks(plan, name)}
    return [_with_reason(row, waits, view) for row in rows]


def _with_reason(row: TaskStatus, waits: Mapping[str, str], view: View) -> TaskStatus:
    """A task of a lost node says why it is not replaced."""
    if row.state is TaskState.ORPHANED and row.slot in waits and not row.error:
        return evolve(row, error=waits[row.slot])
    return row


def _row(
    state: State,
    view: View,
    record: StackRecord,
    task: TaskRecord,
    reports: Mapping[str, ObservedTask],
    notes: Mapping[str, str],
) -> TaskStatus:
    report = task.final or reports.get(task.task.id)
    now = standing(task, view, reports)
    if now is Standing.LOST:
        shown = TaskState.ORPHANED
    elif report is not None:
        shown = report.state
    else:
        shown = TaskState.ASSIGNED if task.released else TaskState.PREPARING
    node = state.nodes.get(task.task.node)
    names = {n.id: n.name for n in state.networks.values()}
    service = record.stack.services.get(task.task.service)
    return TaskStatus(
        task=task.task.id,
        stack=task.task.stack,
        service=task.task.service,
        slot=task.task.slot,
        node=node.name if node else "",
        state=shown,
        desired="shutdown" if task.task.stop else "running",
        image=task.assigned.spec.image,
        container=report.container if report else "",
        container_name=task.assigned.name,
        health=report.health if report else None,
        exit_code=report.exit_code if report else None,
        error=(report.error if report else "") or notes.get(task.task.id, ""),
        restarts=report.restarts if report else 0,
        created=task.task.created,
        started=report.started if report else 0.0,
        finished=report.finished if report else 0.0,
        ports=_ports(state, record.stack.name, service) if service else (),
        addresses={
            names.get(network, network): address for network, address in task.task.addresses.items()
        },
    )


def _ports(state: State, stack: str, service: Service) -> tuple[str, ...]:
    out = []
    for port in service.ports:
        key = port_key(stack, service.name, port.protocol, port.target)
        number = port.published or state.ports.get(key)
        host = port.host_ip or ("*" if port.mode is PortMode.INGRESS else "node")
        out.append(f"{host}:{number}->{port.target}/{port.protocol}")
    return tuple(out)


@frozen
class Sight:
    """A stack at one moment: the line to show, and the tasks whose logs explain a failure."""

    progress: Progress
    failing: tuple[str, ...] = ()


def look(state: State, view: View, plan: Plan, name: str, notes: Mapping[str, str]) -> Sight:
    """Return how far a stack is."""
    record = state.stacks.get(name)
    if record is None:
        text = f"stack {name} is removed"
        return Sight(Progress(view.now, text, StackPhase.REMOVED))
    tasks = [t for t in state.tasks.values() if t.task.stack == name]
    if record.removing:
        names = ", ".join(sorted(t.task.slot for t in tasks)) or "networks and volumes"
        text = f"removing {names}"
        return Sight(Progress(view.now, text, StackPhase.REMOVING, running=len(tasks)))
    reports = view.reports()
    live = [t for t in tasks if not t.task.stop]
    stand = {t.task.id: standing(t, view, reports) for t in live}
    good = [t for t in live if _is_up(t, stand[t.task.id], view)]
    running = len({t.task.slot for t in good})
    failing = [t for t in live if _fails(t, stand[t.task.id], reports)]
    blocked = [b for b in plan.blocked if b.stack == name]
    moving = _moves(plan, name) or any(
        stand[t.task.id] in _MOVING for t in live if t not in failing
    )
    unsettled = any(stand[t.task.id] is Standing.SERVING and t not in good for t in live)
    desired = _desired(record, plan, live)
    lines = _lines(state, _lacks(plan, name), live, stand, reports, notes, good)
    if not lines and not moving and not unsettled and not failing:
        text = f"{running} of {desired} tasks are up"
        return Sight(
            Progress(view.now, text, StackPhase.CONVERGED, running=running, desired=desired)
        )
    hopeless = bool(failing) or bool(blocked)
    phase = StackPhase.CONVERGING
    if hopeless and not moving and not unsettled:
        phase = StackPhase.FAILED
        lines = [_failure(t, state, reports) for t in failing] + [
            f"cannot place {b.slot}: {b.because}" for b in blocked
        ]
    slot = failing[0].task.slot if failing else ""
    text = "; ".join(lines) or "starting"
    return Sight(
        Progress(view.now, text, phase, slot, running, desired),
        tuple(t.task.id for t in failing),
    )


def _lacks(plan: Plan, stack: str) -> list[Blocked | Waiting]:
    """What of a stack is blocked or waits."""
    lacks: list[Blocked | Waiting] = [*plan.blocked, *plan.waiting]
    return [lack for lack in lacks if lack.stack == stack]


def _moves(plan: Plan, stack: str) -> bool:
    """Whether the plan starts or stops anything of a stack."""
    return any(isinstance(a, (StartTask, StopTask)) and a.stack == stack for a in plan.actions)


def _desired(record: StackRecord, plan: Plan, live: Sequence[TaskRecord]) -> int:
    slots = {t.task.slot for t in live} | {w.slot for w in _lacks(plan, record.stack.name)}
    count = sum(
        ask.replicas(record, service)
        for service in record.stack.services.values()
        if not ask.is_global(service)
    )
    globals_ = {name for name, s in record.stack.services.items() if ask.is_global(s)}
    return count + sum(1 for slot in slots if slot.partition(".")[0] in globals_)


def _is_up(task: TaskRecord, now: Standing, view: View) -> bool:
    return now is Standing.DONE or (now is Standing.SERVING and settled(task, view, SETTLE))


def _fails(task: TaskRecord, now: Standing, reports: Mapping[str, ObservedTask]) -> bool:
    if now in (Standing.FAILED, Standing.UNHEALTHY):
        return True
    report = reports.get(task.task.id)
    looping = report is not None and report.restarts > CRASH_LOOP
    return looping and now not in (Standing.SERVING, Standing.DONE)


def _lines(
    state: State,
    lacks: Sequence[Blocked | Waiting],
    live: Sequence[TaskRecord],
    stand: Mapping[str, Standing],
    reports: Mapping[str, ObservedTask],
    notes: Mapping[str, str],
    good: Sequence[TaskRecord],
) -> list[str]:
    """What keeps the stack from having converged; slots of a service share a text."""
    reasons: dict[str, str] = {lack.slot: lack.because for lack in lacks}
    up = {t.task.id for t in good}
    for task in live:
        slot, now = task.task.slot, stand[task.task.id]
        note = notes.get(task.task.id)
        if note:
            reasons[slot] = note
        elif task.task.id in up or slot in reasons or now is Standing.LOST:
            continue  # a global slot of a lost node is not missed
        else:
            node = state.nodes.get(task.task.node)
            report = reports.get(task.task.id)
            error = f" ({report.error})" if report is not None and report.error else ""
            where = node.name if node else "a removed node"
            word = "running, to be seen if it stays" if now is Standing.SERVING else now.value
            reasons[slot] = f"it is {word} on {where}{error}"
    groups: dict[tuple[str, str], list[str]] = {}
    for slot in sorted(reasons):
        groups.setdefault((slot.partition(".")[0], reasons[slot]), []).append(slot)
    return [f"{', '.join(slots)}: {reason}" for (_, reason), slots in groups.items()]


def _failure(task: TaskRecord, state: State, reports: Mapping[str, ObservedTask]) -> str:
    report = task.final or reports.get(task.task.id)
    node = state.nodes.get(task.task.node)
    text = f"{task.task.slot} on {node.name if node else 'a removed node'}"
    if report is None:
        return f"{text} failed"
    if report.state is TaskState.RUNNING:
        return f"{text} is unhealthy" + (f": {report.error}" if report.error else "")
    code = f"exit code {report.exit_code}" if report.exit_code is not None else ""
    why = "; ".join(filter(None, (code, report.error)))
    again = f", {report.restarts} restarts" if report.restarts else ""
    return f"{text} failed ({why or report.state.value}{again})"
