"""From an assignment and the containers of a node to the steps that bring them together.

Pure: `steps` decides, `reconcile` executes, `observed_tasks` reports. A step is an idempotent
value that says why it is there and prints itself; a task that needs nothing has no step, so
``steps`` of a node that has arrived is empty. What a task's own restart policy does in place is
not decided here but when its container ends (`plan.restart`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from orchestra.agent.network import task_container_id
from orchestra.agent.state import Record
from orchestra.model.assignment import AssignedTask, Assignment
from orchestra.model.container import Container, ContainerStatus, HealthStatus
from orchestra.model.node import ObservedTask, TaskState
from orchestra.plan.health import TIMED_OUT

ALIVE = (ContainerStatus.RUNNING, ContainerStatus.PAUSED, ContainerStatus.RESTARTING)


@frozen
class CreateTask:
    """Create the container of a task, and start it."""

    task: AssignedTask
    because: str

    def __str__(self) -> str:
        return f"create {self.task.slot} ({self.task.name}): {self.because}"


@frozen
class StartTask:
    task: AssignedTask
    because: str

    def __str__(self) -> str:
        return f"start {self.task.slot}: {self.because}"


@frozen
class RestartTask:
    task: AssignedTask
    because: str

    def __str__(self) -> str:
        return f"restart {self.task.slot}: {self.because}"


@frozen
class StopTask:
    """Stop the container of a task with its grace; it stays until the task is forgotten."""

    task: AssignedTask
    because: str

    def __str__(self) -> str:
        return f"stop {self.task.slot}: {self.because}"


@frozen
class RemoveTask:
    """Remove a task's container, with grace where it runs. Named volumes stay."""

    id: str  # the task's
    container: str
    name: str
    because: str

    def __str__(self) -> str:
        return f"remove {self.name}: {self.because}"


Step = CreateTask | StartTask | RestartTask | StopTask | RemoveTask


@frozen
class Hindrance:
    """Why a task has no container: not yet (`final` False) or not on this node at all."""

    reason: str
    final: bool


def steps(
    assignment: Assignment,
    records: Mapping[str, Record],
    hindered: Mapping[str, Hindrance],
) -> Sequence[Step]:
    """Return what is to be done, in order: stops and removals first, they free ports and names.

    `records` are all containers of the node by id, `hindered` says by task id why a task cannot
    be created.
    """
    ends: list[Step] = []
    begins: list[Step] = []
    assigned = {task.id for task in assignment.tasks}
    for record in records.values():
        container = record.container
        if container.task and container.task not in assigned:
            because = f"not in generation {assignment.generation}"
            ends.append(RemoveTask(container.task, container.id, container.name, because))
    for task in assignment.tasks:
        kept = records.get(task_container_id(task.id))
        if task.stop:
            if kept and kept.container.status in ALIVE:
                ends.append(StopTask(task, f"generation {assignment.generation} ends it"))
        elif kept is None:
            if task.id not in hindered:
                begins.append(CreateTask(task, f"generation {assignment.generation} assigns it"))
        elif kept.container.status is ContainerStatus.REMOVING:
            continue
        elif kept.restart_token < task.restart_token:
            begins.append(RestartTask(task, f"restart {task.restart_token} was asked for"))
        elif kept.container.status is ContainerStatus.CREATED and not kept.container.error:
            begins.append(StartTask(task, "it was never started"))
    return [*ends, *begins]


def observed_tasks(
    assignment: Assignment,
    records: Mapping[str, Record],
    hindered: Mapping[str, Hindrance],
) -> tuple[ObservedTask, ...]:
    """Return what the node reports of each assigned task."""
    return tuple(
        _observed(task, records.get(task_container_id(task.id)), hindered.get(task.id))
        for task in assignment.tasks
    )


def _observed(
    task: AssignedTask, record: Record | None, hindrance: Hindrance | None
) -> ObservedTask:
    if record is None:
        if task.stop:
            return ObservedTask(task.id, TaskState.SHUTDOWN, final=True)
        if hindrance is None:
            return ObservedTask(task.id, TaskState.ASSIGNED)
        state = TaskState.REJECTED if hindrance.final else TaskState.PREPARING
        return ObservedTask(task.id, state, error=hindrance.reason, final=hindrance.final)
    container = record.container
    state = _state(task, container)
    restarting = record.restart_token < task.restart_token and not task.stop
    ended = container.status not in (ContainerStatus.CREATED, *ALIVE) and not restarting
    exited = state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.SHUTDOWN)
    return ObservedTask(
        id=task.id,
        state=state,
        container=container.id,
        health=container.health.status if container.health else None,
        exit_code=container.exit_code if exited else container.last_exit_code,
        error=container.error or _last_complaint(container),
        restarts=container.restart_count,
        started=container.started,
        finished=container.finished,
        final=ended or (state is TaskState.FAILED and container.status is ContainerStatus.CREATED),
        restart_token=record.restart_token,
    )


def _last_complaint(container: Container) -> str:
    """What the health check of an unhealthy container said last, in one line."""
    health = container.health
    if health is None or health.status is not HealthStatus.UNHEALTHY or not health.log:
        return ""
    probe = health.log[-1]
    said = probe.output.strip().splitlines()
    if probe.exit_code == TIMED_OUT:
        return "its health check timed out"
    return f"its health check ended with {probe.exit_code}" + (f": {said[-1]}" if said else "")


def _state(task: AssignedTask, container: Container) -> TaskState:
    match container.status:
        case ContainerStatus.RUNNING | ContainerStatus.PAUSED:
            return TaskState.RUNNING
        case ContainerStatus.CREATED if not container.error:
            return TaskState.SHUTDOWN if task.stop else TaskState.STARTING
        case _:
            if task.stop and container.status is not ContainerStatus.RESTARTING:
                return TaskState.SHUTDOWN
            return TaskState.FAILED if container.exit_code else TaskState.COMPLETE
