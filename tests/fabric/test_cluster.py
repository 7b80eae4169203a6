"""The fabric on three nodes: what containers and clients see, on the real kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from attrs import evolve

from orchestra.linux import netns
from orchestra.model.fabric import FabricPort, NameTable
from tests.fabric.lab import (
    CLIENT,
    EMPTY_VIP,
    VIP,
    Host,
    Server,
    Space,
    endpoint,
    state,
    underlay,
)

pytestmark = pytest.mark.root

WEB = ("10.18.1.2", "10.18.2.2", "10.18.3.2")
PLACES = {
    # name: (node, address, network)
    "c12": (1, "10.18.1.2", "net"),
    "c13": (1, "10.18.1.3", "net"),
    "c22": (2, "10.18.2.2", "net"),
    "c32": (3, "10.18.3.2", "net"),
    "o14": (1, "10.19.1.4", "other"),
    "i14": (1, "10.20.1.4", "in"),
    "i24": (2, "10.20.2.4", "in"),
    "l15": (1, "10.17.0.5", "bridge"),
}
PORTS = (
    FabricPort("tcp", 8080, 80, targets=WEB, label="web"),
    FabricPort("udp", 8080, 80, targets=WEB, label="web"),
    FabricPort("tcp", 8081, 80, targets=(), label="empty"),
    FabricPort("udp", 8081, 80, targets=(), label="empty"),
    FabricPort("tcp", 8082, 80, host_ip="127.0.0.1", targets=("10.18.1.2",), label="admin"),
)
NAMES = NameTable(
    clients={address: (network,) for _, address, network in PLACES.values()},
    names={"net": {"web": (VIP,), "c12": ("10.18.1.2",), "all": WEB}},
)


class Cluster:
    def __init__(self, hosts: list[Host], client: Space) -> None:
        self.hosts, self.client = hosts, client
        self.spaces: dict[str, Space] = {}
        self.servers: dict[str, Server] = {}

    def host(self, node: int) -> Host:
        return self.hosts[node - 1]

    def state(self, node: int):
        mine = tuple(
            endpoint(name, address, network)
            for name, (where, address, network) in PLACES.items()
            if where == node
        )
        return state(node, 3, mine, targets=WEB, ports=PORTS, names=NAMES)

    def apply(self) -> None:
        for host in self.hosts:
            assert host.apply(self.state(host.index)) == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = set(os.listdir(netns.DIRECTORY)) if os.path.isdir(netns.DIRECTORY) else set()
    with underlay(3) as (hosts, client):
        made = Cluster(hosts, client)
        made.apply()
        for host in hosts:
            host.do("resolver")
        for name, (node, address, network) in PLACES.items():
            one = endpoint(name, address, network)
            made.spaces[name] = made.host(node).attach([one], made.state(node))
            made.servers[name] = Server(made.spaces[name], name)
        made.apply()
        yield made
        for server in made.servers.values():
            server.close()
        for space in made.spaces.values():
            space.close()
    after = set(os.listdir(netns.DIRECTORY)) if os.path.isdir(netns.DIRECTORY) else set()
    assert not {n for n in after - before if n.startswith(f"orc-test-{os.getpid()}-")}


def refused(space: Space, address: str, port: int = 80, *, udp: bool = False) -> int:
    """The errno with which a connection fails, which must not be a timeout."""
    with space.socket(socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as client:
        try:
            client.connect((address, port))
            client.send(b"hello")
            client.recv(100)
        except TimeoutError:
            pytest.fail(f"{address}:{port} hangs")
        except OSError as error:
            assert error.errno is not None
            return error.errno
    pytest.fail(f"{address}:{port} answers")


def test_containers_of_a_network_reach_each_other_on_one_node_and_across_nodes(cluster) -> None:
    for to, address in (("c13", "10.18.1.3"), ("c22", "10.18.2.2"), ("c32", "10.18.3.2")):
        for udp in (False, True):
            assert cluster.spaces["c12"].ask(address, 80, udp=udp) == f"{to} 10.18.1.2"


def test_a_host_reaches_containers_of_every_node(cluster) -> None:
    assert cluster.host(1).space.ask("10.18.1.2", 80) == "c12 10.16.0.1"
    assert cluster.host(1).space.ask("10.18.2.2", 80) == "c22 10.16.0.1"


def test_a_virtual_address_spreads_over_nodes_and_may_lead_back_to_the_caller(cluster) -> None:
    seen = {cluster.spaces["c12"].ask(VIP, 80) for _ in range(60)}
    assert seen == {"c12 169.254.1.1", "c22 10.18.1.2", "c32 10.18.1.2"}
    assert len({cluster.spaces["c13"].ask(VIP, 80, udp=True) for _ in range(60)}) == 3


def test_a_virtual_address_without_endpoints_refuses_at_once(cluster) -> None:
    assert refused(cluster.spaces["c12"], EMPTY_VIP) == errno.EHOSTUNREACH


@pytest.mark.parametrize("node", [1, 3])
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_a_published_port_answers_on_every_node_and_keeps_the_clients_address(
    cluster, node: int, udp: bool
) -> None:
    seen = {cluster.client.ask(f"192.0.2.{node}", 8080, udp=udp) for _ in range(60)}
    assert seen == {f"c12 {CLIENT}", f"c22 {CLIENT}", f"c32 {CLIENT}"}


def test_a_published_port_answers_on_localhost(cluster) -> None:
    seen = {cluster.host(2).space.ask("127.0.0.1", 8080) for _ in range(60)}
    assert seen == {"c12 10.16.0.2", "c22 10.16.0.2", "c32 10.16.0.2"}
    assert cluster.host(2).space.ask("127.0.0.1", 8080, udp=True).endswith(" 10.16.0.2")


def test_a_host_reaches_its_published_port_by_its_own_address(cluster) -> None:
    assert len({cluster.host(2).space.ask("192.0.2.2", 8080) for _ in range(60)}) == 3


def test_a_container_reaches_published_ports_of_its_own_and_of_other_nodes(cluster) -> None:
    own = {cluster.spaces["c12"].ask("192.0.2.1", 8080) for _ in range(40)}
    assert own == {"c12 10.16.0.1", "c22 10.16.0.1", "c32 10.16.0.1"}
    other = {cluster.spaces["c12"].ask("192.0.2.2", 8080) for _ in range(40)}
    assert other == {"c12 192.0.2.1", "c22 192.0.2.1", "c32 192.0.2.1"}


def test_a_port_limited_to_an_address_answers_there_only(cluster) -> None:
    assert cluster.host(1).space.ask("127.0.0.1", 8082) == "c12 10.16.0.1"
    assert refused(cluster.client, "192.0.2.1", 8082) == errno.ECONNREFUSED


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_a_published_port_without_endpoints_refuses_at_once(cluster, udp: bool) -> None:
    assert refused(cluster.client, "192.0.2.1", 8081, udp=udp) == errno.ECONNREFUSED


def test_networks_are_kept_apart_at_once(cluster) -> None:
    for address in ("10.18.1.2", "10.18.2.2"):
        assert refused(cluster.spaces["o14"], address) == errno.EHOSTUNREACH
    assert refused(cluster.spaces["l15"], "10.18.1.2") == errno.EHOSTUNREACH


def test_an_internal_network_spans_nodes_and_leads_nowhere_else(cluster) -> None:
    assert cluster.spaces["i14"].ask("10.20.2.4", 80) == "i24 10.20.1.4"
    assert refused(cluster.spaces["i14"], CLIENT) == errno.EHOSTUNREACH


def test_containers_reach_the_outside_with_their_hosts_address(cluster) -> None:
    server = Server(cluster.client, "outside", 9000)
    try:
        assert cluster.spaces["c22"].ask(CLIENT, 9000) == "outside 192.0.2.2"
        assert cluster.spaces["l15"].ask(CLIENT, 9000, udp=True) == "outside 192.0.2.1"
    finally:
        server.close()


def test_a_networks_gateway_is_the_host(cluster) -> None:
    server = Server(cluster.host(1).space, "host", 9001)
    try:
        assert cluster.spaces["l15"].ask("10.17.0.1", 9001) == "host 10.17.0.5"
        assert cluster.spaces["c12"].ask("10.18.0.1", 9001) == "host 10.18.1.2"
        assert cluster.spaces["i14"].ask("10.16.0.1", 9001) == "host 10.20.1.4"
    finally:
        server.close()


@pytest.mark.parametrize("address", ["10.18.1.77", "10.18.2.77", "10.18.9.9", "10.29.0.1"])
def test_an_address_that_nobody_has_is_unreachable_at_once(cluster, address: str) -> None:
    assert refused(cluster.spaces["c12"], address) == errno.EHOSTUNREACH


def test_a_container_cannot_send_from_anothers_address(cluster) -> None:
    def attempt(source: str) -> None:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, socket.IPPROTO_UDP, 0,
            socket.inet_aton(source), socket.inet_aton("10.18.2.2"),
        )  # fmt: skip
        cluster.spaces["c12"].raw(header + struct.pack(">HHHH", 9999, 9100, 8, 0), "10.18.2.2")

    with cluster.spaces["c22"].socket(socket.SOCK_DGRAM) as heard:
        heard.bind(("0.0.0.0", 9100))
        attempt("10.18.1.3")
        attempt("10.18.1.2")
        assert heard.recvfrom(100)[1] == ("10.18.1.2", 9999)  # the forged one came first


def test_names_are_answered_on_127_0_0_11(cluster) -> None:
    space = cluster.spaces["c12"]
    for name, expected in (
        ("web", {VIP}),
        ("WEB.", {VIP}),
        ("all", set(WEB)),
        ("host.docker.internal", {"10.16.0.1"}),
    ):
        assert lookup(space, name) == expected
    assert lookup(cluster.spaces["o14"], "web") == set()  # not its network


def test_names_are_answered_over_tcp_too(cluster) -> None:
    query = dns_query("all")
    with cluster.spaces["c22"].socket() as client:
        client.connect(("127.0.0.11", 53))
        client.sendall(struct.pack(">H", len(query)) + query)
        reply = client.recv(1000)
    assert addresses_in(reply[2:]) == set(WEB)


def test_nothing_but_dns_of_the_fabric_can_be_reached(cluster) -> None:
    with cluster.host(1).fabric.socket() as listening:
        listening.bind(("0.0.0.0", 9200))
        listening.listen()
        with cluster.spaces["c12"].socket() as client:
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.connect(("169.254.1.1", 9200))


def test_large_packets_pass_a_tunnel_that_is_narrower_than_the_wires(cluster) -> None:
    fabric = cluster.host(1).fabric
    fabric.ip("ip link set vx0 mtu 1300")
    try:
        with cluster.spaces["c12"].socket(socket.SOCK_DGRAM) as datagram:
            datagram.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: always DF
            datagram.connect(("10.18.3.2", 80))
            datagram.send(bytes(1400))
            with pytest.raises(OSError, match="too long"):
                for _ in range(100):  # the ICMP error arrives with one of the next calls
                    datagram.send(bytes(1400))
                    datagram.recv(100)
        big = bytes(200_000)
        with cluster.spaces["c32"].socket() as listening:
            listening.bind(("0.0.0.0", 9300))
            listening.listen()
            with cluster.spaces["c12"].socket() as client:
                client.connect(("10.18.3.2", 9300))
                with listening.accept()[0] as stream:
                    client.sendall(big)
                    client.shutdown(socket.SHUT_WR)
                    received = 0
                    while data := stream.recv(65536):
                        received += len(data)
        assert received == len(big)
    finally:
        cluster.apply()
    assert "mtu 1450" in fabric.run("ip", "link", "show", "vx0")


def test_forged_tunnel_packets_of_a_stranger_are_dropped(cluster) -> None:
    inner_udp = struct.pack(">HHHH", 9999, 9400, 8, 0)
    inner = (
        struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0,
                    socket.inet_aton("10.18.3.2"), socket.inet_aton("10.18.1.2"))
        + inner_udp
    )  # fmt: skip
    inner = inner[:10] + struct.pack(">H", checksum(inner[:20])) + inner[12:]
    frame = bytes.fromhex("026f00000001026f00000003") + b"\x08\0" + inner
    packet = struct.pack(">II", 0x08000000, 7001 << 8) + frame
    with cluster.spaces["c12"].socket(socket.SOCK_DGRAM) as heard:
        heard.bind(("0.0.0.0", 9400))
        for sender in (cluster.client, cluster.host(3).space):
            with sender.socket(socket.SOCK_DGRAM) as forger:
                forger.sendto(packet, ("192.0.2.1", 8470))
        heard.recvfrom(100)  # the peer's came through ...
        heard.settimeout(0.3)
        with pytest.raises(TimeoutError):
            heard.recvfrom(100)  # ... and nothing else
    table = cluster.host(1).space.run("nft", "list", "ruleset")
    assert "udp dport 8470 ip saddr != @peers counter packets 1 " in table


def test_a_neighbour_with_a_route_cannot_reach_containers_directly(cluster) -> None:
    cluster.client.ip("ip route add 10.16.0.0/12 via 192.0.2.1")
    try:
        with cluster.client.socket() as client:
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.connect(("10.18.1.2", 80))
    finally:
        cluster.client.ip("ip route del 10.16.0.0/12")


def test_an_established_flow_survives_a_change_of_everything_around_it(cluster) -> None:
    with cluster.spaces["c32"].socket() as listening:
        listening.bind(("0.0.0.0", 80 + 9000))
        listening.listen()
        with cluster.spaces["c12"].socket() as client:
            client.connect(("10.18.3.2", 9080))
            with listening.accept()[0] as stream:
                changed = cluster.state(1)
                changed = evolve(changed, services=(), ports=())
                assert cluster.host(1).apply(changed) == []
                client.sendall(b"still here")
                assert stream.recv(100) == b"still here"
                stream.sendall(b"me too")
                assert client.recv(100) == b"me too"
    cluster.apply()


def test_an_applied_state_is_left_alone(cluster) -> None:
    before = cluster.host(1).do("dump")
    generation = rule_set_generation(cluster.host(1))
    cluster.apply()
    assert cluster.host(1).do("dump") == before
    assert rule_set_generation(cluster.host(1)) == generation


def test_a_restarted_agent_leaves_the_kernel_alone(cluster) -> None:
    host = cluster.host(2)
    before, generation = host.do("dump"), rule_set_generation(host)
    held = host.process.pid
    # the containers' processes hold their namespaces; here the test's descriptors do
    host.kill()
    host.start()
    assert host.process.pid != held
    assert host.apply(cluster.state(2)) == []
    assert host.do("dump") == before
    assert rule_set_generation(host) == generation
    host.do("resolver")
    assert lookup(cluster.spaces["c22"], "web") == {VIP}


def test_a_flushed_rule_set_is_put_back(cluster) -> None:
    host = cluster.host(1)
    before = host.do("dump")
    host.space.run("nft", "flush ruleset")
    host.fabric.run("nft", "flush ruleset")
    assert host.apply(cluster.state(1)) == []
    assert host.do("dump") == before
    assert cluster.client.ask("192.0.2.1", 8080).endswith(CLIENT)


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("fabric", "ip route del 10.18.2.0/24"),
        ("fabric", "ip route replace 10.18.2.0/24 via 10.16.0.3 dev vx0 onlink"),
        ("fabric", "ip route add 10.18.2.2/32 via 10.16.0.3 dev vx0 onlink"),
        ("fabric", "bridge fdb del 02:6f:00:00:00:02 dev vx0 dst 192.0.2.2"),
        ("fabric", "ip neigh del 10.16.0.2 dev vx0"),
        ("fabric", "ip rule del fwmark 2"),
        ("fabric", "ip link del vx0"),
        ("fabric", "ip addr del 169.254.1.1/32 dev lo"),
        ("fabric", "sysctl -qw net.ipv4.ip_forward=0"),
        ("fabric", "nft delete element inet {table} wires {{ {device} . 10.18.1.2 }}"),
        ("fabric", "nft flush chain inet {table} isolate"),
        ("host", "nft delete element inet {table} peers {{ 192.0.2.3 }}"),
        ("host", "nft delete table inet {table}"),
        ("host", "ip link del {uplink}"),
        ("host", "ip route flush proto 111"),
    ],
)
def test_what_a_foreign_hand_changes_is_repaired(cluster, where: str, command: str) -> None:
    from orchestra.fabric.render import place

    host = cluster.host(1)
    before = host.do("dump")
    names = place(host.name)
    space = host.fabric if where == "fabric" else host.space
    device = endpoint("c12", "10.18.1.2").device
    text = command.format(table=names.table, uplink=names.uplink, device=f'"{device}"')
    program, *words = text.split()
    space.run(program, *([" ".join(words)] if program == "nft" else words))
    assert host.do("dump") != before or "sysctl" in command
    assert host.apply(cluster.state(1)) == []
    assert host.do("dump") == before
    assert cluster.spaces["c12"].ask("10.18.2.2", 80) == "c22 10.18.1.2"


def test_a_port_that_another_program_has_is_refused_by_its_name(cluster) -> None:
    with cluster.host(3).space.socket() as nginx:
        nginx.bind(("0.0.0.0", 8090))
        nginx.listen()
        taken = FabricPort("tcp", 8090, 80, targets=WEB, label="shop.web")
        wanted = evolve(cluster.state(3), ports=(*PORTS, taken))
        (problem,) = cluster.host(3).apply(wanted)
        assert problem.startswith("cannot publish 8090 for shop.web: in use by python")
        assert f"(pid {os.getpid()})" in problem
    assert cluster.host(3).apply(wanted) == []
    assert cluster.client.ask("192.0.2.3", 8090).endswith(CLIENT)
    cluster.apply()


def rule_set_generation(host: Host) -> list[int]:
    from orchestra.linux.nft import Nft

    found = []
    for space in (host.space, host.fabric):
        with netns.entered(space.descriptor), Nft() as nft:
            found.append(nft.generation())
    return found


def checksum(header: bytes) -> int:
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def dns_query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes((len(p),)) + p.encode() for p in name.rstrip(".").split("."))
    return b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack(">HH", kind, 1)


def addresses_in(reply: bytes) -> set[str]:
    count = struct.unpack_from(">H", reply, 6)[0]
    if not count:
        return set()
    records = reply[-16 * count :]
    return {socket.inet_ntoa(records[i * 16 + 12 : i * 16 + 16]) for i in range(count)}


def lookup(space: Space, name: str) -> set[str]:
    with space.socket(socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.11", 53))
        client.send(dns_query(name))
        return addresses_in(client.recv(2000))
