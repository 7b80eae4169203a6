"""The whole way that a plan would go, supposing that everything works.

Planning proceeds step by step as tasks come to serve. What a user wants to see before saying yes
is all of it, so `forecast` enacts each plan on a copy of the state, pretends that started tasks
serve (or complete) and stopped ones end, and goes on until nothing is left to do.
"""

from __future__ import annotations

from attrs import evolve

from orchestra.model.cluster import Action, Plan, RemoveTask
from orchestra.model.node import Observed, ObservedTask, TaskState
from orchestra.model.service import DependencyCondition, RestartCondition, ServiceMode
from orchestra.plan.enact import absorb, done, enact, release
from orchestra.plan.reconcile import reconcile
from orchestra.plan.state import State, TaskRecord, View

_STEPS = 10_000  # more than any stack needs; a bound so that a defect cannot hang the controller
_AGES = 1e6  # seconds that pass between two steps: every delay is over


def forecast(state: State, view: View, only: str = "") -> Plan:
    """Return all actions until nothing is left to do, in order.

    `only` names the stack whose tasks are shown (the networks and volumes are shown anyway).
    What would still wait or be blocked at the end is what waits for events beyond the cluster's
    power: a lost node, a constraint that nothing satisfies.
    """
    first = plan = reconcile(state, view)
    actions: list[Action] = []
    for _ in range(_STEPS):
        if not plan.actions:
            break
        state, refused = enact(state, plan, view)
        plan = done(plan, refused)
        actions += [a for a in plan.actions if not isinstance(a, RemoveTask)]
        if not plan.actions:
            break
        state, view = come_true(state, view)
        plan = reconcile(state, view)
    shown = tuple(a for a in actions if not only or getattr(a, "stack", only) == only)
    waiting = first.waiting if not shown else plan.waiting
    return evolve(
        first,
        actions=shown,
        blocked=tuple(b for b in plan.blocked if only in ("", b.stack)),
        waiting=tuple(w for w in waiting if only in ("", w.stack)),
    )


def come_true(state: State, view: View) -> tuple[State, View]:
    """Pretend that the nodes did all they were asked to do."""
    now = view.now + _AGES
    state = release(state, [t for t, r in state.tasks.items() if not r.released])
    before = view.reports()
    serving = dict(view.serving_since)
    nodes = {}
    for node_id, node in view.nodes.items():
        if node.observed is None:
            nodes[node_id] = node
            continue
        tasks = []
        for record in state.tasks.values():
            if record.task.node == node_id:
                report = _outcome(state, record, before.get(record.task.id))
                tasks.append(report)
                if report.serving:
                    serving.setdefault(record.task.id, view.now)
        observed: Observed = evolve(node.observed, applied=state.generation, tasks=tuple(tasks))
        nodes[node_id] = evolve(node, observed=observed)
    after = View(now, nodes, serving)
    return absorb(state, after), after


def _outcome(state: State, record: TaskRecord, before: ObservedTask | None) -> ObservedTask:
    token = record.task.restart_token
    if record.task.stop:
        return ObservedTask(record.task.id, TaskState.SHUTDOWN, exit_code=0, final=True)
    if record.final is not None:
        return record.final
    if before is not None and before.serving:
        return before
    if _completes(state, record):
        return ObservedTask(
            record.task.id, TaskState.COMPLETE, exit_code=0, final=True, restart_token=token
        )
    return ObservedTask(record.task.id, TaskState.RUNNING, started=1.0, restart_token=token)


def _completes(state: State, record: TaskRecord) -> bool:
    """Whether the task is one that others wait for to complete, or a job."""
    stack = state.stacks.get(record.task.stack)
    service = stack.stack.services.get(record.task.service) if stack else None
    if stack is None or service is None:
        return False
    if service.mode in (ServiceMode.REPLICATED_JOB, ServiceMode.GLOBAL_JOB):
        return True
    return service.restart.condition in (
        RestartCondition.NONE,
        RestartCondition.ON_FAILURE,
    ) and any(
        dependency.service == service.name and dependency.condition is DependencyCondition.COMPLETED
        for other in stack.stack.services.values()
        for dependency in other.depends_on
    )
