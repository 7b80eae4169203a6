"""What the services of one planning pass share: the state they look at and the plan they write."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from orchestra.model.cluster import Action, Blocked, RemoveTask, StopTask, Waiting
from orchestra.model.node import ObservedTask
from orchestra.plan.schedule import Scheduler
from orchestra.plan.standing import Standing, standing, stopped
from orchestra.plan.state import State, TaskRecord, View


@define
class Draft:
    """The plan as it is being written."""

    actions: list[Action] = field(factory=list)
    blocked: list[Blocked] = field(factory=list)
    waiting: list[Waiting] = field(factory=list)


@define
class Board:
    """What all services of one planning pass share; `bound` are volumes placed in this pass."""

    state: State
    view: View
    reports: Mapping[str, ObservedTask]
    scheduler: Scheduler
    by_service: Mapping[str, list[TaskRecord]]  # "stack/service"
    draft: Draft
    bound: dict[str, tuple[str, ...]] = field(factory=dict)

    def standing(self, record: TaskRecord) -> Standing:
        return standing(record, self.view, self.reports)

    def node_name(self, node: str) -> str:
        known = self.view.nodes.get(node)
        return known.record.name if known else node[:12]

    def retire(self, record: TaskRecord, because: str, hold: bool = False) -> None:
        """Stop a task, or forget it where nothing of it can be running.

        `hold`: its container stays, to be resumed.
        """
        task = record.task
        if self.standing(record).runs and record.released:
            name = self.node_name(task.node)
            self.draft.actions.append(
                StopTask(task.id, task.stack, task.service, task.slot, name, because, hold)
            )
        else:
            self.draft.actions.append(RemoveTask(task.id, task.slot, because))

    def sweep(self, record: TaskRecord) -> bool:
        """Forget a stopping task that has ended; say whether it has."""
        if not stopped(record, self.view, self.reports):
            return False
        task = record.task
        self.draft.actions.append(RemoveTask(task.id, task.slot, task.stop_reason or "it ended"))
        return True
