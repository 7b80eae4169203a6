"""agent.network: what the fabric of a node shall be, as values."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra.agent.network import (
    Wired,
    base_state,
    bridge_network,
    fabric_state,
    free_address,
    local_id,
    mac_of,
    pick_range,
    task_container_id,
)
from orchestra.model.assignment import (
    AssignedNetwork,
    Assignment,
    ClusterNet,
    EndpointState,
    NetworkService,
    Peer,
    Published,
)
from orchestra.model.container import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Endpoint,
    Health,
    HealthStatus,
)
from orchestra.model.local_network import LocalNetwork
from orchestra.model.service import Port

SPEC = ContainerSpec(image="busybox", image_id="sha256:0", args=("true",))
PEERS = (Peer(1, "a", "one", "192.0.2.1"), Peer(2, "b", "two", "192.0.2.2"))
CLUSTER = ClusterNet("c", "10.16.0.0/12", 7, self_index=1, peers=PEERS)
WEB = NetworkService(
    "shop",
    "web",
    "10.18.0.5",
    ("www",),
    (
        EndpointState("t1", "web.1", "shop-web-1", 1, "10.18.1.2"),
        EndpointState("t2", "web.2", "shop-web-2", 2, "10.18.2.2"),
        EndpointState("t3", "web.3", "shop-web-3", 2, "10.18.9.9", serving=False),
    ),
)
DB = NetworkService(
    "shop", "db", "", (), (EndpointState("t4", "db.1", "shop-db-1", 2, "10.18.2.3"),)
)
FRONT = AssignedNetwork(
    "n1",
    "shop_front",
    "10.18.0.0/16",
    "10.18.0.1",
    blocks={1: "10.18.1.0/24", 2: "10.18.2.0/24"},
    services=(WEB, DB),
)
ASSIGNMENT = Assignment(
    9,
    CLUSTER,
    networks=(FRONT,),
    published=(
        Published("tcp", 8080, 80, "shop_web", targets=("10.18.1.2", "10.18.2.2")),
        Published("tcp", 9000, 90, "shop_other", node=2, targets=("10.18.2.2",)),
    ),
)


def task(status=ContainerStatus.RUNNING, health=None, name="t1", address="10.18.1.2"):
    endpoints = (Endpoint("n1", "shop_front", address),)
    spec = evolve(SPEC, endpoints=endpoints)
    container = Container(
        task_container_id(name), f"c-{name}", 1.0, spec, status, task=name, health=health
    )
    return Wired(container, endpoints)


def own(ports=(), dns=()):
    endpoints = (Endpoint(local_id("bridge"), "bridge", "10.17.0.2", ("box",)),)
    spec = evolve(SPEC, endpoints=endpoints, ports=ports, dns=dns)
    return Wired(Container("ab" * 32, "Mine", 1.0, spec, ContainerStatus.RUNNING), endpoints)


def state(*wired):
    return fabric_state(base_state(ASSIGNMENT), ASSIGNMENT, wired, ("9.9.9.9",))


def vip_targets(*wired):
    return {s.vip: s.targets for s in state(*wired).services}["10.18.0.5"]


def test_serving_endpoints_stand_behind_the_virtual_address():
    assert vip_targets(task()) == ("10.18.1.2", "10.18.2.2")


@pytest.mark.parametrize(
    "wired",
    [
        (),
        (task(ContainerStatus.RESTARTING),),
        (task(health=Health(HealthStatus.UNHEALTHY)),),
    ],
)
def test_an_own_task_that_is_down_or_ill_leaves_services_and_ports_at_once(wired):
    assert vip_targets(*wired) == ("10.18.2.2",)
    (port,) = state(*wired).ports
    assert port.targets == ("10.18.2.2",)


def test_names_of_services_tasks_slots_and_containers():
    names = state(task()).names.names["n1"]
    assert names["web"] == names["www"] == names["web.shop"] == ("10.18.0.5",)
    assert names["tasks.web"] == ("10.18.1.2", "10.18.2.2")
    assert names["db"] == names["tasks.db"] == ("10.18.2.3",)
    assert names["shop-web-3"] == names["web.3"] == ("10.18.9.9",)
    assert names[task_container_id("t2")[:12]] == ("10.18.2.2",)


def test_an_address_outside_its_nodes_block_is_routed_alone():
    (_, front) = base_state(ASSIGNMENT).networks
    assert front.remote_addresses == {"10.18.9.9": 2}
    assert front.block == "10.18.1.0/24"
    assert front.remote_blocks == {2: "10.18.2.0/24"}


def test_ports_of_another_nodes_host_mode_are_not_ours():
    assert [p.port for p in state(task()).ports] == [8080]


def test_a_nodes_own_container_has_wire_names_ports_and_resolvers():
    seen = state(own(ports=(Port(80, 8000),), dns=("1.1.1.1",)))
    (endpoint,) = seen.endpoints
    assert (endpoint.interface, endpoint.mac) == ("eth0", mac_of("10.17.0.2"))
    bridge = seen.names.names[local_id("bridge")]
    assert bridge["mine"] == bridge["box"] == bridge["ab" * 6] == ("10.17.0.2",)
    assert seen.names.clients == {"10.17.0.2": (local_id("bridge"),)}
    assert seen.names.upstream == {"": ("9.9.9.9",), "10.17.0.2": ("1.1.1.1",)}
    assert seen.ports[-1].targets == ("10.17.0.2",)
    assert seen.ports[-1].label == "container Mine"


@pytest.mark.parametrize(
    ("routes", "range"),
    [
        ((), "10.16.0.0/12"),
        (("0.0.0.0/0", "192.168.0.0/16"), "10.16.0.0/12"),
        (("10.0.0.0/8",), "172.24.0.0/14"),
        (("10.20.1.1/32",), "10.176.0.0/12"),
        (("10.20.1.7/24", "fe80::/64"), "10.176.0.0/12"),
    ],
)
def test_the_range_avoids_what_the_host_routes(routes, range):
    assert pick_range(routes) == range


@given(st.integers(1, 40))
def test_addresses_go_round_so_that_a_released_one_rests(count):
    front = base_state(ASSIGNMENT).networks[1]
    last, seen = "", []
    for _ in range(count):
        last = free_address(front, (), last)
        seen.append(last)
    assert len(set(seen)) == count
    assert all(192 <= int(a.split(".")[3]) <= 254 for a in seen)


def test_no_address_is_given_twice_and_a_full_block_gives_none():
    front = base_state(ASSIGNMENT).networks[1]
    used = set()
    while address := free_address(front, used):
        used.add(address)
    assert len(used) == 63
    bridge = bridge_network(CLUSTER)
    assert (bridge.subnet, bridge.gateway) == ("10.17.0.0/20", "10.17.0.1")
    assert free_address(bridge, ()) == "10.17.0.2"


def test_a_published_port_answers_on_a_wire_that_leads_outside():
    inner = LocalNetwork("in", "inner", 0, 1.0, internal=True)
    outer = LocalNetwork("out", "outer", 1, 1.0)
    base = base_state(ASSIGNMENT, (inner, outer))
    assert [n.subnet for n in base.networks[1:3]] == ["10.17.16.0/24", "10.17.17.0/24"]
    endpoints = (Endpoint("in", "inner", "10.17.16.2"), Endpoint("out", "outer", "10.17.17.2"))
    spec = evolve(SPEC, ports=(Port(80, 8080),))
    container = Container("c" * 64, "own", 1.0, spec, ContainerStatus.RUNNING)
    state = fabric_state(base, ASSIGNMENT, [Wired(container, endpoints)])
    (port,) = [p for p in state.ports if p.port == 8080 and "own" in p.label]
    assert port.targets == ("10.17.17.2",)
