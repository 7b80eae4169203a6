"""From desired to kernel: read both namespaces, compare values, write what differs.

`diff` is pure and gives a list of changes in an order that never names what is not there yet:
additions first, nftables' tables in one transaction, removals last. So an apply that was cut off
anywhere is finished by the next one, and an apply of what is already there writes nothing.
A table of nftables is compared by the digest in its comment and by a fingerprint of its own
listing, kept in the kernel as the comment of an empty chain: a foreign hand shows, and a restart
of the agent touches nothing. Only objects that are ours are ever removed: in the fabric all, in
the host those on our device, and our table.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from orchestra.fabric import ruleset
from orchestra.fabric.render import (
    TUNNEL,
    UPLINK,
    UPLINK_FABRIC_MAC,
    UPLINK_HOST_MAC,
    Objects,
    Place,
    Sysctl,
    Tunnel,
)
from orchestra.linux import netns
from orchestra.linux.netlink import (
    Netlink,
    NetlinkError,
    Request,
    delete_group,
    delete_link,
    device_names,
    new_veth,
    new_vxlan,
    put,
    remove,
    set_link,
)
from orchestra.linux.netobjects import (
    Address,
    Forward,
    Link,
    Neighbour,
    NetObject,
    Route,
    Rule,
    Veth,
    Vxlan,
)
from orchestra.linux.nft import Nft

_DEAD_GROUP = 0x6F726300
"""Wires to be deleted are gathered in this group, since the kernel waits once per deletion."""
_ORDER = (Address, Neighbour, Forward, Route, Rule)
_GONE = {2, 3, 19, 49, 99}  # ENOENT ESRCH ENODEV EUNATCH EADDRNOTAVAIL: what we remove is away


@frozen
class Changes:
    put: tuple[NetObject, ...]
    remove: tuple[NetObject, ...]
    sysctls: tuple[Sysctl, ...]

    def __str__(self) -> str:
        lines = [f"+ {o}" for o in (*self.put, *self.sysctls)] + [f"- {o}" for o in self.remove]
        return "\n".join(lines)

    def __bool__(self) -> bool:
        return bool(self.put or self.remove or self.sysctls)


class Namespace:
    """A network namespace with the sockets that work in it; ours as long as it is open."""

    def __init__(self, descriptor: int) -> None:
        """Take over `descriptor`. Raises OSError or NftError."""
        self.descriptor = descriptor
        with netns.entered(descriptor):
            self.netlink = Netlink()
            self.nft = Nft()
        self.identity = os.fstat(descriptor).st_ino

    def close(self) -> None:
        self.netlink.close()
        self.nft.close()
        os.close(self.descriptor)


def diff(desired: Objects, kernel: Objects) -> Changes:
    """What to write and what to delete so that `kernel` becomes `desired`."""
    wanted = {o.key for o in desired.objects}
    added = sorted(desired.objects - kernel.objects, key=_put_order)
    replaced = {o.key for o in added}
    surplus = [
        o for o in kernel.objects - desired.objects if o.key not in wanted or o.key not in replaced
    ]
    values = {s.key: s.value for s in kernel.sysctls}
    return Changes(
        put=tuple(added),
        remove=tuple(sorted(surplus, key=_put_order, reverse=True)),
        sysctls=tuple(s for s in desired.sysctls if values.get(s.key) != s.value),
    )


def _put_order(obj: NetObject) -> tuple[int, bool, str]:
    """Addresses before routes that name them as source, links before gateways."""
    is_gatewayed = isinstance(obj, Route) and bool(obj.via)
    return _ORDER.index(type(obj)), is_gatewayed, str(obj)


def read_fabric(namespace: Namespace, sysctls: Sequence[Sysctl]) -> Objects:
    """Everything in the fabric's namespace but what the kernel itself puts there."""
    netlink = namespace.netlink
    names = device_names(netlink.links())
    found: set[NetObject] = {
        a for a in netlink.addresses(names) if not a.address.startswith("127.")
    }
    found.update(netlink.routes(names))
    found.update(netlink.rules())
    found.update(netlink.neighbours(names))
    found.update(netlink.forwards(names))
    return Objects(frozenset(found), _read_sysctls(namespace, sysctls))


def read_host(namespace: Namespace, sysctls: Sequence[Sysctl], place: Place) -> Objects:
    """What is on our device in the host's namespace."""
    netlink = namespace.netlink
    names = device_names(netlink.links())
    found: set[NetObject] = {a for a in netlink.addresses(names) if a.device == place.uplink}
    found.update(r for r in netlink.routes(names, protocol=111) if r.device == place.uplink)
    found.update(n for n in netlink.neighbours(names) if n.device == place.uplink)
    return Objects(frozenset(found), _read_sysctls(namespace, sysctls))


def put_objects(namespace: Namespace, objects: Sequence[NetObject]) -> list[str]:
    """Write objects; return the refusals as texts, each naming its object."""
    return _write(namespace, objects, removing=False)


def remove_objects(namespace: Namespace, objects: Sequence[NetObject]) -> list[str]:
    """Delete objects; what is away already is no problem."""
    return _write(namespace, objects, removing=True)


def put_sysctls(namespace: Namespace, sysctls: Iterable[Sysctl]) -> list[str]:
    """Write kernel parameters; return the refusals as texts."""
    problems = []
    with netns.entered(namespace.descriptor):
        for sysctl in sysctls:
            try:
                write_sysctl(sysctl)
            except OSError as error:
                problems.append(f"cannot set {sysctl} to {sysctl.value}: {error.strerror}")
    return problems


def write_sysctl(sysctl: Sysctl) -> None:
    """Write one kernel parameter of the calling thread's namespace. Raises OSError."""
    opened = os.open(f"/proc/sys/{sysctl.key}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(opened, sysctl.value.encode())
    finally:
        os.close(opened)


def ensure_links(
    host: Namespace, fabric: Namespace, place: Place, tunnel: Tunnel | None, mtu: int
) -> list[str]:
    """Make uplink and tunnel where they are missing or wrong; return problems as texts."""
    problems = []
    try:
        _ensure_uplink(host, fabric, place, mtu)
    except NetlinkError as error:
        problems.append(str(error.strerror))
    try:
        _ensure_tunnel(host, fabric, tunnel)
    except NetlinkError as error:
        problems.append(str(error.strerror))
    return problems


def _ensure_uplink(host: Namespace, fabric: Namespace, place: Place, mtu: int) -> None:
    there = {link.name: link for link in fabric.netlink.links()}
    if not there["lo"].up:
        fabric.netlink.do(set_link(there["lo"].index, "lo"))
    here, inner = host.netlink.link(place.uplink), there.get(UPLINK)
    if here and inner:
        for namespace, link in ((host, here), (fabric, inner)):
            if not link.up or link.mtu != mtu:
                namespace.netlink.do(set_link(link.index, link.name, mtu=mtu))
        return
    if here:
        host.netlink.do(delete_link(place.uplink))
    if inner:
        fabric.netlink.do(delete_link(UPLINK))
    veth = Veth(place.uplink, UPLINK_HOST_MAC, mtu, UPLINK, UPLINK_FABRIC_MAC)
    host.netlink.do(new_veth(veth, fabric.descriptor))
    made = fabric.netlink.link(UPLINK)
    if made:
        fabric.netlink.do(set_link(made.index, UPLINK))


def _ensure_tunnel(host: Namespace, fabric: Namespace, tunnel: Tunnel | None) -> None:
    there = fabric.netlink.link(TUNNEL)
    if there and (tunnel is None or _identity(there) != (tunnel.vni, tunnel.local, tunnel.port)):
        fabric.netlink.do(delete_link(TUNNEL))
        there = None
    if tunnel is None:
        return
    if there is None:
        vxlan = Vxlan(TUNNEL, tunnel.mac, tunnel.mtu, tunnel.vni, tunnel.local, tunnel.port)
        host.netlink.do(new_vxlan(vxlan, fabric.descriptor))
    elif (there.mac, there.mtu, there.up) != (tunnel.mac, tunnel.mtu, True):
        fabric.netlink.do(set_link(there.index, TUNNEL, mac=tunnel.mac, mtu=tunnel.mtu))


def _identity(link: Link) -> tuple[int, str, int]:
    return link.vni, link.local, link.port


def delete_wires(fabric: Namespace, names: Iterable[str]) -> list[str]:
    """Delete devices with one wait for all; return the refusal, if any, as text."""
    dead = set(names)
    links = [link for link in fabric.netlink.links() if link.name in dead]
    if not links:
        return []
    fabric.netlink.execute(
        [set_link(link.index, link.name, up=False, group=_DEAD_GROUP) for link in links]
    )
    verdict = fabric.netlink.execute([delete_group(_DEAD_GROUP)])[0]
    if verdict and verdict.errno not in _GONE:
        return [f"cannot delete {', '.join(sorted(dead))}: {verdict.reason}"]
    return []


class Table:
    """Our nftables table in one namespace: kept equal to a text, touched only if it differs."""

    def __init__(self, nft: Nft, place: Place) -> None:
        self._nft, self._place = nft, place
        self._seen: int | None = None  # generation up to which we know every commit
        self._digest = ""
        self.wires: dict[str, str] = {}

    def ensure(self, text: str, wires: Mapping[str, str]) -> bool:
        """Make the kernel's table equal to `text` with `wires` in @wires; tell if it was not.

        Raises NftError; then nothing was changed.
        """
        if not self.is_intact(text):
            return self._replace(text, wires)
        return self._change_wires(wires)

    def exists(self) -> bool:
        return bool(self._nft.table("inet", self._place.table))

    def is_intact(self, text: str) -> bool:
        """Tell whether the kernel's table is `text`, whatever is in @wires."""
        wanted = ruleset.digest(text)
        if self._seen == self._nft.generation() and self._digest == wanted:
            return True
        now = self._nft.generation()
        listing = self._nft.table("inet", self._place.table)
        if not _intact(listing, wanted):
            return False
        self._seen, self._digest, self.wires = now, wanted, _wires_in(listing)
        return True

    def add_wires(self, wires: Mapping[str, str]) -> None:
        """Admit wires at once. Raises NftError."""
        self._commit(ruleset.put_wires(self._place, wires.items()))
        self.wires.update(wires)

    def drop_wires(self, devices: Iterable[str]) -> None:
        """Take wires out of @wires, which must come before their devices go. Raises NftError."""
        dropped = {d: self.wires[d] for d in devices if d in self.wires}
        if dropped:
            self._commit(ruleset.drop_wires(self._place, dropped.items()))
        for device in dropped:
            del self.wires[device]

    def delete(self) -> None:
        """Remove the table."""
        name = self._place.table
        self._nft.run(f"table inet {name} {{ }}\ndelete table inet {name}\n")
        self._seen, self._digest, self.wires = None, "", {}

    def _change_wires(self, wires: Mapping[str, str]) -> bool:
        old, new = set(self.wires.items()), set(wires.items())
        if old == new:
            return False
        self._commit(
            ruleset.drop_wires(self._place, old - new) + ruleset.put_wires(self._place, new - old)
        )
        self.wires = dict(wires)
        return True

    def _replace(self, text: str, wires: Mapping[str, str]) -> bool:
        place = self._place
        self._nft.run(ruleset.replace(text, place) + ruleset.put_wires(place, wires.items()))
        seal = _fingerprint(self._nft.table("inet", place.table))
        self._nft.run(f'add chain inet {place.table} {ruleset.SEAL} {{ comment "{seal}"; }}')
        self._seen, self._digest = self._nft.generation(), ruleset.digest(text)
        self.wires = dict(wires)
        return True

    def _commit(self, text: str) -> None:
        """Run a small change; if nobody else committed meanwhile, our knowledge stays whole."""
        if text:
            self._nft.run(text)
            now = self._nft.generation()
            self._seen = now if self._seen is not None and now == self._seen + 1 else None


_BLOCK = r"\n\t(?:set|chain|map) {} \{{.*?\n\t\}}"
_VOLATILE = re.compile(
    "|".join(_BLOCK.format(name) for name in ("wires", "gone", ruleset.SEAL)), re.DOTALL
)
_COUNTER = re.compile(r"counter packets \d+ bytes \d+")
_SEALED = re.compile(rf'chain {ruleset.SEAL} \{{\s*comment "([0-9a-f]+)"')
_WIRE = re.compile(r'"([^"]+)" \. ([0-9.]+)')
_WIRES = re.compile(_BLOCK.format("wires"), re.DOTALL)


def _intact(listing: str, wanted: str) -> bool:
    sealed = _SEALED.search(listing)
    return (
        f"digest={wanted}" in listing
        and sealed is not None
        and sealed.group(1) == _fingerprint(listing)
    )


def _fingerprint(listing: str) -> str:
    """Digest of what `nft list table` prints, less what changes without us changing the text."""
    stable = re.sub(r"\s+", " ", _COUNTER.sub("counter", _VOLATILE.sub("", listing)))
    return hashlib.sha256(stable.encode()).hexdigest()[:32]


def _wires_in(listing: str) -> dict[str, str]:
    block = _WIRES.search(listing)
    return dict(_WIRE.findall(block.group())) if block else {}


def _read_sysctls(namespace: Namespace, sysctls: Sequence[Sysctl]) -> tuple[Sysctl, ...]:
    found = []
    with netns.entered(namespace.descriptor):
        for sysctl in sysctls:
            try:
                with open(f"/proc/sys/{sysctl.key}") as file:
                    found.append(Sysctl(sysctl.key, " ".join(file.read().split())))
            except FileNotFoundError:
                continue  # its module is not loaded yet; written after the rule set that loads it
    return tuple(found)


def _write(namespace: Namespace, objects: Sequence[NetObject], *, removing: bool) -> list[str]:
    if not objects:
        return []
    numbers = {link.name: link.index for link in namespace.netlink.links()}
    requests: list[Request] = []
    problems = []
    for obj in objects:
        device = "" if isinstance(obj, Rule) else obj.device
        if device and device not in numbers:
            if not removing:
                problems.append(f"cannot set {obj}: there is no device {device}")
            continue
        requests.append((remove if removing else put)(obj, numbers.get(device, 0)))
    for request, refusal in zip(requests, namespace.netlink.execute(requests)):
        if refusal and not (removing and refusal.errno in _GONE):
            problems.append(f"cannot {request.what}: {refusal.reason}")
    return problems
