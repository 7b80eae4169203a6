"""Where slots go, and what is said when they can go nowhere."""

from __future__ import annotations

import pytest
from attrs import evolve

from orchestra.model.node import Availability, NodeState
from orchestra.model.service import (
    Mount,
    MountType,
    Placement,
    Port,
    PortMode,
    Resources,
    Service,
    ServiceMode,
)
from orchestra.plan.reconcile import reconcile
from orchestra.plan.schedule import Demand, NoNode, Scheduler
from orchestra.plan.state import State, View
from plan.build import (
    availability,
    cluster,
    record,
    service,
    settle,
    stack,
    where,
    with_stack,
    without,
)


def placed(*services: Service, nodes: int = 3, volumes: tuple[str, ...] = (), **cluster_: object):
    """(slot, node) of every task once a stack of these services is up."""
    state, view = cluster(record(stack(*services, volumes=volumes)), nodes=nodes, **cluster_)
    state, _ = settle(state, view)
    return where(state)


def reasons(state: State, view: View) -> dict[str, str]:
    return {b.slot: b.because for b in reconcile(state, view).blocked}


def why(one: Service, **cluster_: object) -> str:
    """Why the first slot of a service cannot be placed."""
    return reasons(*cluster(record(stack(one)), **cluster_))[f"{one.name}.1"]


# --- where ---------------------------------------------------------------------------------


def test_replicas_spread_over_all_nodes_before_any_has_two() -> None:
    nodes = [node for _, node in sorted(placed(service("web", replicas=5)))]
    assert sorted(nodes.count(f"node-{i}") for i in (1, 2, 3)) == [1, 2, 2]


def test_services_fill_the_emptiest_node_and_equal_ones_go_to_the_lowest_index() -> None:
    one, two = service("a"), service("b")
    assert placed(one, two) == {("a.1", "node-1"), ("b.1", "node-2")}


def test_a_node_that_is_reserved_counts_as_full() -> None:
    big = service("a", reservations=Resources(memory=6 << 30))
    small = [service(f"b{i}") for i in range(4)]
    assert ("a.1", "node-1") in placed(big, *small, nodes=2)
    assert not {("b0.1", "node-1"), ("b1.1", "node-1")} & placed(big, *small, nodes=2)


def test_a_spread_preference_balances_the_values_of_a_label() -> None:
    labels = {1: {"zone": "a"}, 2: {"zone": "a"}, 3: {"zone": "b"}}
    web = service("web", replicas=4, placement=Placement(preferences=("spread=node.labels.zone",)))
    nodes = [node for _, node in placed(web, labels=labels)]
    assert nodes.count("node-3") == 2


def test_constraints_choose_nodes() -> None:
    labels = {2: {"disk": "SSD"}}
    web = service("web", replicas=2, placement=Placement(("node.labels.disk == ssd",)))
    assert {node for _, node in placed(web, labels=labels)} == {"node-2"}
    web = service("web", replicas=2, placement=Placement(("node.labels.disk != ssd",)))
    assert {node for _, node in placed(web, labels=labels)} == {"node-1", "node-3"}


def test_reservations_are_never_promised_twice() -> None:
    web = service("web", replicas=4, reservations=Resources(cpus=2.5))
    state, view = settle(*cluster(record(stack(web))))
    assert len(where(state)) == 3
    assert reasons(state, view) == {
        "web.4": "no node has 2.5 cpus unreserved: 3 of 3 lack it",
    }


def test_host_ports_put_tasks_on_different_nodes() -> None:
    port = (Port(80, 8080, mode=PortMode.HOST),)
    state, view = settle(*cluster(record(stack(service("web", replicas=4, ports=port)))))
    assert {node for _, node in where(state)} == {"node-1", "node-2", "node-3"}
    assert reasons(state, view)["web.4"] == "no node has host port tcp/8080 free: 3 of 3 lack it"


def test_a_published_port_of_every_node_is_no_host_port_for_another_service() -> None:
    ingress = service("a", ports=(Port(80, 8080),))
    host = service("b", ports=(Port(80, 8080, mode=PortMode.HOST),))
    assert "host port tcp/8080" in reasons(*cluster(record(stack(ingress, host))))["b.1"]


def test_max_replicas_per_node_leaves_slots_without_a_place() -> None:
    web = service("web", replicas=3, placement=Placement(max_replicas_per_node=1))
    state, view = settle(*cluster(record(stack(web)), nodes=2))
    assert len(where(state)) == 2
    assert "2 of 2 have reached max_replicas_per_node (1)" in reasons(state, view)["web.3"]


DATA = Mount(MountType.VOLUME, "/data", "data")


def test_a_named_volume_holds_all_replicas_where_the_first_came_to_be() -> None:
    web = service("web", replicas=3, mounts=(DATA,))
    assert len({node for _, node in placed(web, volumes=("data",))}) == 1


def test_two_services_that_share_a_volume_share_a_node() -> None:
    a, b = service("a", mounts=(DATA,)), service("b", mounts=(DATA,))
    assert len({node for _, node in placed(a, b, volumes=("data",))}) == 1


def test_global_services_come_to_every_fitting_node() -> None:
    agent = service("agent", mode=ServiceMode.GLOBAL)
    assert placed(agent) == {(f"agent.node-{i}", f"node-{i}") for i in (1, 2, 3)}
    agent = evolve(agent, placement=Placement(("node.name != node-2",)))
    assert placed(agent) == {("agent.node-1", "node-1"), ("agent.node-3", "node-3")}


# --- why not -------------------------------------------------------------------------------


def test_one_reason_is_told_with_how_many_nodes_lack_it() -> None:
    web = service("web", placement=Placement(("node.labels.disk == ssd",)))
    assert why(web) == "no node satisfies node.labels.disk==ssd: 3 of 3 lack it"


def test_several_reasons_are_counted() -> None:
    web = service("web", placement=Placement(("node.labels.disk == ssd",)))
    labels = {1: {"disk": "ssd"}, 2: {"disk": "ssd"}}
    state, view = cluster(record(stack(web)), labels=labels)
    view = without(view, "node-1")
    state, view = availability(state, view, "node-2", Availability.DRAIN)
    assert reasons(state, view)["web.1"] == (
        "no node fits: 1 of 3 are down (node-1), 1 of 3 are drained (node-2), "
        "1 of 3 lack node.labels.disk==ssd (node-3)"
    )


def test_a_cluster_without_nodes_says_how_to_come_by_one() -> None:
    assert "orchestra node add" in why(service("web"), nodes=0)


def test_an_image_for_another_architecture_is_a_reason() -> None:
    state, view = cluster(record(stack(service("web"))))
    facts = {digest: evolve(f, architecture="arm64") for digest, f in state.images.items()}
    state = evolve(state, images=facts)
    assert reasons(state, view)["web.1"] == "no node runs images for arm64: 3 of 3 lack it"


@pytest.mark.parametrize(
    ("state_", "word"), [(NodeState.DOWN, "are down"), (NodeState.NOT_READY, "are not-ready")]
)
def test_nodes_that_cannot_be_used_now_are_said_to_be_so(state_: NodeState, word: str) -> None:
    state, view = cluster(record(stack(service("web"))), nodes=1)
    assert word in reasons(state, without(view, "node-1", state_))["web.1"]


def test_an_external_volume_that_is_nowhere_is_not_made() -> None:
    value = stack(service("web", mounts=(DATA,)), volumes=("data",))
    value = evolve(value, volumes={"data": evolve(value.volumes["data"], external=True)})
    state, view = cluster(record(value))
    assert "no node holds volume app_data" in reasons(state, view)["web.1"]


# --- the scheduler itself ------------------------------------------------------------------


def test_a_scheduler_forgets_a_task_that_leaves() -> None:
    _, view = cluster(nodes=1)
    demand = Demand("app/web", reserved=Resources(cpus=4.0))
    scheduler = Scheduler(view.nodes.values())
    node = scheduler.place(demand)
    with pytest.raises(NoNode, match="4 cpus"):
        scheduler.place(demand)
    scheduler.count(node, demand, -1)
    assert scheduler.place(demand) == node


def test_a_successor_prefers_the_place_of_its_predecessor() -> None:
    state, view = settle(*cluster(record(stack(service("web", replicas=3)))))
    before = where(state)
    changed = record(stack(service("web", replicas=3, command=("x",))), revision=2)
    state, _ = settle(with_stack(state, changed), view)
    assert where(state) == before
