"""The node's fabric kept in step with assignment and containers, and the wires of each container.

A container's start takes the quick way: its wires are made at once (`wire`), while everything that
others need to know of it (names, services, ports) follows in one coalesced `Fabric.apply` right
after. The whole state is applied again every 30 s, which repairs what somebody else changed.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import trio
from attrs import evolve

from orchestra.agent import network
from orchestra.agent.containers import Containers, Live
from orchestra.agent.etc import ResolvConf, parse_resolv_conf
from orchestra.agent.state import State
from orchestra.api.engine import NetworkWish
from orchestra.fabric.fabric import Fabric
from orchestra.model.assignment import AssignedNetwork, Assignment
from orchestra.model.container import Container, ContainerSpec, ContainerStatus, Endpoint
from orchestra.model.errors import Conflict, Failed, Forbidden, Invalid, NotFound
from orchestra.model.fabric import FabricNetwork, FabricState, NameTable
from orchestra.model.local_network import LocalNetwork
from orchestra.model.service import Port

log = logging.getLogger(__name__)

COALESCE = 0.03  # seconds that a change waits for others, unless somebody waits for it
REPAIR = 30.0
EPHEMERAL = range(49153, 65535)


class Plumbing:
    """`problems` are the last application's; `applied` the generation that is in the kernel."""

    def __init__(
        self,
        fabric: Fabric,
        containers: Containers,
        state: State,
        assignment: Assignment,
        reported: Callable[[], None],
    ) -> None:
        self._fabric = fabric
        self._containers = containers
        self._reported = reported
        self._state = state
        self._local = {made.id: made for made in state.networks()}
        self._wanted = 0  # counts changes
        self._done = 0  # ... and those that are in the kernel
        self._wake = trio.Event()
        self._hurry = trio.Event()
        self._round = trio.Event()  # set at the end of each application
        self._ending = False
        self._last: FabricState | None = None  # what the kernel has
        self._last_address: dict[str, str] = {}
        self.problems: tuple[str, ...] = ()
        self.applied = 0
        self.assignment = assignment
        self.assign(assignment)

    # --- the whole -------------------------------------------------------------------------

    def assign(self, assignment: Assignment) -> None:
        """Take a new assignment; it is applied soon."""
        self.assignment = assignment
        self._base = network.base_state(assignment, self._local.values())
        self.changed()
        self._hurry.set()

    def changed(self) -> None:
        """Tell that containers changed: their names, services and ports follow soon."""
        self._wanted += 1
        self._wake.set()

    async def settle(self) -> None:
        """Wait until everything that is known now has been applied once."""
        self.changed()
        wanted = self._wanted
        self._hurry.set()
        while self._done < wanted:
            if self._ending:
                raise Failed("the agent is ending: try again with the next one")
            await self._round.wait()

    async def run(self) -> None:
        """Apply on change and every 30 s, for ever."""
        try:
            while True:
                with trio.move_on_after(REPAIR) as repair:
                    await self._wake.wait()
                with trio.move_on_after(COALESCE):
                    await self._hurry.wait()
                self._wake, self._hurry = trio.Event(), trio.Event()
                await self._apply(repair=repair.cancelled_caught)
        finally:
            # Starts that wait here are shielded: they must hear of the end.
            self._ending = True
            self._round.set()

    async def _apply(self, *, repair: bool) -> None:
        wanted = self._wanted
        state = network.fabric_state(
            self._base, self.assignment, self._wired(), host_resolvers().nameservers
        )
        before = (self.applied, self.problems)
        try:
            if repair or self.problems or _all_but_wires(state) != _all_but_wires(self._last):
                self._last = None
                self.problems = tuple(await self._fabric.apply(state))
            else:
                # Containers came and went: `attach` and `detach` did all that is theirs alone.
                await self._fabric.tell(state)
            self._last = state
            self.applied = state.generation
        except Exception as error:
            # Whatever the kernel refused: the containers go on, the next round tries again.
            log.exception("cannot apply the network of generation %d", state.generation)
            self.problems = (f"network: {error}",)
        self._done = wanted
        self._round.set()
        self._round = trio.Event()
        if before != (self.applied, self.problems):
            self._reported()

    def _wired(self) -> list[network.Wired]:
        return [
            network.Wired(live.container, live.wires)
            for live in self._containers
            if live.wires is not None
        ]

    # --- networks --------------------------------------------------------------------------

    def networks(self) -> Sequence[AssignedNetwork]:
        """Return the node's own networks, `bridge` first, then the cluster's."""
        own = (
            AssignedNetwork(n.id, n.name, n.subnet, n.gateway, n.internal)
            for n in self._base.networks
            if n.local
        )
        return (*own, *self.assignment.networks)

    def local_networks(self) -> Sequence[LocalNetwork]:
        return tuple(self._local.values())

    def make_network(self, name: str, wish: NetworkWish) -> LocalNetwork:
        """Make a network of this node. Conflict for a name that is taken."""
        if name in ("host", "none", *(n.name for n in self._base.networks)):
            raise Conflict(f"network with name {name} already exists")
        used = {made.index for made in self._local.values()}
        index = next((i for i in network.LOCAL_NETWORKS if i not in used), None)
        if index is None:
            raise Failed(
                f"cannot create network {name}: this node has {len(used)} networks already; "
                "remove some (docker network prune)"
            )
        made = LocalNetwork(
            secrets.token_hex(32),
            name,
            index,
            time.time(),
            wish.internal,
            wish.labels,
            wish.options,
        )
        self._keep({**self._local, made.id: made})
        return made

    def remove_network(self, network_id: str) -> None:
        """Remove a network of this node. Forbidden where containers are on it, or it is not one
        that was made by hand."""
        net = self.find(network_id)
        if network_id not in self._local:
            whose = "pre-defined" if net.local else "a stack's: `orchestra down` removes it"
            raise Forbidden(f"{net.name} is a {whose} network and cannot be removed")
        if users := [
            live.container.name
            for live in self._containers
            if any(e.network == network_id for e in live.wires or ())
        ]:
            raise Forbidden(
                f"error while removing network: network {net.name} id {net.id} has active "
                f"endpoints ({', '.join(users)})"
            )
        self._keep({i: made for i, made in self._local.items() if i != network_id})

    def _keep(self, local: Mapping[str, LocalNetwork]) -> None:
        self._state.save_networks(local.values())
        self._local = dict(local)
        self.assign(self.assignment)

    def find(self, ref: str) -> FabricNetwork:
        """Resolve a network by id or name; NotFound."""
        ref = network.BRIDGE if ref == "default" else ref
        for candidate in self._base.networks:
            if ref in (candidate.id, candidate.name):
                return candidate
        raise NotFound(f"network {ref} not found")

    @property
    def node_address(self) -> str:
        return network.node_address(self.assignment.cluster)

    # --- one container ---------------------------------------------------------------------

    def place(self, container: Container) -> ContainerSpec:
        """Choose what is left to the node: addresses, and ports that were asked for without one.

        Raises Conflict for an address or port that somebody else has, Invalid for one that is
        not in its network.
        """
        spec = container.spec
        if container.task:
            for endpoint in spec.endpoints:
                self.find(endpoint.network)
            return spec
        used = self._used_addresses(container.id)
        endpoints = tuple(self._address(container, e, used) for e in spec.endpoints)
        return evolve(spec, endpoints=endpoints, ports=self._ports(container))

    async def namespace(self, live: Live, spec: ContainerSpec) -> int | None:
        """Return a container's network namespace, still without wires; the caller closes it.

        None: the host's own network.
        """
        if spec.network_mode == "host":
            return None
        if spec.network_mode.startswith("container:"):
            return self._share(spec.network_mode.removeprefix("container:"))
        live.wires = spec.endpoints  # from now on nobody else gets its addresses
        return await self._fabric.namespace()

    async def wire(self, live: Live, spec: ContainerSpec, namespace: int | None) -> None:
        """Put a container's wires into its namespace, where they are its own.

        The resolver knows it and published ports answer when this returns; Failed names the one
        that is in use.
        """
        if namespace is None or spec.network_mode.startswith("container:"):
            return
        if not spec.endpoints:
            return
        wires = network.fabric_endpoints(network.Wired(live.container, spec.endpoints))
        # Its first question to the resolver may come before the next application.
        names = network.name_table(
            self._base, self.assignment, self._wired(), host_resolvers().nameservers
        )
        state = evolve(self._base, names=names)
        await self._fabric.attach_to(live.id, namespace, wires, state)
        if spec.ports and not live.container.task:
            await self.settle()
            self._check_published(live.container, spec.ports)
        else:
            self.changed()

    async def unwire(self, live: Live) -> None:
        """Take a container's wires away; its addresses may be used again."""
        if live.wires is None:
            return
        wires, live.wires = live.wires, None
        if wires:
            await self._fabric.detach(live.id)
        self.changed()

    def restore(self, live: Live) -> None:
        """Take over the wires of a container that ran while the agent was away."""
        spec = live.container.spec
        if spec.network_mode != "host" and not spec.network_mode.startswith("container:"):
            live.wires = spec.endpoints

    def _share(self, ref: str) -> int:
        other = self._containers.find(ref).container
        if other.status is not ContainerStatus.RUNNING:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        return os.open(f"/proc/{other.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _used_addresses(self, but: str) -> set[str]:
        """Return the addresses of containers that run, or come back by themselves."""
        held = (
            live.wires
            if live.wires is not None
            else live.container.spec.endpoints
            if live.container.status is ContainerStatus.RESTARTING
            else ()
            for live in self._containers
            if live.id != but
        )
        return {e.address for endpoints in held for e in endpoints if e.address}

    def _address(self, container: Container, endpoint: Endpoint, used: set[str]) -> Endpoint:
        net = self.find(endpoint.network)
        wished = _wished_address(container, endpoint.network_name)
        if wished:
            if not network.within(wished, net.subnet):
                raise Invalid(
                    f"invalid address {wished}: it does not belong to the subnet {net.subnet} of "
                    f"network {net.name}"
                )
            if wished in used:
                raise Conflict(f"Address already in use: {wished} in network {net.name}")
            return evolve(endpoint, address=wished)
        held = endpoint.address
        if held and held not in used and network.within(held, net.block):
            return endpoint
        address = network.free_address(net, used, self._last_address.get(net.id, ""))
        if address is None:
            raise Failed(
                f"no free address for {container.name} in network {net.name} on this node "
                f"(block {net.block or 'none'}): remove containers, or use another network"
            )
        self._last_address[net.id] = address
        return evolve(endpoint, address=address)

    def _ports(self, container: Container) -> tuple[Port, ...]:
        taken = {
            (p.protocol, p.published): live.container.name
            for live in self._containers
            if live.wires and live.id != container.id and not live.container.task
            for p in live.container.spec.ports
        } | {(p.protocol, p.port): p.service for p in self.assignment.published}
        ports = []
        for port in container.spec.ports:
            if not port.published:
                port = evolve(port, published=_free_port(port.protocol, taken))
            elif holder := taken.get((port.protocol, port.published)):
                raise Conflict(
                    f"Bind for {port.host_ip or '0.0.0.0'}:{port.published} failed: port is "
                    f"already allocated (by {holder})"
                )
            ports.append(port)
        return tuple(ports)

    def choose(
        self, ports: Sequence[Port], ranges: Mapping[int, tuple[int, int]]
    ) -> tuple[Port, ...]:
        """Give each port of `ranges` (by place) a number of its span; Conflict if none is free."""
        taken = {(p.protocol, p.port) for p in self.assignment.published}
        for live in self._containers:
            taken |= {(p.protocol, p.published or 0) for p in live.container.spec.ports}
        chosen = list(ports)
        for place, (first, last) in ranges.items():
            port = ports[place]
            for number in range(first, last + 1):
                if (port.protocol, number) not in taken and _is_free(port, number):
                    break
            else:
                raise Conflict(
                    f"no port of {first}-{last} is free on this node for {port.target}/"
                    f"{port.protocol}: choose another range, or leave it out to get any port"
                )
            taken.add((port.protocol, number))
            chosen[place] = evolve(port, published=number)
        return tuple(chosen)

    def _check_published(self, container: Container, ports: Sequence[Port]) -> None:
        label = f"container {container.name}"
        if found := [p for p in self.problems if label in p]:
            raise Conflict("; ".join(found))


def _all_but_wires(state: FabricState | None) -> FabricState | None:
    return state and evolve(state, endpoints=(), names=NameTable())


def host_resolvers() -> ResolvConf:
    """Return the host's resolv.conf; an unreadable one counts as empty."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return parse_resolv_conf(file.read())
    except OSError:
        return ResolvConf()


def _free_port(protocol: str, taken: dict[tuple[str, int | None], str]) -> int:
    free = [p for p in EPHEMERAL if (protocol, p) not in taken]
    port = random.choice(free)
    taken[protocol, port] = "this container"
    return port


def _is_free(port: Port, number: int) -> bool:
    """Whether no program of the host has the port (bind(2))."""
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((port.host_ip or "0.0.0.0", number))
        except OSError:
            return False
    return True


def _wished_address(container: Container, network_name: str) -> str:
    networking = container.request.get("NetworkingConfig") or {}
    config = (networking.get("EndpointsConfig") or {}).get(network_name) or {}
    return str((config.get("IPAMConfig") or {}).get("IPv4Address") or "")
