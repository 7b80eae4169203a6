"""The fabric of one node: the agent's handle on it.

All kernel work happens in one worker thread, one call after the other, because the kernel does it
inside the system call. `apply` makes the node's network equal to a state; `attach` is the quick
way for one new container, which a later `apply` finds already done. Objects outlive this process:
the agent may restart at any time and then compares, it never rebuilds.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from attrs import evolve

from orchestra.fabric import apply as kernel
from orchestra.fabric import resolver_process, ruleset
from orchestra.fabric.apply import Changes, Namespace, Table
from orchestra.fabric.ports import Ports
from orchestra.fabric.render import (
    CONTAINER_SYSCTLS,
    TUNNEL_OVERHEAD,
    WIRE_MAC,
    Sysctl,
    Underlay,
    container_objects,
    endpoint_objects,
    host_address,
    joined_devices,
    node_index,
    place,
    render,
)
from orchestra.linux import netns
from orchestra.linux.netlink import (
    Netlink,
    NetlinkError,
    Request,
    delete_link,
    device_names,
    new_veth,
    put,
    remove,
    set_link,
)
from orchestra.linux.netobjects import Neighbour, Route, Veth
from orchestra.linux.nft import NftError
from orchestra.model.codec import to_json
from orchestra.model.errors import Failed, Unavailable
from orchestra.model.fabric import FabricEndpoint, FabricPort, FabricState, NameTable
from orchestra.model.paths import NodePaths

T = TypeVar("T")

_HOST_NAMES = ("host.docker.internal", "gateway.docker.internal", "host.orchestra.internal")
_DEFAULT_MTU = 1500
_LARGEST_MTU = 65000  # a loopback underlay says 65536, more than a tunnel can have


@asynccontextmanager
async def open_fabric(paths: NodePaths, *, name: str = "orchestra") -> AsyncIterator[Fabric]:
    """Yield the fabric called `name` (of its namespace); its kernel objects stay on leaving.

    Nothing is made before the first `apply` or `attach`. Raises Unavailable where the kernel or
    nftables lack what it needs.
    """
    fabric = Fabric(paths, name)
    try:
        await fabric._in_worker(fabric._open)
        yield fabric
    finally:
        with trio.CancelScope(shield=True):
            await fabric._in_worker(fabric._close)


class Fabric:
    """See `open_fabric`. Calls may overlap; they are served one after the other."""

    def __init__(self, paths: NodePaths, name: str) -> None:
        self._paths = paths
        self._place = place(name)
        self._worker = trio.CapacityLimiter(1)
        self._ports = Ports()
        self._attached: dict[str, FabricEndpoint] = {}  # by device; since this process began
        self._next_index = 0
        self._mtu = _DEFAULT_MTU - TUNNEL_OVERHEAD
        self._is_ready = False
        self._spare: int | None = None  # the next container's namespace

    async def apply(self, state: FabricState) -> Sequence[str]:
        """Make the node's network equal to `state`; return problems, each naming its object.

        What can be done is done whatever the problems. Wires are made by `attach` only; those of
        containers that neither `state` nor an `attach` of this process knows are removed.
        """
        return await self._in_worker(lambda: self._apply(state))

    async def tell(self, state: FabricState) -> None:
        """Give the resolver the names of `state`, where nothing else of it is new.

        It is also when the namespace of the next container is made, so that no start waits for it.
        """
        await self._in_worker(lambda: self._tell(state))

    async def changes(self, state: FabricState) -> Sequence[str]:
        """What `apply` would write ("+ ...") and delete ("- ..."); nothing is changed."""
        return await self._in_worker(lambda: self._changes(state))

    async def attach(
        self, container_id: str, endpoints: Sequence[FabricEndpoint], state: FabricState
    ) -> int:
        """Make a container's namespace with its wires; return its descriptor (the caller's).

        Without endpoints it has a loopback device only. The namespace lives as long as the
        descriptor or a process in it. Where `state` has names, the resolver has them too when
        this returns. Raises Failed; then nothing is left behind.
        """
        return await self._in_worker(lambda: self._attach(container_id, endpoints, state))

    async def namespace(self) -> int:
        """A new container's namespace with a loopback device only; its descriptor (the caller's).

        Raises Failed.
        """
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        try:
            return await self._in_worker(_container_namespace)
        except OSError as error:
            raise Failed(f"cannot make a network namespace: {error.strerror}") from error

    async def attach_to(
        self,
        container_id: str,
        namespace: int,
        endpoints: Sequence[FabricEndpoint],
        state: FabricState,
    ) -> None:
        """Add wires to a container's namespace (a descriptor), and names as `attach` does.

        Raises Failed; then none of the wires is left.
        """
        await self._in_worker(lambda: self._attach_to(container_id, namespace, endpoints, state))

    async def detach(self, container_id: str, devices: Sequence[str] = ()) -> None:
        """Forget a container's wires; with `devices`, only those, which are deleted at once.

        An ended container's wires go with its namespace; at the latest the next `apply` deletes
        what is left. Its address is unreachable when this returns. Raises Failed.
        """
        await self._in_worker(lambda: self._detach(container_id, devices))

    async def destroy(self) -> None:
        """Take everything of ours out of the kernel, the resolver too. Raises Failed."""
        await self._in_worker(self._destroy)

    async def ensure_resolver(self) -> None:
        """Start the resolver if none serves this fabric; it outlives this process."""
        await self._in_worker(self._ensure_resolver)

    # -- in the worker ---------------------------------------------------------------------

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._worker)

    def _open(self) -> None:
        try:
            self._host = Namespace(netns.current())
            self._fabric: Namespace | None = None
            self._host_table = Table(self._host.nft, self._place)
        except (OSError, NftError) as error:
            raise Unavailable(f"cannot open this node's network: {error}") from None

    def _close(self) -> None:
        self._ports.release()
        if self._spare is not None:
            os.close(self._spare)
        if self._fabric:
            self._fabric.close()
        self._host.close()

    def _ensure_namespace(self) -> Namespace:
        """The fabric's namespace as its name says it now: somebody may have deleted it."""
        found = netns.open_named(self._place.namespace)
        if found is not None and self._fabric and os.fstat(found).st_ino == self._fabric.identity:
            os.close(found)
            return self._fabric
        if self._fabric:
            self._fabric.close()
            self._fabric = None
        self._attached, self._is_ready = {}, False
        try:
            self._fabric = Namespace(
                netns.make_named(self._place.namespace) if found is None else found
            )
        except (OSError, NftError) as error:
            raise Unavailable(f"cannot make the fabric's namespace: {error}") from None
        self._fabric_table = Table(self._fabric.nft, self._place)
        self._next_index = 1 + max(link.index for link in self._fabric.netlink.links())
        return self._fabric

    def _apply(self, state: FabricState) -> list[str]:
        fabric, host = self._ensure_namespace(), self._host
        underlay, problems = _find_underlay(host.netlink, state)
        self._mtu = underlay.mtu - TUNNEL_OVERHEAD
        refused = self._ports.reserve(state.ports)
        problems += refused.values()
        ports = tuple(p for p in _distinct(state.ports) if p not in refused)
        state = evolve(state, endpoints=self._endpoints(state), ports=ports)

        desired = render(state, underlay, self._place)
        problems += kernel.put_sysctls(fabric, _early(desired.fabric.sysctls))
        problems += kernel.ensure_links(host, fabric, self._place, desired.tunnel, underlay.mtu)
        in_fabric, in_host = self._compare(fabric, state, underlay)
        problems += kernel.put_objects(fabric, in_fabric.put)
        problems += kernel.put_objects(host, in_host.put)
        problems += self._put_tables(fabric, state)
        # after nftables, which loads the modules some parameters belong to
        problems += kernel.put_sysctls(fabric, in_fabric.sysctls)
        problems += kernel.put_sysctls(host, in_host.sysctls)
        self._write_names(state)
        problems += kernel.remove_objects(fabric, in_fabric.remove)
        problems += kernel.remove_objects(host, in_host.remove)
        problems += kernel.delete_wires(fabric, self._strangers(fabric, state))
        self._is_ready = True
        return problems

    def _prepare(self, state: FabricState) -> None:
        """What wires need, for an attach before the first apply of this process.

        It only adds: the node may be full of containers that `state` does not name yet.
        """
        fabric = self._ensure_namespace()
        underlay, _ = _find_underlay(self._host.netlink, state)
        self._mtu = underlay.mtu - TUNNEL_OVERHEAD
        desired = render(state, underlay, self._place)
        problems = kernel.put_sysctls(fabric, _early(desired.fabric.sysctls))
        problems += kernel.ensure_links(
            self._host, fabric, self._place, desired.tunnel, underlay.mtu
        )
        inside, outside = self._compare(fabric, state, underlay)
        problems += kernel.put_objects(fabric, inside.put)
        problems += kernel.put_objects(self._host, outside.put)
        for table, text in self._tables(state):
            if not table.exists():
                table.ensure(text, {})
        problems += kernel.put_sysctls(fabric, inside.sysctls)
        problems += kernel.put_sysctls(self._host, outside.sysctls)
        if problems:
            raise OSError(0, "; ".join(problems))
        self._is_ready = True

    def _changes(self, state: FabricState) -> list[str]:
        fabric = self._ensure_namespace()
        underlay, _ = _find_underlay(self._host.netlink, state)
        state = evolve(state, endpoints=self._endpoints(state), ports=tuple(_distinct(state.ports)))
        found = [
            line for c in self._compare(fabric, state, underlay) for line in str(c).split("\n")
        ]
        found += [f"- wire {device}" for device in self._strangers(fabric, state)]
        for table, text in self._tables(state):
            if not table.is_intact(text):
                found.append(f"+ table {self._place.table}")
        return [line for line in found if line]

    def _endpoints(self, state: FabricState) -> tuple[FabricEndpoint, ...]:
        """Those of the state, and those attached since it was made."""
        return tuple({**self._attached, **{e.device: e for e in state.endpoints}}.values())

    def _compare(
        self, fabric: Namespace, state: FabricState, underlay: Underlay
    ) -> tuple[Changes, Changes]:
        """What is to be written and deleted in the fabric and in the host."""
        state = joined_devices(state, (link.name for link in fabric.netlink.links()))
        desired = render(state, underlay, self._place)
        inside, outside = desired.fabric, desired.host
        return (
            kernel.diff(inside, kernel.read_fabric(fabric, inside.sysctls)),
            kernel.diff(outside, kernel.read_host(self._host, outside.sysctls, self._place)),
        )

    def _strangers(self, fabric: Namespace, state: FabricState) -> set[str]:
        """Wires of containers that nobody knows any more."""
        there = {link.name for link in fabric.netlink.links() if link.name.startswith("t")}
        return there - {e.device for e in state.endpoints}

    def _tables(self, state: FabricState) -> tuple[tuple[Table, str], tuple[Table, str]]:
        return (
            (self._fabric_table, ruleset.fabric_table(state, self._place)),
            (self._host_table, ruleset.host_table(state, self._place)),
        )

    def _put_tables(self, fabric: Namespace, state: FabricState) -> list[str]:
        there = joined_devices(state, (link.name for link in fabric.netlink.links()))
        wires = {e.device: e.address for e in there.endpoints}
        problems = []
        for table, text in self._tables(state):
            try:
                table.ensure(text, wires if table is self._fabric_table else {})
            except NftError as error:
                problems.append(f"cannot load the table {self._place.table}: {error}")
        return problems

    def _tell(self, state: FabricState) -> None:
        self._write_names(state)
        if self._spare is None:
            try:
                self._spare = _container_namespace()
            except OSError:
                return  # the next container's start makes its own, and says why it cannot

    def _write_names(self, state: FabricState) -> None:
        here = host_address(state.cluster, node_index(state.cluster))
        hosts = {**dict.fromkeys(_HOST_NAMES, (here,)), **state.names.hosts}
        write_names(self._paths, evolve(state.names, hosts=hosts))

    def _attach(
        self, container_id: str, endpoints: Sequence[FabricEndpoint], state: FabricState
    ) -> int:
        try:
            made = _container_namespace()
            try:
                with netns.entered(made):
                    inside = Netlink()
                with inside:
                    self._wire(made, inside, endpoints, state, has_default=False)
                if state.names.clients:
                    self._write_names(state)
            except BaseException:
                os.close(made)
                raise
            return made
        except (OSError, NftError) as error:
            raise Failed(_cannot_attach(container_id, error)) from error

    def _attach_to(
        self,
        container_id: str,
        namespace: int,
        endpoints: Sequence[FabricEndpoint],
        state: FabricState,
    ) -> None:
        try:
            with netns.entered(namespace):
                inside = Netlink()
            with inside:
                names = device_names(inside.links())
                has_default = any(r.to == "0.0.0.0/0" for r in inside.routes(names))
                self._wire(namespace, inside, endpoints, state, has_default=has_default)
            if state.names.clients:
                self._write_names(state)
        except (OSError, NftError) as error:
            raise Failed(_cannot_attach(container_id, error)) from error

    def _wire(
        self,
        namespace: int,
        inside: Netlink,
        endpoints: Sequence[FabricEndpoint],
        state: FabricState,
        *,
        has_default: bool,
    ) -> None:
        """Make the wires of one container; on failure none of them is left."""
        if not endpoints:
            return
        if not self._is_ready:
            self._prepare(state)
        networks = {n.id: n for n in state.networks}
        outward = [e for e in endpoints if not networks[e.network].internal]
        default = None if has_default else (outward or endpoints)[0]
        fabric = self._ensure_namespace()
        made: list[str] = []
        try:
            for endpoint in endpoints:
                index = self._make_wire(fabric, endpoint, namespace)
                made.append(endpoint.device)
                self._attached[endpoint.device] = endpoint
                objects = container_objects(
                    endpoint, networks[endpoint.network].subnet, is_default=endpoint is default
                )
                inside.do(set_link(index, endpoint.interface), *(put(o, index) for o in objects))
            self._fabric_table.add_wires({e.device: e.address for e in endpoints})
        except BaseException:
            for device in made:
                self._attached.pop(device, None)
                fabric.netlink.execute([delete_link(device)])
            raise

    def _make_wire(self, fabric: Namespace, endpoint: FabricEndpoint, namespace: int) -> int:
        """Make a pair with its route and neighbour in one batch; return its number (both ends')."""
        veth = Veth(endpoint.device, WIRE_MAC, self._mtu, endpoint.interface, endpoint.mac)
        while True:
            index, self._next_index = self._next_index, self._next_index + 1
            requests: list[Request] = [
                new_veth(veth, namespace, index=index),
                *(put(o, index) for o in endpoint_objects(endpoint)),
            ]
            verdicts = fabric.netlink.execute(requests)
            if verdicts[0] and verdicts[0].errno == errno.EBUSY:
                continue  # the number is taken
            if verdicts[0] and verdicts[0].errno == errno.EEXIST:
                # the wire of this container's last run, whose namespace the kernel is still ending
                self._fabric_table.drop_wires([endpoint.device])
                fabric.netlink.execute([delete_link(endpoint.device)])
                continue
            for request, refusal in zip(requests, verdicts):
                if refusal:
                    raise NetlinkError(refusal.errno, f"cannot {request.what}: {refusal.reason}")
            return index

    def _detach(self, container_id: str, devices: Sequence[str]) -> None:
        if not self._fabric:
            return
        prefix = f"t{container_id[:10]}"
        known = {
            **{e.device: e.address for e in self._attached.values()},
            **self._fabric_table.wires,
        }
        gone = {
            d: a for d, a in known.items() if d in devices or (not devices and d[:11] == prefix)
        }
        try:
            self._fabric_table.drop_wires(gone)
            for device, address in gone.items():
                self._attached.pop(device, None)
                link = self._fabric.netlink.link(device)
                if link:
                    self._fabric.netlink.execute(
                        [
                            remove(Route(f"{address}/32", device=device, scope="link"), link.index),
                            remove(Neighbour(device, address, WIRE_MAC), link.index),
                        ]
                    )
            problems = kernel.delete_wires(self._fabric, gone) if devices else []
        except (OSError, NftError) as error:
            raise Failed(f"cannot detach container {container_id[:12]}: {error}") from error
        if problems:
            raise Failed(f"cannot detach container {container_id[:12]}: {'; '.join(problems)}")

    def _destroy(self) -> None:
        resolver_process.stop(self._paths.run)
        self._ports.release()
        try:
            self._host_table.delete()
            if self._host.netlink.link(self._place.uplink):
                self._host.netlink.do(delete_link(self._place.uplink))
            netns.delete_named(self._place.namespace)
        except (OSError, NftError) as error:
            raise Failed(f"cannot remove the fabric {self._place.namespace}: {error}") from error
        if self._fabric:
            self._fabric.close()
            self._fabric = None
        self._attached, self._is_ready = {}, False
        if os.path.exists(self._paths.names):
            os.unlink(self._paths.names)

    def _ensure_resolver(self) -> None:
        fabric = self._ensure_namespace()
        try:
            resolver_process.ensure(self._paths.run, self._place.namespace, fabric.identity)
        except OSError as error:
            raise Failed(f"cannot start the resolver: {error}") from error


def _container_namespace() -> int:
    """A namespace with a loopback device that is up."""
    with netns.fresh() as made:
        for sysctl in CONTAINER_SYSCTLS:
            kernel.write_sysctl(sysctl)
        with Netlink() as inside:
            inside.do(set_link(1, "lo"))
    return made


def write_names(paths: NodePaths, names: NameTable) -> None:
    """Give the resolver its table, by rename; an unchanged one is not touched."""
    text = json.dumps(to_json(names), separators=(",", ":"), sort_keys=True)
    try:
        with open(paths.names) as file:
            if file.read() == text:
                return
    except FileNotFoundError:
        os.makedirs(paths.run, 0o755, exist_ok=True)
    with open(f"{paths.names}.new", "w") as file:
        file.write(text)
    os.rename(f"{paths.names}.new", paths.names)


def _find_underlay(host: Netlink, state: FabricState) -> tuple[Underlay, list[str]]:
    """What other nodes send to, and the MTU there; for a node alone, that of its default route."""
    links = {link.name: link for link in host.links()}
    names = device_names(links.values())
    cluster = state.cluster
    wanted = next((p.underlay for p in cluster.peers if p.index == cluster.self_index), "")
    if wanted:
        for address in host.addresses(names):
            if address.address.partition("/")[0] == wanted:
                return Underlay(wanted, min(links[address.device].mtu, _LARGEST_MTU)), []
    outward = [r.device for r in host.routes(names) if r.to == "0.0.0.0/0" and r.device in links]
    mtu = min([links[d].mtu for d in outward] or [_DEFAULT_MTU])
    problems = []
    if wanted and len(cluster.peers) > 1:
        problems.append(
            f"cannot reach other nodes: this host has no address {wanted}, which the inventory "
            "names as its underlay; correct it there"
        )
    return Underlay("", min(mtu, _LARGEST_MTU)), problems


def _early(sysctls: Sequence[Sysctl]) -> list[Sysctl]:
    """Parameters that new devices inherit."""
    return [s for s in sysctls if "/default/" in s.key]


def _distinct(ports: Sequence[FabricPort]) -> list[FabricPort]:
    """The first of those that claim the same port; a map of nftables cannot hold two."""
    return list({(p.protocol, p.host_ip, p.port): p for p in reversed(ports)}.values())[::-1]


def _cannot_attach(container_id: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot connect container {container_id[:12]} to its networks: {reason}"
