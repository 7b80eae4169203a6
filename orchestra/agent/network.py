"""What this node's fabric shall be: assignment + the node's own network + its containers.

Pure. The controller says which endpoints serve; the node knows better about its own, so a task of
this node that does not run, or is unhealthy, is left out of services at once, before the
controller has heard of it. Containers that were started on the node itself get names, addresses
and published ports beside the assigned ones.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence

from attrs import field, frozen

from orchestra.fabric.render import host_address, node_index
from orchestra.model.assignment import (
    AssignedNetwork,
    Assignment,
    ClusterNet,
    EndpointState,
    NetworkService,
)
from orchestra.model.container import Container, ContainerStatus, Endpoint, HealthStatus
from orchestra.model.fabric import (
    FabricEndpoint,
    FabricNetwork,
    FabricPort,
    FabricService,
    FabricState,
    NameTable,
)
from orchestra.model.local_network import LocalNetwork

RANGES = ("10.16.0.0/12", "10.176.0.0/12", "172.24.0.0/14")
BRIDGE = "bridge"
LOCAL_NETWORKS = range(240)  # /24s between the bridge's /20 and the end of the second /16
OWN_ADDRESSES = range(192, 255)  # of a node's block: for containers started on the node itself


@functools.lru_cache(maxsize=1 << 16)
def task_container_id(task: str) -> str:
    """Return the id of the container that runs an assigned task, the same whoever computes it."""
    return hashlib.sha256(f"task/{task}".encode()).hexdigest()


def local_id(name: str) -> str:
    """Return the id of a network that every node has: bridge, host, none."""
    return hashlib.sha256(f"network/{name}".encode()).hexdigest()


@frozen
class Wired:
    """A container whose wires are in place, running or about to."""

    container: Container
    endpoints: tuple[Endpoint, ...] = field(factory=tuple)


def pick_range(routes: Iterable[str]) -> str:
    """Return the first candidate range that overlaps no route of the host (the last if none)."""
    taken = [ipaddress.ip_network(r, strict=False) for r in routes]
    used = [n for n in taken if isinstance(n, ipaddress.IPv4Network) and n.prefixlen > 0]
    for text in RANGES:
        if not any(ipaddress.IPv4Network(text).overlaps(n) for n in used):
            return text
    return RANGES[-1]


def node_address(cluster: ClusterNet) -> str:
    """Return H_n, the address under which containers reach their host."""
    return host_address(cluster, node_index(cluster))


def bridge_network(cluster: ClusterNet) -> FabricNetwork:
    """Return the node's own network, the same range on each node: first /20 of the second /16."""
    base = ipaddress.IPv4Network(cluster.range).network_address + (1 << 16)
    subnet = f"{base}/20"
    return FabricNetwork(local_id(BRIDGE), BRIDGE, subnet, str(base + 1), local=True, block=subnet)


def fabric_network(network: AssignedNetwork, self_index: int) -> FabricNetwork:
    """Return a cluster network as this node's fabric needs it."""
    outside = {
        e.address: e.node
        for s in network.services
        for e in s.endpoints
        if e.node != self_index and not within(e.address, network.blocks.get(e.node, ""))
    }
    return FabricNetwork(
        id=network.id,
        name=network.name,
        subnet=network.subnet,
        gateway=network.gateway,
        internal=network.internal,
        block=network.blocks.get(self_index, ""),
        remote_blocks={n: b for n, b in network.blocks.items() if n != self_index},
        remote_addresses=outside,
    )


def local_fabric_network(cluster: ClusterNet, made: LocalNetwork) -> FabricNetwork:
    """Return a network that was made by hand here: a /24 of the second /16, behind the bridge's."""
    base = ipaddress.IPv4Network(cluster.range).network_address + (1 << 16) + (1 << 12)
    first = base + (made.index << 8)
    return FabricNetwork(
        made.id,
        made.name,
        f"{first}/24",
        str(first + 1),
        internal=made.internal,
        local=True,
        block=f"{first}/24",
    )


def base_state(assignment: Assignment, local: Iterable[LocalNetwork] = ()) -> FabricState:
    """Return the part that does not depend on containers: all that a wire needs to be made.

    Its networks: the bridge, those made by hand, the cluster's.
    """
    index = assignment.cluster.self_index
    made = (local_fabric_network(assignment.cluster, network) for network in local)
    networks = (fabric_network(n, index) for n in assignment.networks)
    return FabricState(
        assignment.generation,
        assignment.cluster,
        (bridge_network(assignment.cluster), *made, *networks),
    )


def fabric_endpoints(wired: Wired) -> tuple[FabricEndpoint, ...]:
    """Return a container's wires; the first is eth0 and carries its default route."""
    return tuple(
        FabricEndpoint(
            wired.container.id, e.network, e.address, f"eth{i}", e.mac or mac_of(e.address)
        )
        for i, e in enumerate(wired.endpoints)
    )


@functools.lru_cache(maxsize=1 << 16)
def mac_of(address: str) -> str:
    """Return a locally administered MAC that is as unique as the address."""
    return ":".join(f"{b:02x}" for b in (0x02, 0x42, *ipaddress.IPv4Address(address).packed))


def free_address(network: FabricNetwork, used: Collection[str], after: str = "") -> str | None:
    """Return an address of this node for one of its own containers, None where all are used.

    The search goes round, starting behind `after`, so that a released address rests as long as
    possible: elsewhere connections to the one before may linger.
    """
    block = ipaddress.IPv4Network(network.block)
    first, last = 2, block.num_addresses - 2
    if not network.local:
        first, last = OWN_ADDRESSES.start, min(last, OWN_ADDRESSES.stop - 1)
    size = last - first + 1
    if size <= 0:
        return None
    begin = int(ipaddress.IPv4Address(after)) - int(block.network_address) + 1 if after else first
    for step in range(size):
        number = first + (begin - first + step) % size
        address = str(block.network_address + number)
        if address not in used and address != network.gateway:
            return address
    return None


def fabric_state(
    base: FabricState,
    assignment: Assignment,
    wired: Sequence[Wired],
    nameservers: Sequence[str] = (),
) -> FabricState:
    """Return everything the fabric shall be; `base` is `base_state(assignment)`, computed once.

    `nameservers` are the host's own DNS servers.
    """
    index = assignment.cluster.self_index
    serving = serving_tasks(wired)
    services: list[FabricService] = []
    dead: set[str] = set()
    for network in assignment.networks:
        for service in network.services:
            live = _live(service, index, serving)
            dead |= {e.address for e in service.endpoints if e.address not in live}
            if service.vip:
                label = f"{service.stack}_{service.service}"
                services.append(FabricService(label, service.vip, tuple(live)))
    return FabricState(
        generation=base.generation,
        cluster=base.cluster,
        networks=base.networks,
        endpoints=tuple(e for w in wired for e in fabric_endpoints(w)),
        services=tuple(services),
        ports=(
            *_assigned_ports(assignment, index, dead),
            *_own_ports(wired, {n.id for n in base.networks if n.internal}),
        ),
        names=name_table(base, assignment, wired, nameservers),
    )


def name_table(
    base: FabricState,
    assignment: Assignment,
    wired: Sequence[Wired],
    nameservers: Sequence[str] = (),
) -> NameTable:
    """Return what the resolver answers, and to whom: the names of services and of containers."""
    index, serving = assignment.cluster.self_index, serving_tasks(wired)
    names: dict[str, dict[str, list[str]]] = {n.id: {} for n in base.networks}
    for network in assignment.networks:
        for service in network.services:
            _name_service(names[network.id], service, _live(service, index, serving))
    for w in wired:
        for endpoint in w.endpoints:
            _name_container(names.setdefault(endpoint.network, {}), w.container, endpoint)
    return NameTable(
        clients={
            e.address: tuple(x.network for x in w.endpoints) for w in wired for e in w.endpoints
        },
        names={n: {k: tuple(v) for k, v in t.items()} for n, t in names.items()},
        upstream={
            "": tuple(nameservers),
            **{
                e.address: w.container.spec.dns
                for w in wired
                if w.container.spec.dns
                for e in w.endpoints
            },
        },
    )


def serving_tasks(wired: Iterable[Wired]) -> set[str]:
    """Return the tasks of this node that run and are not unhealthy."""
    return {w.container.task for w in wired if w.container.task and _serves(w.container)}


def _live(service: NetworkService, self_index: int, serving: Collection[str]) -> list[str]:
    return [e.address for e in service.endpoints if _in_service(e, self_index, serving)]


def _serves(container: Container) -> bool:
    if container.status not in (ContainerStatus.RUNNING, ContainerStatus.PAUSED):
        return False
    return container.health is None or container.health.status is not HealthStatus.UNHEALTHY


def _in_service(endpoint: EndpointState, self_index: int, serving: Collection[str]) -> bool:
    return endpoint.serving and (endpoint.node != self_index or endpoint.task in serving)


def _name_service(table: dict[str, list[str]], service: NetworkService, live: list[str]) -> None:
    for name in dict.fromkeys((service.service, *service.aliases)):
        answer = [service.vip] if service.vip else live
        _add(table, name, answer)
        _add(table, f"tasks.{name}", live)
        if service.stack:
            _add(table, f"{name}.{service.stack}", answer)
    for endpoint in service.endpoints:
        own = (
            endpoint.container_name,
            endpoint.slot,
            task_container_id(endpoint.task)[:12],
            *endpoint.aliases,
        )
        for name in dict.fromkeys(own):
            _add(table, name, [endpoint.address])


def _name_container(table: dict[str, list[str]], container: Container, endpoint: Endpoint) -> None:
    if container.task:
        return  # its names came with the assignment
    spec = container.spec
    own = (container.name, container.id[:12], spec.hostname, *endpoint.aliases)
    for name in dict.fromkeys(own):
        _add(table, name, [endpoint.address])


def _add(table: dict[str, list[str]], name: str, addresses: list[str]) -> None:
    if not name:
        return
    held = table.setdefault(name.lower(), [])
    held += [a for a in addresses if a not in held]


def _assigned_ports(
    assignment: Assignment, self_index: int, dead: Collection[str]
) -> tuple[FabricPort, ...]:
    return tuple(
        FabricPort(
            p.protocol,
            p.port,
            p.target,
            p.host_ip,
            tuple(t for t in p.targets if t not in dead),
            f"service {p.service}",
        )
        for p in assignment.published
        if p.node in (0, self_index)
    )


def _own_ports(wired: Iterable[Wired], internal: Collection[str]) -> tuple[FabricPort, ...]:
    """Ports of this node's own containers; they answer on the first wire that leads outside."""
    return tuple(
        FabricPort(
            p.protocol,
            p.published,
            p.target,
            p.host_ip,
            (_outward(w, internal).address,),
            f"container {w.container.name}",
        )
        for w in wired
        if w.endpoints and not w.container.task
        for p in w.container.spec.ports
        if p.published
    )


def _outward(wired: Wired, internal: Collection[str]) -> Endpoint:
    return next((e for e in wired.endpoints if e.network not in internal), wired.endpoints[0])


def within(address: str, subnet: str) -> bool:
    """Whether an address lies in a subnet ("" holds none)."""
    return bool(subnet) and ipaddress.IPv4Address(address) in ipaddress.IPv4Network(subnet)
