"""What the planner costs: placing many services on many nodes, and finding nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import evolve

from orchestra.model.cluster import ImageNeed, StackRecord
from orchestra.model.container import ImageConfig
from orchestra.model.node import InventoryNode, NodeFacts, NodeState, Observed
from orchestra.model.service import (
    Dependency,
    Healthcheck,
    Network,
    Placement,
    Port,
    Resources,
    Service,
    ServiceNetwork,
    Stack,
)
from orchestra.plan.enact import enact
from orchestra.plan.forecast import come_true, forecast
from orchestra.plan.reconcile import reconcile
from orchestra.plan.schedule import Demand, Scheduler
from orchestra.plan.state import ClusterIdentity, ImageFacts, NodeRecord, NodeView, State, View

MOST_ROUNDS = 5  # each takes up to a second; the best one is what the machine can do
MANIFEST = "sha256:" + "a" * 64
IMAGE = "busybox:latest"


def measure(rounds: int) -> list[dict[str, Any]]:
    """The group's rows: seconds of the best of `rounds` (at most five)."""
    rounds = max(1, min(rounds, MOST_ROUNDS))
    nodes = node_views(1000)
    state, view, stack = converged_stack(1000)
    return [
        row("schedule 10,000 constrained services on 1,000 nodes", rounds, lambda: place(nodes)),
        row(
            "plan an unchanged 1,000-service stack", rounds, lambda: plan_again(state, view, stack)
        ),
    ]


def row(name: str, rounds: int, work: Callable[[], None]) -> dict[str, Any]:
    best = min(timed(work) for _ in range(rounds))
    return {
        "group": "cluster",
        "name": name,
        "unit": "s",
        "ours": best,
        "budget": 1.0,
        "peer": None,
        "peer_value": None,
        "better": "lower",
    }


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def place(nodes: list[NodeView]) -> None:
    """Ten thousand services of one replica; every second node satisfies the constraint."""
    scheduler = Scheduler(nodes)
    for number in range(10_000):
        scheduler.place(
            Demand(
                f"app/service-{number}",
                constraints=("node.labels.disk == ssd",),
                reserved=Resources(cpus=0.1, memory=64 << 20),
            )
        )


def plan_again(state: State, view: View, stack: Stack) -> None:
    """What `plan` costs when the same files come again: they are a new revision."""
    before = state.stacks[stack.name]
    again = evolve(before, stack=stack, revision=before.revision + 1, updated=view.now)
    plan = forecast(evolve(state, stacks={stack.name: again}), view, stack.name)
    if plan.actions:
        raise AssertionError(f"an unchanged stack would change: {plan.actions[0]}")


def node_views(count: int) -> list[NodeView]:
    out = []
    for index in range(1, count + 1):
        name = f"node-{index}"
        labels = {"disk": "ssd" if index % 2 else "hdd", "zone": str(index % 3)}
        node = InventoryNode(name, f"10.0.{index // 250}.{index % 250}", labels=labels)
        facts = NodeFacts(
            id=f"{index:064x}",
            name=name,
            hostname=name,
            agent_version="0",
            protocol=1,
            os="linux",
            architecture="amd64",
            kernel="6.1",
            cpus=16.0,
            memory=64 << 30,
            cgroup_version=2,
        )
        record = NodeRecord(index, facts.id, node, node.address)
        out.append(NodeView(record, NodeState.READY, Observed(1, facts)))
    return out


def converged_stack(services: int) -> tuple[State, View, Stack]:
    """A stack in groups of five services, each depending on the one before, all running."""
    stack = Stack(
        "big",
        {name: _service(number, name) for number, name in enumerate(_names(services))},
        {"default": Network("default", "big_default")},
    )
    nodes = node_views(20)
    record = StackRecord(stack, 1, 1.0, {IMAGE: ImageNeed(IMAGE, MANIFEST, MANIFEST)})
    state = State(
        ClusterIdentity("bench", "c" * 32, "10.16.0.0/12", 1),
        nodes={n.record.id: n.record for n in nodes},
        stacks={"big": record},
        images={MANIFEST: ImageFacts(MANIFEST, "amd64", "linux", ImageConfig(cmd=("sh",)))},
    )
    view = View(1000.0, {n.record.id: n for n in nodes})
    while (plan := reconcile(state, view)).actions:
        state, refused = enact(state, plan, view)
        if refused:
            raise AssertionError(refused[0].because)
        state, view = come_true(state, view)
    return state, view, stack


def _names(count: int) -> list[str]:
    return [f"service-{number}" for number in range(count)]


def _service(number: int, name: str) -> Service:
    needs = (Dependency(f"service-{number - 1}"),) if number % 5 else ()
    return Service(
        name,
        IMAGE,
        command=("serve", "--port", "80"),
        environment={"NUMBER": str(number), "MODE": "production"},
        labels={"team": "a"},
        ports=(Port(80, 10_000 + number),),
        networks=(ServiceNetwork("default"),),
        depends_on=needs,
        healthcheck=Healthcheck(("CMD", "true")),
        placement=Placement(constraints=("node.platform.os == linux",)),
        reservations=Resources(cpus=0.1),
    )
