"""What holds for every stack, cluster and history: found by hypothesis, not thought of."""

from __future__ import annotations

from collections import Counter

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.model.cluster import StackRecord
from orchestra.model.node import Availability, NodeState
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    Healthcheck,
    Mount,
    MountType,
    Placement,
    Port,
    PortMode,
    Resources,
    Service,
    ServiceMode,
    ServiceNetwork,
    Stack,
    UpdateConfig,
    UpdateOrder,
)
from orchestra.plan.assign import assign
from orchestra.plan.enact import enact
from orchestra.plan.forecast import come_true
from orchestra.plan.reconcile import reconcile
from orchestra.plan.state import State, View
from plan.build import (
    IMAGE,
    availability,
    cluster,
    record,
    stack,
    where,
    with_stack,
    without,
)

holds = settings(deadline=None, max_examples=60)
NAMES = ("a", "b", "c", "d")
LABELS = {1: {"disk": "ssd", "zone": "x"}, 2: {"zone": "x"}, 3: {"disk": "ssd", "zone": "y"}}


@st.composite
def services(draw: st.DrawFn, name: str) -> Service:
    earlier = NAMES[: NAMES.index(name)]
    depends = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
    mode = draw(st.sampled_from([ServiceMode.REPLICATED] * 4 + [ServiceMode.GLOBAL]))
    host_port = draw(st.booleans()) and draw(st.booleans())
    volume = draw(st.sampled_from(["", "", "v", "w"]))
    return Service(
        name=name,
        image=IMAGE,
        networks=(ServiceNetwork("default"),),
        command=(draw(st.sampled_from("xyz")),),
        mode=mode,
        replicas=draw(st.integers(0, 4)),
        depends_on=tuple(
            Dependency(d, draw(st.sampled_from(list(DependencyCondition)[:2]))) for d in depends
        ),
        healthcheck=draw(st.sampled_from([None, Healthcheck(("CMD", "true"))])),
        ports=(Port(80, 9000 + NAMES.index(name), mode=PortMode.HOST),) if host_port else (),
        mounts=(Mount(MountType.VOLUME, "/data", volume),) if volume else (),
        reservations=Resources(cpus=draw(st.sampled_from([None, 0.5, 3.0]))),
        placement=Placement(
            draw(st.sampled_from([(), (), ("node.labels.disk == ssd",)])),
            draw(st.sampled_from([(), ("spread=node.labels.zone",)])),
            draw(st.sampled_from([0, 0, 1])),
        ),
        update=draw(
            st.sampled_from(
                [
                    None,
                    UpdateConfig(parallelism=2),
                    UpdateConfig(parallelism=0, order=UpdateOrder.START_FIRST),
                ]
            )
        ),
    )


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    made = [draw(services(name)) for name in sorted(names)]
    kept = {s.name for s in made}
    made = [evolve(s, depends_on=tuple(d for d in s.depends_on if d.service in kept)) for s in made]
    return stack(*made, volumes=("v", "w"))


def quiet(state: State, view: View, most: int = 80) -> tuple[State, View]:
    """Plan and let come true until there is nothing to do; what holds always is checked."""
    for _ in range(most):
        plan = reconcile(state, view)
        assert plan == reconcile(state, view)  # equal input, equal plan
        if not plan.actions:
            return state, view
        before = set(state.tasks)
        state, refused = enact(state, plan, view)
        assert not refused, refused
        assert state.generation > plan.generation
        _check(state, view, set(state.tasks) - before)
        state, view = come_true(state, view)
    raise AssertionError(f"still busy after {most} steps: {reconcile(state, view).actions}")


def _check(state: State, view: View, new: set[str]) -> None:
    """Nothing is promised twice, and what a service says of its nodes is kept."""
    cpus: Counter[str] = Counter()
    used: Counter[tuple[str, str]] = Counter()
    addresses: Counter[tuple[str, str]] = Counter()
    names: Counter[tuple[str, str]] = Counter()
    for task in state.tasks.values():
        addresses.update((net, address) for net, address in task.task.addresses.items())
        if task.final is None:
            cpus[task.task.node] += task.reserved.cpus or 0
            names[task.task.node, task.assigned.name] += 1
            if not task.task.stop:
                used.update((task.task.node, port) for port in task.host_ports)
        if task.task.id in new:
            node = view.nodes[task.task.node]
            assert node.state is NodeState.READY
            assert node.record.availability is Availability.ACTIVE
            for volume in task.volumes:
                assert task.task.node in state.volumes[volume]
    assert all(count <= 4.0 for count in cpus.values())
    assert all(count == 1 for count in (*used.values(), *addresses.values(), *names.values()))


def up(value: Stack, nodes: int = 3) -> tuple[State, View, StackRecord]:
    made = record(value)
    state, view = quiet(*cluster(made, nodes=nodes, labels=LABELS))
    return state, view, made


@holds
@given(stacks())
def test_a_plan_that_comes_true_leaves_nothing_to_do(value: Stack) -> None:
    state, view, made = up(value)
    again = with_stack(state, record(value, made.revision + 1))
    assert not reconcile(again, view).actions


@holds
@given(stacks())
def test_a_slot_without_a_task_is_always_told_why(value: Stack) -> None:
    state, view, _ = up(value)
    plan = reconcile(state, view)
    told = {lack.slot for lack in (*plan.blocked, *plan.waiting)}
    there = {slot for slot, _ in where(state)}
    for name, one in value.services.items():
        if one.mode is ServiceMode.REPLICATED:
            wanted = {f"{name}.{n}" for n in range(1, one.replicas + 1)}
            assert wanted == (there | told) & wanted
            assert not {s for s in there if s.startswith(f"{name}.")} - wanted


@holds
@given(stacks(), st.sampled_from(NAMES), st.integers(0, 5))
def test_scaling_touches_no_task_that_was_there_and_shall_be(
    value: Stack, name: str, count: int
) -> None:
    state, view, made = up(value)
    before = {t.task.slot: t.task.id for t in state.tasks.values()}
    state = with_stack(state, evolve(made, scale={name: count}))
    state, view = quiet(state, view)
    after = {t.task.slot: t.task.id for t in state.tasks.values()}
    for slot, task in before.items():
        service, _, number = slot.partition(".")
        if service != name or not number.isdigit() or int(number) <= count:
            assert after[slot] == task


@holds
@given(stacks(), stacks())
def test_one_stack_becomes_another_and_touches_only_what_differs(old: Stack, new: Stack) -> None:
    state, view, made = up(old)
    before = {t.task.slot: t.task.id for t in state.tasks.values()}
    state, view = quiet(with_stack(state, record(new, made.revision + 1)), view)
    after = {t.task.slot: t.task.id for t in state.tasks.values()}
    for slot in before.keys() & after.keys():
        name = slot.partition(".")[0]
        was, is_ = old.services[name], new.services[name]
        fits = was.placement.constraints == is_.placement.constraints
        if fits and _container(was) == _container(is_):
            assert before[slot] == after[slot]


def _container(service: Service) -> Service:
    """What of a service makes its containers."""
    return evolve(service, replicas=0, depends_on=(), placement=Placement(), update=None)


@holds
@given(stacks(), st.integers(1, 3), st.sampled_from(["down", "drain"]))
def test_a_node_goes_and_comes_back(value: Stack, index: int, how: str) -> None:
    state, view, _ = up(value)
    name = f"node-{index}"
    homes = {(t.task.slot, v): state.volumes[v] for t in state.tasks.values() for v in t.volumes}
    if how == "down":
        state, gone = quiet(state, without(view, name))
    else:
        state, gone = quiet(*availability(state, view, name, Availability.DRAIN))
    for slot, node in where(state):
        if node == name:  # only what can be nowhere else, and that is told
            task = next(t for t in state.tasks.values() if t.task.slot == slot)
            assert (task.task.number == 0 and how == "down") or _lacks(state, gone, slot)
    for (_, volume), home in homes.items():  # data is never left for an empty volume
        assert set(state.volumes[volume]) >= set(home)
        replicated = [t for t in state.tasks.values() if volume in t.volumes and t.task.number]
        assert all(t.task.node in home for t in replicated)
    state, _ = quiet(*availability(state, _returned(gone, view), name, Availability.ACTIVE))
    assert Counter(slot for slot, _ in where(state)) <= Counter(
        {slot: 1 for slot, _ in where(state)}
    )


def _lacks(state: State, view: View, slot: str) -> bool:
    plan = reconcile(state, view)
    return slot in {lack.slot for lack in (*plan.blocked, *plan.waiting)}


def _returned(gone: View, before: View) -> View:
    """All nodes are ready again and report what they had."""
    nodes = {i: evolve(n, state=before.nodes[i].state) for i, n in gone.nodes.items()}
    return evolve(gone, nodes=nodes)


@holds
@given(stacks())
def test_removing_a_stack_leaves_nothing_of_it(value: Stack) -> None:
    state, view, made = up(value)
    state, view = quiet(with_stack(state, evolve(made, removing=True)), view)
    assert not state.tasks
    assert not state.networks


@holds
@given(stacks())
def test_every_node_is_assigned_its_own_tasks_and_hears_of_all_its_networks(value: Stack) -> None:
    state, view, _ = up(value)
    for node, assignment in assign(state, view).items():
        assert {t.id for t in assignment.tasks} == {
            t.task.id for t in state.tasks.values() if t.task.node == node
        }
        for network in assignment.networks:
            seen = {e.task for s in network.services for e in s.endpoints}
            assert seen == {t.task.id for t in state.tasks.values() if t.final is None}
