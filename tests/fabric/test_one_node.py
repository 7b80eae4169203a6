"""One node's fabric: wires come and go, an apply may be cut off, nothing is ever left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestra.fabric.render import place
from orchestra.model.assignment import ClusterNet
from orchestra.model.fabric import FabricPort, FabricService, FabricState
from tests.fabric.lab import (
    LOCAL,
    VIP,
    Host,
    Refused,
    Server,
    Space,
    container_id,
    endpoint,
    state,
    underlay,
)

pytestmark = pytest.mark.root

ALONE = FabricState(1, ClusterNet("c1", "10.16.0.0/12", 7001), (LOCAL,))
ONE = endpoint("one", "10.17.0.5", "bridge")
TWO = endpoint("two", "10.17.0.6", "bridge")


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Host, Space]]:
    with underlay(1) as (hosts, client):
        hosts[0].space.ip("ip route add default via 192.0.2.100")
        yield hosts[0], client


@pytest.fixture
def host(lab: tuple[Host, Space]) -> Iterator[Host]:
    """A host that has no fabric yet."""
    host = lab[0]
    host.do("destroy")
    yield host
    if host.process.poll() is not None:
        host.start()


def names_in(space: Space) -> set[str]:
    listing = space.run("ip", "-o", "link")
    return {line.split(": ")[1].partition("@")[0] for line in listing.splitlines()}


def test_an_engine_alone_has_no_tunnel_and_reaches_the_outside(host: Host, lab) -> None:
    one = host.attach([ONE], ALONE)  # the first attach applies by itself
    server = Server(lab[1], "outside", 9000)
    try:
        assert one.ask("192.0.2.100", 9000) == "outside 192.0.2.1"
        assert "vx0" not in names_in(host.fabric)
    finally:
        server.close()
        one.close()


def test_a_container_without_networks_has_a_loopback_device_only(host: Host) -> None:
    number = host.do("attach", container=container_id("none"), endpoints=[], state=ALONE)
    space = host.open(number)
    assert "UP" in space.run("ip", "link", "show", "lo")
    assert names_in(space) == {"lo"}
    space.close()


def test_a_container_in_two_networks_goes_out_by_the_first_and_reaches_the_second(
    host: Host,
) -> None:
    second = endpoint("one", "10.18.1.2", "net", "eth1")
    neighbour = endpoint("two", "10.18.1.3", "net")
    both = host.attach([ONE, second], state(1, 1))
    other = host.attach([neighbour], state(1, 1))
    server = Server(other, "two")
    try:
        assert both.ask("10.18.1.3", 80) == "two 10.18.1.2"
        routes = both.run("ip", "route")
        assert "default via 169.254.1.1 dev eth0" in routes
        assert "10.18.0.0/16 via 169.254.1.1 dev eth1" in routes
    finally:
        server.close()
        both.close()
        other.close()


def test_a_running_container_joins_and_leaves_a_network(host: Host) -> None:
    space = host.attach([ONE], state(1, 1))
    neighbour = host.attach([endpoint("two", "10.18.1.3", "net")], state(1, 1))
    server = Server(neighbour, "two")
    joined = endpoint("one", "10.18.1.2", "net", "eth1")
    try:
        host.do(
            "attach_to",
            container=ONE.container,
            namespace=space.number,
            endpoints=[joined],
            state=state(1, 1),
        )
        assert space.ask("10.18.1.3", 80) == "two 10.18.1.2"
        host.do("detach", container=ONE.container, devices=[joined.device])
        assert names_in(space) == {"lo", "eth0"}
        with space.socket() as client, pytest.raises(OSError, match="No route to host"):
            client.connect(("10.18.1.3", 80))
    finally:
        server.close()
        neighbour.close()
        space.close()


def test_a_container_that_starts_again_at_once_gets_its_wire_again(host: Host) -> None:
    neighbour = host.attach([TWO], ALONE)
    server = Server(neighbour, "two")
    try:
        for _ in range(5):
            space = host.attach([ONE], ALONE)
            assert space.ask("10.17.0.6", 80) == "two 10.17.0.5"
            host.do("close", namespace=space.number)
            space.close()
            host.do("detach", container=ONE.container)
        assert host.apply(evolve(ALONE, endpoints=(TWO,))) == []
        wires = {n for n in names_in(host.fabric) if n.startswith("t")}
        assert wires == {TWO.device}
    finally:
        server.close()
        neighbour.close()


def test_the_address_of_a_detached_container_is_unreachable_at_once(host: Host) -> None:
    one, two = host.attach([ONE], ALONE), host.attach([TWO], ALONE)
    host.do("detach", container=TWO.container)
    with one.socket() as client, pytest.raises(OSError, match="No route to host"):
        client.connect(("10.17.0.6", 80))
    one.close()
    two.close()


def test_an_attach_that_fails_leaves_nothing_and_says_why(host: Host) -> None:
    host.apply(ALONE)
    before = host.do("dump")
    crooked = evolve(ONE, address="10.17.0.999")
    with pytest.raises(Refused, match=f"cannot connect container {ONE.container[:12]}"):
        host.attach([crooked], ALONE)
    assert host.do("dump") == before


def test_wires_of_forgotten_containers_are_removed_by_the_next_agent(host: Host) -> None:
    space = host.attach([ONE], ALONE)
    host.kill()
    host.start()
    assert host.apply(ALONE) == []
    assert ONE.device not in names_in(host.fabric)
    assert names_in(space) == {"lo"}
    space.close()


def test_wires_that_live_are_left_to_a_restarted_agent(host: Host) -> None:
    one, two = host.attach([ONE], ALONE), host.attach([TWO], ALONE)
    server = Server(two, "two")
    both = evolve(ALONE, endpoints=(ONE, TWO))
    host.kill()
    host.start()
    assert host.apply(both) == []
    assert host.do("changes", state=both) == []
    assert one.ask("10.17.0.6", 80) == "two 10.17.0.5"
    server.close()
    one.close()
    two.close()


def test_an_attach_before_the_first_apply_disturbs_nobody(host: Host) -> None:
    busy = evolve(
        ALONE,
        endpoints=(TWO,),
        ports=(FabricPort("tcp", 8080, 80, targets=("10.17.0.6",)),),
    )
    two = host.attach([TWO], ALONE)
    assert host.apply(busy) == []
    before = set(host.do("dump"))
    server = Server(two, "two")
    host.kill()
    host.start()
    one = host.attach([ONE], ALONE)
    assert one.ask("10.17.0.6", 80) == "two 10.17.0.5"
    assert one.ask("192.0.2.1", 8080) == "two 10.16.15.255"
    lost = before - set(host.do("dump"))
    assert not [text for text in lost if not text.startswith("table ")]
    assert host.apply(evolve(busy, endpoints=(ONE, TWO))) == []
    server.close()
    one.close()
    two.close()


def test_an_engine_joins_a_cluster_and_keeps_its_containers(host: Host) -> None:
    one, two = host.attach([ONE], ALONE), host.attach([TWO], ALONE)
    server = Server(two, "two")
    joined = state(1, 3, (ONE, TWO))
    assert host.apply(joined) == []
    assert host.do("changes", state=joined) == []
    assert one.ask("10.17.0.6", 80) == "two 10.17.0.5"
    left = evolve(ALONE, endpoints=(ONE, TWO))
    assert host.apply(left) == []
    assert host.do("changes", state=left) == []
    assert "vx0" not in names_in(host.fabric)
    server.close()
    one.close()
    two.close()


def test_an_apply_killed_anywhere_is_finished_by_the_next(host: Host) -> None:
    busy = state(
        1,
        3,
        targets=("10.18.1.2", "10.18.2.2"),
        ports=(FabricPort("tcp", 8080, 80, targets=("10.18.2.2",)),),
    )
    assert host.apply(busy) == []
    expected = host.do("dump")
    deaths = 0
    for calls in range(12):
        host.do("destroy")
        host.apply(ALONE)
        host.do("die_after", calls=calls)
        try:
            host.apply(busy)
        except EOFError:
            deaths += 1
        host.kill()
        host.start()
        assert host.apply(busy) == []
        assert host.do("dump") == expected
        assert host.do("changes", state=busy) == []
    assert deaths > 5


def test_an_unknown_underlay_address_is_a_problem_with_a_remedy(host: Host) -> None:
    wrong = state(2, 3)
    (problem,) = host.apply(wrong)
    assert "no address 192.0.2.2" in problem
    assert "inventory" in problem


def test_a_destroyed_fabric_leaves_nothing_in_the_kernel(host: Host) -> None:
    before = host.space.run("sh", "-c", "ip -o addr; ip route; nft list ruleset")
    host.apply(state(1, 3))
    host.do("resolver")
    host.do("destroy")
    assert host.space.run("sh", "-c", "ip -o addr; ip route; nft list ruleset") == before
    assert not os.path.exists(f"/run/netns/{host.name}")
    assert not os.path.exists(f"{host.directory}/run/names.json")


def test_other_tables_of_the_host_are_not_touched(host: Host) -> None:
    host.space.run(
        "nft", "add table inet theirs { chain c { type filter hook input priority 0; }; }"
    )
    try:
        host.apply(ALONE)
        host.do("destroy")
        assert "table inet theirs" in host.space.run("nft", "list ruleset")
    finally:
        host.space.run("nft", "delete table inet theirs")


def test_two_fabrics_share_a_host(lab, tmp_path) -> None:
    first = lab[0]
    first.do("destroy")
    second = Host.__new__(Host)
    second.space, second.index = first.space, 2
    second.directory, second.name = str(tmp_path), f"{first.name}-b"
    os.makedirs(tmp_path / "run")
    second.start()
    try:
        assert first.apply(ALONE) == []
        elsewhere = evolve(
            LOCAL, subnet="10.177.0.0/20", block="10.177.0.0/20", gateway="10.177.0.1"
        )
        apart = FabricState(1, ClusterNet("c2", "10.176.0.0/12", 7002), (elsewhere,))
        assert second.apply(apart) == []
        assert first.do("changes", state=ALONE) == []
        second.do("destroy")
        assert first.do("changes", state=ALONE) == []
        assert place(first.name).table in first.space.run("nft", "list", "tables")
    finally:
        second.process.communicate()


addresses = st.integers(2, 250).map(lambda n: f"10.18.{n % 3 + 1}.{n}")
targets = st.lists(addresses, max_size=4, unique=True).map(tuple)
services = st.lists(st.tuples(st.integers(10, 90), targets), max_size=4, unique_by=lambda s: s[0])
ports = st.lists(
    st.tuples(
        st.sampled_from(("tcp", "udp")),
        st.integers(20000, 20020),
        st.sampled_from(("", "127.0.0.1", "192.0.2.1")),
        targets,
    ),
    max_size=4,
    unique_by=lambda p: p[1],
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes=st.integers(1, 4), services=services, ports=ports, moved=st.none() | st.integers(2, 4))
def test_an_applied_state_needs_no_change(lab, nodes, services, ports, moved) -> None:
    host = lab[0]
    wanted = state(1, nodes, ports=tuple(FabricPort(p, n, 80, h, t) for p, n, h, t in ports))
    wanted = evolve(
        wanted,
        services=tuple(FabricService(f"s{n}", f"10.18.0.{n}", t) for n, t in services),
    )
    if moved:
        networks = list(wanted.networks)
        networks[1] = evolve(networks[1], remote_addresses={"10.18.1.77": moved})
        wanted = evolve(wanted, networks=tuple(networks))
    assert host.apply(wanted) == []
    assert host.do("changes", state=wanted) == []


def test_a_service_update_reaches_new_connections_only(host: Host) -> None:
    spaces = [
        host.attach([endpoint(n, a)], state(1, 1))
        for n, a in (("a", "10.18.1.2"), ("b", "10.18.1.3"), ("asker", "10.18.1.4"))
    ]
    servers = [Server(spaces[0], "a"), Server(spaces[1], "b")]
    try:
        assert host.apply(state(1, 1, targets=("10.18.1.2",))) == []
        with spaces[0].socket() as listening:
            listening.bind(("0.0.0.0", 81))
            listening.listen()
            with spaces[2].socket(socket.SOCK_STREAM) as old:
                old.connect((VIP, 81))
                with listening.accept()[0] as stream:
                    assert host.apply(state(1, 1, targets=("10.18.1.3",))) == []
                    assert {spaces[2].ask(VIP, 80) for _ in range(20)} == {"b 10.18.1.4"}
                    old.sendall(b"still")
                    assert stream.recv(10) == b"still"
    finally:
        for made in (*servers, *spaces):
            made.close()
