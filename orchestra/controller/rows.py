"""The rows of `ps`: every task of a stack, and every slot that has none yet, with the reason.

Pure: state, view and the current plan in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from orchestra.controller.ship import Shipment
from orchestra.model.cluster import Blocked, Plan, StackRecord, TaskStatus, Waiting
from orchestra.model.node import ObservedTask, TaskState
from orchestra.model.service import PortMode, Service
from orchestra.plan.enact import port_key
from orchestra.plan.standing import Standing, is_final, standing
from orchestra.plan.state import State, TaskRecord, View


def lacks(plan: Plan, stack: str) -> list[Blocked | Waiting]:
    """What of a stack is blocked or waits."""
    found: list[Blocked | Waiting] = [*plan.blocked, *plan.waiting]
    return [lack for lack in found if lack.stack == stack]


def task_rows(
    state: State, view: View, plan: Plan, name: str, notes: Mapping[str, Shipment]
) -> list[TaskStatus]:
    """The tasks of a stack, and a row for each slot that has none yet, with the reason.

    `notes` are the images that tasks wait for, by task id.
    """
    record = state.stacks[name]
    reports = view.reports()
    rows = [
        _row(state, view, record, task, reports, notes)
        for task in state.tasks.values()
        if task.task.stack == name
    ]
    filled = {row.slot for row in rows if row.desired == "running"}
    for lack in lacks(plan, name):
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
    waits = {lack.slot: lack.because for lack in lacks(plan, name)}
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
    notes: Mapping[str, Shipment],
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
        error=(report.error if report else "") or str(notes.get(task.task.id, "")),
        final=report is not None and is_final(task, report),
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
