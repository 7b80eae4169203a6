"""A node's desired network as kernel objects: pure, from `FabricState` and facts of the host.

The design in five sentences. All wires of containers, the tunnel `vx0` and the uplink `up0` live
in one namespace, the fabric; the host has the uplink's other end, `orc0`. Everything is routed:
a container's address is a /32 on its wire, another node's block is one route through the tunnel,
and what nobody has is `unreachable`, so that a connection to it fails at once. Node n has a host
address H_n and a fabric address F_n from the first /16 of the cluster's range. A reply to a client
outside goes back through the node it came by, found again by a mark (table 1000 + m). Filtering
and translation are text of `ruleset`; nothing here or there knows the kernel's present state.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence

from attrs import evolve, frozen

from orchestra.linux.netobjects import Address, Forward, Neighbour, NetObject, Route, Rule
from orchestra.model.assignment import ClusterNet
from orchestra.model.fabric import FabricEndpoint, FabricState

GATEWAY = "169.254.1.1"
"""Every container's next hop, and where the resolver listens (as on 127.0.0.11)."""
RESOLVER = "127.0.0.11"
WIRE_MAC = "02:6f:ff:00:00:01"
"""Hardware address of the fabric's end of every wire."""
UPLINK_HOST_MAC, UPLINK_FABRIC_MAC = "02:6f:fe:00:00:01", "02:6f:fe:00:00:02"
FABRIC_NEXT_HOP = "169.254.1.2"
"""The fabric as the host's routes call it; no device has it, the neighbour entry is permanent."""
TUNNEL, UPLINK = "vx0", "up0"
TUNNEL_OVERHEAD = 50
"""Bytes that VXLAN over IPv4 adds to a packet."""
RETURN_TABLES = 1000
"""Table 1000 + m sends replies back to node m."""
STANDALONE = 4095
"""The node number of an engine that is in no cluster (index 0)."""


@frozen
class Underlay:
    """What the node knows of its host: the address other nodes send to ("": none), and the MTU."""

    address: str
    mtu: int


@frozen
class Place:
    """How one fabric is called on its host, so that several can share a machine (see `place`)."""

    namespace: str
    table: str  # of nftables, in both namespaces
    uplink: str  # the host's device


@frozen
class Sysctl:
    key: str  # below /proc/sys, with slashes
    value: str

    def __str__(self) -> str:
        return f"sysctl {self.key.replace('/', '.')}"


@frozen
class Objects:
    """What one namespace holds beside its devices."""

    objects: frozenset[NetObject]
    sysctls: tuple[Sysctl, ...]


@frozen
class Tunnel:
    mac: str
    mtu: int
    vni: int
    local: str
    port: int


@frozen
class Rendered:
    tunnel: Tunnel | None
    mtu: int
    fabric: Objects
    host: Objects


def place(name: str) -> Place:
    """Names of a fabric; that of "orchestra" has the plain ones."""
    if name == "orchestra":
        return Place(name, name, "orc0")
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return Place(name, f"orchestra_{mark}", f"orc{mark}")


def node_index(cluster: ClusterNet) -> int:
    return cluster.self_index or STANDALONE


def host_address(cluster: ClusterNet, index: int) -> str:
    """H_n: how containers and other nodes call the host of node n."""
    return str(_base(cluster) + index)


def fabric_address(cluster: ClusterNet, index: int) -> str:
    """F_n: the fabric's own address, source of its ICMP errors and target of probes."""
    return str(_base(cluster) + 0x8000 + index)


def node_range(cluster: ClusterNet) -> str:
    """The first /16 of the cluster's range: the addresses of nodes."""
    return f"{_base(cluster)}/16"


def tunnel_mac(index: int) -> str:
    return f"02:6f:00:00:{index >> 8:02x}:{index & 0xFF:02x}"


def spans(state: FabricState) -> tuple[str, ...]:
    """The cluster's range, and the networks that users placed outside of it."""
    whole = ipaddress.IPv4Network(state.cluster.range)
    outside = {
        n.subnet for n in state.networks if not _network(n.subnet).subnet_of(whole)
    }  # fmt: skip
    return (str(whole), *sorted(outside))


def joined_devices(state: FabricState, devices: Iterable[str]) -> FabricState:
    """The state without the endpoints that have no wire yet: nothing in the kernel can name it."""
    there = set(devices)
    return evolve(state, endpoints=tuple(e for e in state.endpoints if e.device in there))


def render(state: FabricState, underlay: Underlay, place: Place) -> Rendered:
    """Everything but nftables' tables and the wires themselves, which `Fabric.attach` makes."""
    cluster = state.cluster
    tunnel = _tunnel(cluster, underlay)
    return Rendered(
        tunnel=tunnel,
        mtu=underlay.mtu - TUNNEL_OVERHEAD,
        fabric=Objects(frozenset(_fabric_objects(state, tunnel)), _FABRIC_SYSCTLS),
        host=Objects(frozenset(_host_objects(state, place)), _host_sysctls(place)),
    )


def endpoint_objects(endpoint: FabricEndpoint) -> tuple[NetObject, ...]:
    """The fabric's side of a wire."""
    return (
        Route(f"{endpoint.address}/32", device=endpoint.device, scope="link"),
        Neighbour(endpoint.device, endpoint.address, endpoint.mac),
    )


def container_objects(
    endpoint: FabricEndpoint, subnet: str, *, is_default: bool
) -> tuple[NetObject, ...]:
    """The container's side of a wire; the first one carries everything that has no other route.

    127.0.0.11 is a host route in the local table, which is more specific than the kernel's
    127.0.0.0/8: queries leave by the wire and the fabric's resolver answers from that very
    address. No container needs NAT, conntrack or a rule of its own for DNS.
    """
    device = endpoint.interface
    to = "0.0.0.0/0" if is_default else subnet
    objects: tuple[NetObject, ...] = (
        Address(device, f"{endpoint.address}/32"),
        Neighbour(device, GATEWAY, WIRE_MAC),
        Route(to, device=device, via=GATEWAY, onlink=True, source=endpoint.address),
    )
    if not is_default:
        return objects
    resolver = Route(
        f"{RESOLVER}/32",
        device=device,
        via=GATEWAY,
        source=endpoint.address,
        table=255,
        onlink=True,
    )
    return (*objects, resolver)


_FABRIC_SYSCTLS = (
    Sysctl("net/ipv4/ip_forward", "1"),
    Sysctl("net/ipv4/conf/all/rp_filter", "0"),
    Sysctl("net/ipv4/conf/default/rp_filter", "0"),
    Sysctl("net/ipv4/conf/all/send_redirects", "0"),
    Sysctl("net/ipv4/conf/default/send_redirects", "0"),
    # 127.0.0.11 is reached from wires; what else is sent to 127/8 ends in the chain local_in
    Sysctl("net/ipv4/conf/all/route_localnet", "1"),
    # refusals must come at once, however many a client provokes
    Sysctl("net/ipv4/icmp_ratelimit", "0"),
    Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    Sysctl("net/ipv6/conf/all/disable_ipv6", "1"),
    Sysctl("net/ipv6/conf/default/disable_ipv6", "1"),
)

CONTAINER_SYSCTLS = (
    Sysctl("net/ipv4/conf/all/route_localnet", "1"),
    Sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
    Sysctl("net/ipv4/ping_group_range", "0 2147483647"),
    Sysctl("net/ipv6/conf/default/disable_ipv6", "1"),
)


def _host_sysctls(place: Place) -> tuple[Sysctl, ...]:
    device = f"net/ipv4/conf/{place.uplink}"
    return (
        Sysctl("net/ipv4/ip_forward", "1"),
        Sysctl(f"{device}/rp_filter", "0"),
        Sysctl(f"{device}/send_redirects", "0"),
        Sysctl(f"{device}/route_localnet", "1"),
        Sysctl(f"net/ipv6/conf/{place.uplink}/disable_ipv6", "1"),
    )


def _tunnel(cluster: ClusterNet, underlay: Underlay) -> Tunnel | None:
    """No tunnel for a node that has nobody to talk to, or whose underlay address is not known."""
    if not underlay.address or len(cluster.peers) < 2:
        return None
    return Tunnel(
        mac=tunnel_mac(node_index(cluster)),
        mtu=underlay.mtu - TUNNEL_OVERHEAD,
        vni=cluster.vni,
        local=underlay.address,
        port=cluster.port,
    )


def _host_objects(state: FabricState, place: Place) -> Iterable[NetObject]:
    here = host_address(state.cluster, node_index(state.cluster))
    yield Address(place.uplink, f"{here}/32")
    yield Neighbour(place.uplink, FABRIC_NEXT_HOP, UPLINK_FABRIC_MAC)
    for span in spans(state):
        yield Route(span, device=place.uplink, via=FABRIC_NEXT_HOP, source=here, onlink=True)
    for network in state.networks:
        # the gateway that `inspect` shows is this host, as users of other engines expect
        yield Address(place.uplink, f"{network.gateway}/32")


def _fabric_objects(state: FabricState, tunnel: Tunnel | None) -> Iterable[NetObject]:
    here = host_address(state.cluster, node_index(state.cluster))
    yield Address("lo", f"{fabric_address(state.cluster, node_index(state.cluster))}/32")
    yield Address("lo", f"{GATEWAY}/32", scope="link")
    yield Neighbour(UPLINK, here, UPLINK_HOST_MAC)
    yield Route(f"{here}/32", device=UPLINK, scope="link")
    yield Route("0.0.0.0/0", device=UPLINK, via=here, onlink=True)
    for span in spans(state):
        yield Route(span, kind="unreachable")
    for network in state.networks:
        if network.block and network.block not in spans(state):
            yield Route(network.block, kind="unreachable")
        yield Route(f"{network.gateway}/32", device=UPLINK, via=here, onlink=True)
    for endpoint in state.endpoints:
        yield from endpoint_objects(endpoint)
    if tunnel:
        yield from _remote_objects(state)


def _remote_objects(state: FabricState) -> Iterable[NetObject]:
    """Per remote node a neighbour, a forwarding entry, routes to it and a way back through it."""
    cluster = state.cluster
    remote = {p.index: p for p in cluster.peers if p.index != cluster.self_index}
    for index, peer in remote.items():
        theirs, mac = host_address(cluster, index), tunnel_mac(index)
        table = RETURN_TABLES + index
        yield Neighbour(TUNNEL, theirs, mac)
        yield Forward(TUNNEL, mac, peer.underlay)
        yield Route(f"{theirs}/32", device=TUNNEL, scope="link")
        yield _through(f"{fabric_address(cluster, index)}/32", theirs)
        yield _through("0.0.0.0/0", theirs, table)
        yield Rule(index, table, table)
    wired = {e.address for e in state.endpoints}
    for network in state.networks:
        if network.local:
            continue
        for index, block in network.remote_blocks.items():
            if index in remote:
                yield _through(block, host_address(cluster, index))
        for address, index in network.remote_addresses.items():
            if index in remote and address not in wired:
                yield _through(f"{address}/32", host_address(cluster, index))


def _through(to: str, node: str, table: int = 254) -> Route:
    return Route(to, device=TUNNEL, via=node, table=table, onlink=True)


def _base(cluster: ClusterNet) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Network(cluster.range).network_address


def _network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


def wires(endpoints: Sequence[FabricEndpoint]) -> frozenset[tuple[str, str]]:
    """Which source address each wire may use."""
    return frozenset((e.device, e.address) for e in endpoints)
