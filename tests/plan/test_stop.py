"""`stop` and `start`: what a user stops is kept where it is, and goes on there."""

from __future__ import annotations

from attrs import evolve

from orchestra.controller import wish
from orchestra.model.cluster import RemoveTask, ResumeTask, StopTask
from orchestra.model.node import Availability, NodeState
from orchestra.plan.state import State, View
from tests.plan.build import (
    availability,
    cluster,
    record,
    service,
    settle,
    stack,
    step,
    with_stack,
    without,
)

APP = record(stack(service("web", replicas=2), service("db")))


def stopped_cluster() -> tuple[State, View, dict[str, str]]:
    """Two web tasks and a db, of which web was stopped; and who was where before."""
    state, view = settle(*cluster(APP))
    before = {t.task.slot: t.task.id for t in state.tasks.values()}
    state = with_stack(state, wish.stopped(state.stacks["app"], ["web"]))
    state, view, plan = step(state, view)
    assert {(type(a), a.slot, a.hold) for a in plan.actions} == {
        (StopTask, "web.1", True),
        (StopTask, "web.2", True),
    }
    return *settle(state, view), before


def started(state: State) -> State:
    return with_stack(state, wish.started(state.stacks["app"], ["web"], 2000.0))


def test_stopped_tasks_keep_their_node_and_address_and_are_resumed() -> None:
    state, view, before = stopped_cluster()
    assert {t.task.slot: t.task.id for t in state.tasks.values()} == before
    addresses = {t.task.slot: t.task.addresses for t in state.tasks.values()}
    state, view, plan = step(started(state), view)
    assert {(type(a), a.slot) for a in plan.actions} == {
        (ResumeTask, "web.1"),
        (ResumeTask, "web.2"),
    }
    state, view = settle(state, view)
    assert {t.task.slot: t.task.id for t in state.tasks.values()} == before
    assert {t.task.slot: t.task.addresses for t in state.tasks.values()} == addresses
    assert not any(t.task.stop or t.task.held for t in state.tasks.values())
    tokens = {t.task.slot: t.task.restart_token for t in state.tasks.values()}
    assert tokens == {"web.1": 1, "web.2": 1, "db.1": 0}


def test_a_report_from_before_the_start_is_no_end() -> None:
    state, view, before = stopped_cluster()
    stale = view
    state, _, _ = step(started(state), view)
    again, _, plan = step(state, evolve(stale, now=stale.now + 1))
    assert plan.actions == ()
    assert all(again.tasks[task].final is None for task in before.values())


def test_a_changed_service_starts_anew_and_forgets_what_was_held() -> None:
    state, view, before = stopped_cluster()
    changed = record(stack(service("web", replicas=2, command=("sleep",)), service("db")), 2)
    state, view = settle(with_stack(state, changed), view)
    after = {t.task.slot: t.task.id for t in state.tasks.values()}
    assert after["db.1"] == before["db.1"]
    assert {after["web.1"], after["web.2"]}.isdisjoint(before.values())


def test_scaling_down_while_stopped_forgets_the_slots_above() -> None:
    state, view, _ = stopped_cluster()
    state, view = settle(with_stack(state, wish.scaled(state.stacks["app"], {"web": 1})), view)
    assert {t.task.slot for t in state.tasks.values()} == {"web.1", "db.1"}


def test_a_held_task_of_a_dead_or_drained_node_starts_elsewhere() -> None:
    for name, leave in (("down", NodeState.DOWN), ("drained", Availability.DRAIN)):
        state, view, _ = stopped_cluster()
        held = next(t for t in state.tasks.values() if t.task.slot == "web.1")
        where = state.nodes[held.task.node].name
        if isinstance(leave, NodeState):
            view = without(view, where, leave)
        else:
            state, view = availability(state, view, where, leave)
        state, view = settle(started(state), view)
        now = next(t for t in state.tasks.values() if t.task.slot == "web.1")
        assert now.task.node != held.task.node, name


def test_a_stopped_stack_goes_down_like_any_other() -> None:
    state, view, _ = stopped_cluster()
    state = with_stack(state, evolve(state.stacks["app"], removing=True))
    state, view, plan = step(state, view)
    assert {type(a) for a in plan.actions} <= {StopTask, RemoveTask}
    state, view = settle(state, view)
    assert not state.tasks
