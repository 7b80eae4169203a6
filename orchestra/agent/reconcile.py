"""The executor of `steps`: brings the node's containers to what its assignment says.

Level-triggered: each pass looks at everything and starts the steps that are due, at most one per
container at a time; a pass follows every change and every finished step, and one every few seconds
in any case. A step that fails is logged and told with the task's name, and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from orchestra.agent.creation import Parts, create_container
from orchestra.agent.lifecycle import Lifecycle
from orchestra.agent.network import task_container_id
from orchestra.agent.state import Record
from orchestra.agent.steps import (
    CreateTask,
    Hindrance,
    RemoveTask,
    RestartTask,
    StartTask,
    Step,
    StopTask,
    observed_tasks,
    steps,
)
from orchestra.model.assignment import AssignedTask, Assignment
from orchestra.model.errors import Conflict, NotFound, OrchestraError
from orchestra.model.node import ObservedTask

log = logging.getLogger(__name__)

AGAIN = 5.0  # seconds after which a pass is made without a change


class Reconciler:
    """`problems` says, by task, which step failed last."""

    def __init__(
        self,
        parts: Parts,
        lifecycle: Lifecycle,
        assignment: Callable[[], Assignment],
        reported: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._assignment = assignment
        self._reported = reported
        self._busy: set[str] = set()  # container ids that a step is at work on
        self._hindered: dict[str, Hindrance] = {}
        self._wake = trio.Event()
        self.problems: dict[str, str] = {}

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Reconcile for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                self._pass(nursery)
                with trio.move_on_after(AGAIN):
                    await self._wake.wait()

    def observed(self) -> tuple[ObservedTask, ...]:
        return observed_tasks(self._assignment(), self._records(), self._hindered)

    def _records(self) -> dict[str, Record]:
        return {live.id: live.record for live in self._parts.containers}

    def _pass(self, nursery: trio.Nursery) -> None:
        assignment = self._assignment()
        before = dict(self._hindered)
        self._look_at_images(assignment)
        for step in steps(assignment, self._records(), self._hindered):
            container = _container_of(step)
            if container not in self._busy:
                self._busy.add(container)
                nursery.start_soon(self._do, step, container)
        if before != self._hindered:
            self._reported()

    def _look_at_images(self, assignment: Assignment) -> None:
        """Find what hinders tasks without a container; what is final stays until they go."""
        assigned = {task.id for task in assignment.tasks}
        kept = {i: h for i, h in self._hindered.items() if h.final and i in assigned}
        for task in assignment.tasks:
            absent = task_container_id(task.id) not in self._parts.containers and not task.stop
            if absent and task.id not in kept and not self._has_image(task):
                reason = f"waiting for image {task.spec.image} to be sent to this node"
                kept[task.id] = Hindrance(reason, final=False)
        self._hindered = kept
        self.problems = {i: text for i, text in self.problems.items() if i in assigned}

    def _has_image(self, task: AssignedTask) -> bool:
        try:
            self._parts.images.get(task.spec.image_id)
        except NotFound:
            return False
        return True

    async def _do(self, step: Step, container: str) -> None:
        log.info("%s", step)
        task = step.id if isinstance(step, RemoveTask) else step.task.id
        try:
            await self._execute(step)
            self.problems.pop(task, None)
        except Exception as error:
            # One task's trouble is its own: it is told, and tried again with the next pass.
            if not isinstance(error, OrchestraError):
                log.exception("cannot %s", step)
            self.problems[task] = f"cannot {step}: {error}"
            if isinstance(step, CreateTask):
                self._hindered[task] = Hindrance(str(error), final=True)
            await trio.sleep(1)
        finally:
            self._busy.discard(container)
            self._reported()
            self.wake()

    async def _execute(self, step: Step) -> None:
        containers, lifecycle = self._parts.containers, self._lifecycle
        match step:
            case CreateTask(task):
                self._make_room(task)
                live = await create_container(
                    self._parts,
                    task_container_id(task.id),
                    task.name,
                    task.spec,
                    task=task.id,
                    restart_token=task.restart_token,
                )
                await lifecycle.start_task(live)
            case StartTask(task):
                await lifecycle.start_task(containers.find(task_container_id(task.id)))
            case RestartTask(task):
                live = containers.find(task_container_id(task.id))
                await lifecycle.stop(live)
                await lifecycle.start_task(live)
                containers.store(live, record={"restart_token": task.restart_token})
                lifecycle.tell(live, "restart")
            case StopTask(task):
                await lifecycle.stop(containers.find(task_container_id(task.id)))
            case RemoveTask(container=container):
                live = containers.find(container)
                await lifecycle.stop(live)
                await lifecycle.remove(live, force=True, volumes=True)

    def _make_room(self, task: AssignedTask) -> None:
        """Rename the container of an earlier task of the slot that still has this one's name."""
        containers = self._parts.containers
        holder = containers.names.get(task.name)
        live = containers.get(holder) if holder else None
        if live is None:
            return
        if not live.container.task:
            raise Conflict(
                f"container {task.name} exists on this node and belongs to no stack: remove or "
                f"rename it (id {live.id[:12]})"
            )
        self._lifecycle.rename(live, f"{task.name}-{live.id[:12]}")


def _container_of(step: Step) -> str:
    return step.container if isinstance(step, RemoveTask) else task_container_id(step.task.id)
