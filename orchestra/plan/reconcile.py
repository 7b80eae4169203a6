"""Desired minus observed: the one function that says what should happen now.

`reconcile` is pure: equal state and view give equal plans, and a plan that was enacted and came
true leaves nothing to do. It only writes steps that can be taken at once; what must happen first
is `waiting`, what cannot happen is `blocked`, each with its reason. `forecast` strings such plans
together to show the whole way.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.model.cluster import CreateNetwork, Plan, RemoveNetwork, StackRecord
from orchestra.model.node import NodeState
from orchestra.model.service import PortMode
from orchestra.plan import demand as ask
from orchestra.plan.board import Board, Draft
from orchestra.plan.graph import dependents, start_order
from orchestra.plan.rollout import Rollout
from orchestra.plan.schedule import Demand, Scheduler
from orchestra.plan.state import State, TaskRecord, View


def reconcile(state: State, view: View) -> Plan:
    """Return what can be done now to bring the cluster from `view` to `state`."""
    by_service: dict[str, list[TaskRecord]] = {}
    for task in state.tasks.values():
        by_service.setdefault(ask.key_of(task.task.stack, task.task.service), []).append(task)
    draft = Draft()
    reports = view.reports()
    board = Board(state, view, reports, _scheduler(state, view), by_service, draft)
    _create_networks(state, draft)
    for record in sorted(state.stacks.values(), key=lambda r: r.stack.name):
        if record.removing:
            _take_down(board, record)
        else:
            _bring_up(board, record)
    _forget_strays(board)
    _remove_networks(state, draft)
    unseen = tuple(
        sorted(n.record.name for n in view.nodes.values() if n.state is not NodeState.READY)
    )
    return Plan(
        state.generation,
        tuple(draft.actions),
        tuple(draft.blocked),
        tuple(draft.waiting),
        unseen=unseen,
    )


def _bring_up(board: Board, record: StackRecord) -> None:
    services = record.stack.services
    missing = _missing_networks(board.state, record)
    rollouts: dict[str, Rollout] = {}
    for name in start_order(services):
        rollouts[name] = Rollout(board, record, services[name])
    for name, rollout in rollouts.items():
        absent = [n for n in missing if n in _network_names(record, name)]
        if absent:
            rollout.refuse(
                f"network {absent[0]} is external and does not exist; another stack must have "
                "created it"
            )
        else:
            rollout.plan(rollouts)


def _take_down(board: Board, record: StackRecord) -> None:
    """Stop a stack's services, each after those that depend on it are gone."""
    services = record.stack.services
    users = dependents(services)
    present = {
        name for name in services if board.by_service.get(ask.key_of(record.stack.name, name))
    }
    for name in reversed(start_order(services)):
        if not users[name] & present:
            rollout = Rollout(board, record, services[name])
            rollout.plan({})


def _forget_strays(board: Board) -> None:
    """Tasks of services (or whole stacks) that are no longer desired."""
    for key, records in board.by_service.items():
        stack, _, service = key.partition("/")
        record = board.state.stacks.get(stack)
        if record is not None and service in record.stack.services:
            continue
        for task in records:
            if task.task.stop:
                board.sweep(task)
            else:
                board.retire(task, f"{service} is no longer in the stack")


def _scheduler(state: State, view: View) -> Scheduler:
    """A scheduler that knows what is placed already."""
    ingress = {
        f"{port.protocol}/{port.published}"
        for record in state.stacks.values()
        for service in record.stack.services.values()
        for port in service.ports
        if port.mode is PortMode.INGRESS and port.published is not None
    }
    scheduler = Scheduler(view.nodes.values(), ingress)
    for record in state.tasks.values():
        if record.final is None:
            scheduler.count(record.task.node, occupied(record))
    return scheduler


def occupied(record: TaskRecord) -> Demand:
    """What a task that exists takes of its node."""
    return Demand(
        ask.key_of(record.task.stack, record.task.service),
        reserved=record.reserved,
        ports=record.host_ports,
    )


# --- networks -------------------------------------------------------------------------------


def _network_names(record: StackRecord, service: str) -> set[str]:
    return {n.name for n in ask.networks_of(record.stack, record.stack.services[service])}


def _wanted_networks(state: State) -> dict[str, str]:
    """Names of the networks that stacks bring along, with the stack's name."""
    return {
        network.name: record.stack.name
        for record in state.stacks.values()
        if not record.removing
        for service in record.stack.services
        for network in ask.networks_of(record.stack, record.stack.services[service])
        if not network.external
    }


def _missing_networks(state: State, record: StackRecord) -> set[str]:
    own = _wanted_networks(state) if any(_externals(record)) else {}
    return {n for n in _externals(record) if n not in state.networks and n not in own}


def _externals(record: StackRecord) -> list[str]:
    return [network.name for network in record.stack.networks.values() if network.external]


def _create_networks(state: State, draft: Draft) -> None:
    for name, stack in sorted(_wanted_networks(state).items()):
        if name not in state.networks:
            draft.actions.append(CreateNetwork(name, f"stack {stack} uses it"))


def _remove_networks(state: State, draft: Draft) -> None:
    wanted: Mapping[str, str] = _wanted_networks(state)
    for name, network in sorted(state.networks.items()):
        used = any(network.id in record.task.addresses for record in state.tasks.values())
        if name not in wanted and not used:
            draft.actions.append(RemoveNetwork(name, "nothing uses it any more"))
