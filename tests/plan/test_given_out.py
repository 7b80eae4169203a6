"""What is given out: subnets, blocks, addresses, ports, names; and when it may be given again."""

from __future__ import annotations

import ipaddress

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra.model.errors import Conflict
from orchestra.model.service import Network, Port, ServiceNetwork
from orchestra.plan import addresses
from orchestra.plan.addresses import QUARANTINE
from orchestra.plan.assign import assign
from orchestra.plan.enact import FIRST_PICKED_PORT
from orchestra.plan.state import NetworkRecord, State, View
from plan.build import cluster, record, service, settle, stack, with_stack

RANGE = "10.16.0.0/12"


def test_the_range_avoids_the_nodes_routes() -> None:
    assert addresses.pick_range([]) == RANGE
    assert addresses.pick_range(["10.20.0.0/16", "default"]) == "10.176.0.0/12"
    with pytest.raises(Conflict, match="routes into each of"):
        addresses.pick_range(["10.0.0.0/8", "172.16.0.0/12"])


def test_subnets_are_wide_while_there_are_many_and_then_small() -> None:
    used: list[str] = []
    for _ in range(20):
        used.append(addresses.pick_subnet(RANGE, used))
    nets = [ipaddress.ip_network(text) for text in used]
    assert [n.prefixlen for n in nets[:7]] == [16] * 7
    assert nets[-1].prefixlen == 20
    assert not any(a.overlaps(b) for i, a in enumerate(nets) for b in nets[:i])
    assert not any(n.overlaps(ipaddress.ip_network("10.16.0.0/15")) for n in nets)


def test_a_range_that_is_used_up_is_an_error_with_a_remedy() -> None:
    with pytest.raises(Conflict, match="orchestra network ls"):
        addresses.pick_subnet(RANGE, [RANGE])


@pytest.mark.parametrize(
    ("subnet", "why"),
    [
        ("10.17.0.0/16", "node"),
        ("10.18.5.0/24", "overlaps 10.18.0.0/16 of network other"),
        ("192.0.2.0/28", "at least a /26"),
        ("fd00::/64", "not an IPv4 subnet"),
        ("nonsense", "not an IPv4 subnet"),
    ],
)
def test_a_users_subnet_is_checked(subnet: str, why: str) -> None:
    with pytest.raises(Conflict, match=why):
        addresses.check_subnet("n", subnet, RANGE, {"other": "10.18.0.0/16"})
    addresses.check_subnet("n", "192.168.7.0/24", RANGE, {"other": "10.18.0.0/16"})


@given(st.lists(st.integers(1, 300), unique=True, max_size=40))
def test_nodes_have_blocks_of_their_own_that_hold_no_virtual_address(nodes: list[int]) -> None:
    blocks: dict[int, str] = {}
    for node in nodes:
        block = addresses.pick_block("10.18.0.0/16", blocks, ["10.18.0.2", "10.18.255.9"], node)
        assert block and block not in blocks.values()
        assert addresses.pick_block("10.18.0.0/16", {**blocks, node: block}, [], node) == block
        blocks[node] = block
    assert not {"10.18.0.0/24", "10.18.255.0/24"} & set(blocks.values())


def test_a_small_network_runs_out_of_blocks_and_addresses() -> None:
    taken = {i: f"10.9.0.{16 * i}/28" for i in range(1, 16)}
    assert addresses.pick_block("10.9.0.0/24", taken, [], 99) == ""
    used = [f"10.9.0.{16 + i}" for i in range(2, 12)]
    assert addresses.pick_task_address("10.9.0.16/28", used, {}, 0.0) is None
    assert addresses.pick_task_address("10.9.0.16/28", used[1:], {}, 0.0) == "10.9.0.18"


def test_a_block_says_how_many_tasks_it_takes() -> None:
    assert addresses.capacity("10.18.1.0/24") == 190
    assert addresses.capacity("10.9.0.16/28") == 10


def test_an_address_rests_before_it_comes_again() -> None:
    free = addresses.pick_task_address("10.18.1.0/24", [], {"10.18.1.2": 100.0}, 100.0)
    assert free == "10.18.1.3"
    later = 100.0 + QUARANTINE
    assert addresses.pick_task_address("10.18.1.0/24", [], {"10.18.1.2": 100.0}, later) == (
        "10.18.1.2"
    )


def test_virtual_addresses_go_on_in_blocks_that_no_node_has() -> None:
    vips = {f"app/{i}": f"10.9.0.{i}" for i in range(2, 16)}
    network = NetworkRecord("id", "n", "app", "10.9.0.0/24", "10.9.0.1", vips=vips)
    assert addresses.pick_vip(network, 0.0) == "10.9.0.240"
    network = evolve(network, blocks={1: "10.9.0.240/28"})
    assert addresses.pick_vip(network, 0.0) == "10.9.0.224"


# --- through the planner -------------------------------------------------------------------


def test_a_service_keeps_its_virtual_address_and_picked_port_while_it_changes() -> None:
    app = record(stack(service("web", ports=(Port(80),))))
    state, view = settle(*cluster(app))
    network = state.networks["app_default"]
    changed = record(stack(service("web", ports=(Port(80),), command=("x",))), 2)
    state, view = settle(with_stack(state, changed), view)
    assert state.networks["app_default"].vips == network.vips == {"app/web": "10.18.0.2"}
    assert state.ports == {"app/web/tcp/80": FIRST_PICKED_PORT}


def published(state: State, view: View) -> list[tuple[int, int, tuple[str, ...]]]:
    one = next(iter(assign(state, view).values()))
    return [(p.port, p.target, p.targets) for p in one.published]


def test_picked_ports_avoid_those_that_stacks_publish() -> None:
    fixed = record(stack(service("a", ports=(Port(1, FIRST_PICKED_PORT),)), name="one"))
    picked = record(stack(service("b", ports=(Port(2),)), name="two"))
    state, view = settle(*cluster(fixed, picked))
    assert [(port, target) for port, target, _ in published(state, view)] == [
        (FIRST_PICKED_PORT, 1),
        (FIRST_PICKED_PORT + 1, 2),
    ]


def test_a_fixed_address_is_given_or_refused() -> None:
    wires = (ServiceNetwork("default", ipv4_address="10.18.1.77"),)
    state, _ = settle(*cluster(record(stack(service("web", networks=wires))), nodes=1))
    (task,) = state.tasks.values()
    assert list(task.task.addresses.values()) == ["10.18.1.77"]


def test_a_network_with_a_subnet_of_its_own_gets_it() -> None:
    app = stack(service("web"))
    app = evolve(app, networks={"default": Network("default", "mine", subnet="192.168.9.0/24")})
    state, _ = settle(*cluster(record(app)))
    assert (state.networks["mine"].subnet, state.networks["mine"].gateway) == (
        "192.168.9.0/24",
        "192.168.9.1",
    )
