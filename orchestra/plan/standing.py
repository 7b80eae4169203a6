"""How a task stands: its record and its node's last report, reduced to one word.

Everything that decides about a task decides by its standing, so that what a silent node, a lost
node or a final exit means is written down once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from orchestra.model.container import HealthStatus
from orchestra.model.node import TERMINAL, NodeState, ObservedTask, TaskState
from orchestra.plan.state import TaskRecord, View

SETTLE = 1.0  # seconds that a task without a health check must run before it counts as up


class Standing(enum.Enum):
    PREPARING = "preparing"  # its image is not on its node yet, or its node has not reported it
    STARTING = "starting"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"  # it ended, its node will start it again
    SERVING = "serving"
    DONE = "done"  # exit code 0, for good
    FAILED = "failed"  # for good
    LOST = "lost"  # its node is down, or no longer a node
    UNHEARD = "unheard"  # its node has not reported since the controller started

    @property
    def runs(self) -> bool:
        """There may be a process of it somewhere that the cluster can reach."""
        return self not in (Standing.DONE, Standing.FAILED, Standing.LOST)


def is_final(record: TaskRecord, report: ObservedTask) -> bool:
    """No further attempt will come from the node by itself, nor was one asked for since."""
    asked = report.restart_token < record.task.restart_token and not record.task.stop
    return report.state in TERMINAL and report.final and not asked


def standing(record: TaskRecord, view: View, reports: Mapping[str, ObservedTask]) -> Standing:
    """Return how a task stands; a final report that was stored outlives its node."""
    report = record.final or reports.get(record.task.id)
    if report is not None and is_final(record, report):
        return Standing.DONE if report.state is TaskState.COMPLETE else Standing.FAILED
    node = view.nodes.get(record.task.node)
    if node is None or node.state is NodeState.DOWN:
        return Standing.LOST
    if report is None:
        return Standing.UNHEARD if node.observed is None else Standing.PREPARING
    if report.serving:
        return Standing.SERVING
    if report.state is TaskState.RUNNING:
        unhealthy = report.health is HealthStatus.UNHEALTHY
        return Standing.UNHEALTHY if unhealthy else Standing.STARTING
    if report.state in TERMINAL:
        return Standing.RESTARTING
    return Standing.RESTARTING if report.restarts else Standing.STARTING


def settled(record: TaskRecord, view: View, wait: float) -> bool:
    """Say whether a serving task served long enough to be believed.

    A passed health check is believed at once; without one the task must have run for `wait`.
    """
    if record.assigned.spec.healthcheck is not None:
        return True
    since = view.serving_since.get(record.task.id)
    return since is not None and view.now - since >= wait


def stopped(record: TaskRecord, view: View, reports: Mapping[str, ObservedTask]) -> bool:
    """Say whether a task that was asked to stop has ended (or can no longer be asked).

    A task on a lost node counts: its node's next assignment will not have it, which stops it.
    """
    if not record.released or record.final is not None:
        return True
    node = view.nodes.get(record.task.node)
    if node is None or node.state is NodeState.DOWN:
        return True
    report = reports.get(record.task.id)
    if report is not None:
        return report.state in TERMINAL
    return node.observed is not None and node.observed.applied >= record.generation
