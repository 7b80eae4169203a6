"""Short ways to say what a cluster looks like, for the planner's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from orchestra.model.cluster import ImageNeed, Plan, StackRecord
from orchestra.model.container import HealthStatus, ImageConfig
from orchestra.model.node import (
    Availability,
    InventoryNode,
    NodeFacts,
    NodeState,
    Observed,
    ObservedTask,
    TaskState,
)
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    Network,
    Service,
    ServiceNetwork,
    Stack,
    Volume,
)
from orchestra.plan.enact import absorb, enact, release
from orchestra.plan.forecast import come_true
from orchestra.plan.reconcile import reconcile
from orchestra.plan.state import (
    ClusterIdentity,
    ImageFacts,
    NodeRecord,
    NodeView,
    State,
    View,
)

IMAGE = "busybox:latest"
MANIFEST = "sha256:" + "a" * 64
CONFIG = ImageConfig(cmd=("sh",), env=("PATH=/bin",))


def service(name: str, **values: Any) -> Service:
    values.setdefault("image", IMAGE)
    values.setdefault("networks", (ServiceNetwork("default"),))
    return Service(name=name, **values)


def needs(*names: str, condition: DependencyCondition = DependencyCondition.STARTED) -> Any:
    return tuple(Dependency(name, condition) for name in names)


def stack(
    *services: Service, name: str = "app", volumes: tuple[str, ...] = (), **values: Any
) -> Stack:
    return Stack(
        name=name,
        services={s.name: s for s in services},
        networks={"default": Network("default", f"{name}_default")},
        volumes={v: Volume(v, f"{name}_{v}") for v in volumes},
        **values,
    )


def record(value: Stack, revision: int = 1, updated: float = 100.0, **values: Any) -> StackRecord:
    images = {
        s.image: ImageNeed(s.image, MANIFEST, "sha256:" + "b" * 64) for s in value.services.values()
    }
    return StackRecord(value, revision, updated, images, **values)


def node(index: int, labels: Mapping[str, str] | None = None) -> NodeRecord:
    inventory = InventoryNode(f"node-{index}", f"192.0.2.{index}", labels=labels or {})
    return NodeRecord(index, f"id-{index}", inventory, f"192.0.2.{index}")


def facts(index: int, cpus: float = 4.0, memory: int = 8 << 30) -> NodeFacts:
    return NodeFacts(
        id=f"id-{index}",
        name=f"node-{index}",
        hostname=f"host-{index}",
        agent_version="0",
        protocol=1,
        os="linux",
        architecture="amd64",
        kernel="6.1",
        cpus=cpus,
        memory=memory,
        cgroup_version=2,
        addresses=(f"192.0.2.{index}",),
    )


def cluster(
    *stacks: StackRecord, nodes: int = 3, labels: Mapping[int, Mapping[str, str]] | None = None
) -> tuple[State, View]:
    """A state with those stacks and nothing running, and a view of `nodes` ready nodes."""
    records = [node(i, (labels or {}).get(i)) for i in range(1, nodes + 1)]
    state = State(
        ClusterIdentity("test", "c" * 32, "10.16.0.0/12", 7),
        nodes={r.id: r for r in records},
        stacks={s.stack.name: s for s in stacks},
        images={MANIFEST: ImageFacts("sha256:" + "b" * 64, "amd64", "linux", CONFIG)},
    )
    views = {r.id: NodeView(r, NodeState.READY, Observed(1, facts(r.index))) for r in records}
    return state, View(1000.0, views)


def with_stack(state: State, value: StackRecord) -> State:
    return evolve(state, stacks={**state.stacks, value.stack.name: value})


def without(view: View, name: str, state: NodeState = NodeState.DOWN, reason: str = "") -> View:
    """The view with the node called `name` in another state."""
    nodes = {
        i: evolve(n, state=state, reason=reason) if n.record.name == name else n
        for i, n in view.nodes.items()
    }
    return evolve(view, nodes=nodes)


def availability(state: State, view: View, name: str, value: Availability) -> tuple[State, View]:
    nodes = {
        i: evolve(n, availability=value) if n.name == name else n for i, n in state.nodes.items()
    }
    views = {i: evolve(n, record=nodes[i]) for i, n in view.nodes.items()}
    return evolve(state, nodes=nodes), evolve(view, nodes=views)


def step(state: State, view: View) -> tuple[State, View, Plan]:
    """Plan once, enact it, and let it come true."""
    plan = reconcile(state, view)
    state, refused = enact(state, plan, view)
    assert not refused, refused
    state, view = come_true(state, view)
    return state, view, plan


def settle(state: State, view: View, most: int = 60) -> tuple[State, View]:
    """Plan and let come true until nothing is left to do."""
    for _ in range(most):
        state, view, plan = step(state, view)
        if not plan.actions:
            return state, view
    raise AssertionError(f"still busy after {most} steps: {plan.actions}")


def report(
    state: State,
    view: View,
    slot: str,
    value: TaskState,
    health: HealthStatus | None = None,
    **values: Any,
) -> tuple[State, View]:
    """Let the node of `slot`'s newest task report something of it."""
    task = max(
        (r for r in state.tasks.values() if r.task.slot == slot and not r.task.stop),
        key=lambda r: r.generation,
    ).task
    nodes = dict(view.nodes)
    known = nodes[task.node]
    assert known.observed is not None
    others = tuple(t for t in known.observed.tasks if t.id != task.id)
    mine = ObservedTask(task.id, value, health=health, **values)
    nodes[task.node] = evolve(known, observed=evolve(known.observed, tasks=(*others, mine)))
    view = evolve(view, nodes=nodes)
    return absorb(state, view), view


def where(state: State) -> set[tuple[str, str]]:
    """(slot, node's name) of every task that is not asked to stop."""
    return {
        (r.task.slot, state.nodes[r.task.node].name)
        for r in state.tasks.values()
        if not r.task.stop
    }


def released(state: State) -> State:
    return release(state, list(state.tasks))
