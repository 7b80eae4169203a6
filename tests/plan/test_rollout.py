"""In which order tasks start, are replaced, move and go: one planning pass after the other."""

from __future__ import annotations

import pytest
from attrs import evolve

from orchestra.controller import wish
from orchestra.model.cluster import RemoveTask, StackRecord, StartTask, StopTask
from orchestra.model.container import HealthStatus
from orchestra.model.node import Availability, NodeState, TaskState
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    Healthcheck,
    Mount,
    MountType,
    Network,
    Placement,
    Port,
    PortMode,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    UpdateConfig,
    UpdateOrder,
)
from orchestra.plan.enact import enact, release
from orchestra.plan.forecast import forecast
from orchestra.plan.reconcile import reconcile
from orchestra.plan.state import State, View
from plan.build import (
    availability,
    cluster,
    needs,
    record,
    report,
    service,
    settle,
    stack,
    step,
    where,
    with_stack,
    without,
)

CHECK = Healthcheck(("CMD", "true"))
DATA = Mount(MountType.VOLUME, "/data", "data")


def lines(state: State, view: View) -> list[str]:
    """The plan's actions as text, in order, without their reasons."""
    return [str(action).split(":")[0] for action in reconcile(state, view).actions]


def started(state: State, view: View) -> list[str]:
    return [a.slot for a in reconcile(state, view).actions if isinstance(a, StartTask)]


def waits(state: State, view: View) -> dict[str, str]:
    return {w.slot: w.because for w in reconcile(state, view).waiting}


def take(state: State, view: View) -> State:
    """Enact the plan; nothing of it has come true yet."""
    state, refused = enact(state, reconcile(state, view), view)
    assert not refused
    return release(state, list(state.tasks))


# --- dependencies --------------------------------------------------------------------------


def test_services_start_after_those_they_depend_on() -> None:
    app = stack(
        service("web", depends_on=needs("api")),
        service("api", depends_on=needs("db")),
        service("db"),
    )
    order = [a.slot for a in forecast(*cluster(record(app))).actions if isinstance(a, StartTask)]
    assert order == ["db.1", "api.1", "web.1"]


def test_a_started_dependency_is_enough_unless_its_health_is_asked_for() -> None:
    app = stack(
        service("quick", depends_on=needs("db")),
        service("careful", depends_on=needs("db", condition=DependencyCondition.HEALTHY)),
        service("db", healthcheck=CHECK),
    )
    state, view = cluster(record(app))
    state = take(state, view)
    state, view = report(state, view, "db.1", TaskState.RUNNING, HealthStatus.STARTING)
    assert started(state, view) == ["quick.1"]
    assert waits(state, view)["careful.1"] == "it depends on db: db.1 is starting"
    state, view = report(state, view, "db.1", TaskState.RUNNING, HealthStatus.HEALTHY)
    assert set(started(state, view)) == {"quick.1", "careful.1"}


MIGRATION = stack(
    service("web", depends_on=needs("job", condition=DependencyCondition.COMPLETED)),
    service("job"),
)


def test_a_job_lets_its_dependents_start_when_it_has_completed() -> None:
    state, view = cluster(record(MIGRATION))
    state = take(state, view)
    state, view = report(state, view, "job.1", TaskState.RUNNING)
    assert waits(state, view)["web.1"] == "it depends on job: job.1 has not completed yet"
    state, view = report(state, view, "job.1", TaskState.COMPLETE, exit_code=0, final=True)
    assert started(state, view) == ["web.1"]


def test_a_job_that_failed_blocks_its_dependents_and_up_tries_again() -> None:
    state, view = cluster(record(MIGRATION))
    state = take(state, view)
    state, view = report(state, view, "job.1", TaskState.FAILED, exit_code=3, final=True)
    (blocked,) = reconcile(state, view).blocked
    assert (blocked.slot, blocked.because) == (
        "web.1",
        "it depends on job: job.1 failed (exit code 3)",
    )
    state = with_stack(state, record(MIGRATION, revision=2, updated=2000.0))
    assert lines(state, view)[0].startswith("replace job.1 on node-")


def test_an_optional_dependency_that_failed_holds_nobody() -> None:
    need = Dependency("job", DependencyCondition.COMPLETED, required=False)
    state, view = cluster(record(stack(service("web", depends_on=(need,)), service("job"))))
    state = take(state, view)
    state, view = report(state, view, "job.1", TaskState.FAILED, exit_code=3, final=True)
    assert started(state, view) == ["web.1"]


def test_a_stack_goes_in_reverse_order() -> None:
    app = stack(service("web", depends_on=needs("db")), service("db"))
    state, view = settle(*cluster(record(app)))
    state = with_stack(state, evolve(record(app), removing=True))
    assert lines(state, view) == ["stop web.1 on node-2"]
    state, view, _ = step(state, view)
    state, view, plan = step(state, view)
    assert [type(a) for a in plan.actions] == [RemoveTask]
    assert lines(state, view) == ["stop db.1 on node-1"]
    state, view = settle(state, view)
    assert not state.tasks and not state.networks


# --- replacement ---------------------------------------------------------------------------


def changed(state: State, before: StackRecord, **values: object) -> State:
    """The state with the first service of a stack changed."""
    name, old = next(iter(before.stack.services.items()))
    new = evolve(old, command=("changed",), **values)
    value = evolve(before.stack, services={**before.stack.services, name: new})
    return with_stack(state, record(value, before.revision + 1, 2000.0))


def test_a_changed_service_starts_its_successor_first() -> None:
    app = record(stack(service("web", healthcheck=CHECK)))
    state, view = settle(*cluster(app))
    state = changed(state, app)
    (action,) = reconcile(state, view).actions
    assert isinstance(action, StartTask) and action.replaces
    assert [str(d) for d in action.differences] == ['command: (unset) -> ["changed"]']
    state = take(state, view)
    assert not reconcile(state, view).actions  # the old one serves until the new one does
    state, view = report(state, view, "web.1", TaskState.RUNNING, HealthStatus.HEALTHY)
    assert [type(a) for a in reconcile(state, view).actions] == [StopTask]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"ports": (Port(80, 8080, mode=PortMode.HOST),)}, "it has a host port"),
        ({"mounts": (DATA,)}, "it has a named volume"),
        ({"container_name": "fixed"}, "its container has a fixed name"),
        ({"network_mode": "host", "networks": ()}, "it uses the host's network"),
        ({"update": UpdateConfig(order=UpdateOrder.STOP_FIRST)}, "update_config says so"),
    ],
)
def test_what_cannot_exist_twice_stops_first(values: dict[str, object], why: str) -> None:
    app = record(stack(service("web", **values), volumes=("data",)))
    state, view = settle(*cluster(app))
    state = changed(state, app)
    (action,) = reconcile(state, view).actions
    assert isinstance(action, StopTask)
    assert action.because.startswith(f"the service changed (stop-first: {why})")
    state, view, _ = step(state, view)
    assert started(state, view) == ["web.1"]


def test_replicas_are_replaced_one_after_the_other_or_as_many_as_allowed() -> None:
    app = record(stack(service("web", replicas=4, healthcheck=CHECK)))
    state, view = settle(*cluster(app))
    assert len(lines(changed(state, app), view)) == 1
    assert len(lines(changed(state, app, update=UpdateConfig(parallelism=3)), view)) == 3
    assert len(lines(changed(state, app, update=UpdateConfig(parallelism=0)), view)) == 4


def test_a_successor_that_does_not_come_to_serve_halts_the_rollout() -> None:
    app = record(stack(service("web", replicas=2, healthcheck=CHECK)))
    state, view = settle(*cluster(app))
    state = take(changed(state, app), view)
    state, view = report(state, view, "web.1", TaskState.RUNNING, HealthStatus.UNHEALTHY)
    plan = reconcile(state, view)
    assert not plan.actions
    assert {w.slot for w in plan.waiting} == {"web.1", "web.2"}


def test_a_task_without_a_health_check_is_watched_before_its_predecessor_stops() -> None:
    app = record(stack(service("web", update=UpdateConfig(order=UpdateOrder.START_FIRST))))
    state, view = settle(*cluster(app))
    state = take(changed(state, app), view)
    state, view = report(state, view, "web.1", TaskState.RUNNING)
    task = max(state.tasks.values(), key=lambda t: t.generation).task.id
    view = evolve(view, serving_since={**view.serving_since, task: view.now})
    assert "watched for 5 s" in waits(state, view)["web.1"]
    view = evolve(view, now=view.now + 5.1)
    assert [type(a) for a in reconcile(state, view).actions] == [StopTask]


def test_nothing_is_stopped_for_a_successor_that_has_no_place() -> None:
    app = record(stack(service("web", mounts=(DATA,)), volumes=("data",)))
    state, view = settle(*cluster(app))
    state = changed(state, app, placement=Placement(("node.labels.disk == ssd",)))
    plan = reconcile(state, view)
    assert not plan.actions
    assert "node.labels.disk==ssd" in plan.blocked[0].because


def test_what_is_no_part_of_a_container_restarts_none() -> None:
    app = record(stack(service("web"), service("db")))
    state, view = settle(*cluster(app))
    web = evolve(app.stack.services["web"], depends_on=needs("db"), profiles=("x",))
    web = evolve(web, update=UpdateConfig(2), placement=Placement(("node.name != node-3",)))
    value = evolve(app.stack, services={"web": web, "db": app.stack.services["db"]})
    assert reconcile(with_stack(state, record(value, 2)), view).empty


def test_a_change_that_is_taken_back_restarts_nothing_that_is_good() -> None:
    app = record(stack(service("web", replicas=2, healthcheck=CHECK)))
    state, view = settle(*cluster(app))
    before = set(state.tasks)
    state = take(changed(state, app), view)
    state, view = settle(with_stack(state, record(app.stack, 3)), view)
    assert set(state.tasks) == before


def test_a_service_that_left_the_file_is_stopped() -> None:
    app = record(stack(service("web"), service("old")))
    state, view = settle(*cluster(app))
    state = with_stack(state, record(stack(service("web")), 2))
    (action,) = reconcile(state, view).actions
    assert str(action) == "stop old.1 on node-1: old is no longer in the stack"


# --- nodes that go -------------------------------------------------------------------------


def test_tasks_of_a_lost_node_move_and_the_others_stay() -> None:
    state, view = settle(*cluster(record(stack(service("web", replicas=3)))))
    before = where(state)
    state, view = settle(state, without(view, "node-2", reason="no route"))
    kept = {pair for pair in before if pair[1] != "node-2"}
    assert kept < where(state)
    assert "node-2" not in {node for _, node in where(state)}


def test_a_silent_agent_moves_nothing() -> None:
    state, view = settle(*cluster(record(stack(service("web", replicas=3)))))
    assert reconcile(state, without(view, "node-2", NodeState.NOT_READY)).empty


def test_a_slot_with_its_data_on_a_lost_node_waits_for_it() -> None:
    app = record(stack(service("db", mounts=(DATA,)), volumes=("data",)))
    state, view = settle(*cluster(app))
    (home,) = {node for _, node in where(state)}
    lost = without(view, home, reason="no route")
    plan = reconcile(state, lost)
    assert not plan.actions
    assert plan.waiting[0].because == (
        f"its volume app_data is on {home}, which is down (no route); "
        "it never starts on an empty volume"
    )
    # Not even after it was stopped, changed or removed from the store's tasks.
    assert not [
        a for a in reconcile(evolve(state, tasks={}), lost).actions if isinstance(a, StartTask)
    ]
    assert reconcile(state, view).empty


def test_a_task_that_came_back_with_its_node_is_not_kept_beside_its_successor() -> None:
    state, view = settle(*cluster(record(stack(service("web"))), nodes=2))
    (home,) = {node for _, node in where(state)}
    moved, _ = settle(state, without(view, home))
    assert len(where(moved)) == 1
    back, _ = settle(moved, view)
    assert where(back) == where(moved)


def test_a_drained_node_is_emptied_start_first() -> None:
    state, view = settle(*cluster(record(stack(service("web", replicas=2, healthcheck=CHECK)))))
    state, view = availability(state, view, "node-1", Availability.DRAIN)
    (action,) = reconcile(state, view).actions
    assert isinstance(action, StartTask) and action.because == "node-1 is drained"
    state, view = settle(state, view)
    assert "node-1" not in {node for _, node in where(state)}


def test_a_drained_node_gives_up_data_too_but_the_slot_waits() -> None:
    app = record(stack(service("db", mounts=(DATA,)), volumes=("data",)))
    state, view = settle(*cluster(app))
    (home,) = {node for _, node in where(state)}
    state, view = availability(state, view, home, Availability.DRAIN)
    state, view = settle(state, view)
    assert not where(state)
    assert waits(state, view)["db.1"] == f"its volume app_data is on {home}, which is drained"
    state, view = settle(*availability(state, view, home, Availability.ACTIVE))
    assert where(state) == {("db.1", home)}


def test_a_global_service_follows_the_nodes() -> None:
    app = record(stack(service("agent", mode=ServiceMode.GLOBAL)))
    state, view = settle(*cluster(app))
    state, view = settle(*availability(state, view, "node-2", Availability.DRAIN))
    assert {node for _, node in where(state)} == {"node-1", "node-3"}
    down = without(view, "node-3")
    assert reconcile(state, down).empty  # not missed, and not moved
    state, view = settle(*availability(state, view, "node-2", Availability.ACTIVE))
    assert {node for _, node in where(state)} == {"node-1", "node-2", "node-3"}


def test_a_node_that_lost_its_label_loses_the_task() -> None:
    web = service("web", placement=Placement(("node.labels.disk == ssd",)))
    state, view = cluster(record(stack(web)), labels={1: {"disk": "ssd"}, 2: {"disk": "ssd"}})
    state, view = settle(state, view)
    assert where(state) == {("web.1", "node-1")}
    nodes = {
        i: evolve(n, record=evolve(n.record, node=evolve(n.record.node, labels={})))
        if n.record.name == "node-1"
        else n
        for i, n in view.nodes.items()
    }
    state, view = settle(state, evolve(view, nodes=nodes))
    assert where(state) == {("web.1", "node-2")}


# --- ends ----------------------------------------------------------------------------------


def test_a_task_that_failed_for_good_stays_until_somebody_asks() -> None:
    app = record(stack(service("web", restart=RestartPolicy(RestartCondition.NONE))))
    state, view = settle(*cluster(app))
    state, view = report(state, view, "web.1", TaskState.FAILED, exit_code=1, final=True)
    assert reconcile(state, view).empty
    state = with_stack(state, record(app.stack, 2, updated=view.now + 1))
    assert [type(a) for a in reconcile(state, view).actions] == [StartTask, RemoveTask]


def test_a_job_that_completed_is_not_run_again_by_another_up() -> None:
    state, view = settle(*cluster(record(MIGRATION)))
    state = with_stack(state, record(MIGRATION, 2, updated=view.now + 1))
    assert reconcile(state, view).empty


def test_a_restart_of_a_completed_job_runs_it_anew() -> None:
    state, view = settle(*cluster(record(MIGRATION)))
    state = wish.restarted(state, state.stacks["app"], ["job"])
    assert "a restart was asked for" in str(reconcile(state, view).actions[0])


def test_the_forecast_goes_on_beside_what_is_refused() -> None:
    need = needs("db", condition=DependencyCondition.HEALTHY)
    app = stack(
        service("many", replicas=2),
        service("db", networks=(), network_mode="none"),
        service("web", depends_on=need, networks=(), network_mode="none"),
    )
    small = Network("default", "small", subnet="192.168.9.0/26")
    app = evolve(app, networks={"default": small})
    plan = forecast(*cluster(record(app), nodes=1))
    started = [a.slot for a in plan.actions if isinstance(a, StartTask)]
    (blocked,) = plan.blocked
    assert "no address is free for node-1 in network small" in blocked.because
    assert set(started) == {"many.1", "many.2", "db.1", "web.1"} - {blocked.slot}
