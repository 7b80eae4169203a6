"""The kernel's network objects as values: links, addresses, routes, rules, neighbours, entries.

What a program wants and what the kernel reports are the same classes, so that a difference is a
comparison of values; `netlink` turns them into requests and back. A device is named, never
numbered. `key` says which object of the kernel a value replaces when it is written; the family
(v4, v6) follows from the address text. Pure: imports nothing that acts.
"""

from __future__ import annotations

from attrs import frozen

MAIN_TABLE = 254
LOCAL_TABLE = 255


@frozen
class Veth:
    """A pair of devices; the peer is made in another namespace (see `netlink.new_veth`)."""

    name: str
    mac: str
    mtu: int
    peer: str
    peer_mac: str

    def __str__(self) -> str:
        return f"veth {self.name}"


@frozen
class Vxlan:
    """A tunnel device without learning; `local` is the source address of its outer packets."""

    name: str
    mac: str
    mtu: int
    vni: int
    local: str
    port: int

    def __str__(self) -> str:
        return f"vxlan {self.name}"


@frozen
class Link:
    """A device as the kernel reports it; `vni`, `local` and `port` are a vxlan's."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    vni: int = 0
    local: str = ""
    port: int = 0


@frozen
class Address:
    device: str
    address: str  # with prefix length: "10.16.0.1/32"
    scope: str = "global"  # global, link, host

    @property
    def key(self) -> tuple[str, ...]:
        return ("address", self.device, self.address)

    def __str__(self) -> str:
        return f"address {self.address} on {self.device}"


@frozen
class Route:
    """`kind` unreachable has no device: packets are answered with ICMP host unreachable."""

    to: str  # with prefix length; "0.0.0.0/0" is the default
    device: str = ""
    via: str = ""
    source: str = ""
    scope: str = "global"
    kind: str = "unicast"
    table: int = MAIN_TABLE
    onlink: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        return ("route", self.to, str(self.table))

    def __str__(self) -> str:
        where = f" table {self.table}" if self.table != MAIN_TABLE else ""
        via = f" via {self.via}" if self.via else ""
        device = f" dev {self.device}" if self.device else ""
        kind = "" if self.kind == "unicast" else f"{self.kind} "
        return f"route {kind}{self.to}{via}{device}{where}"


@frozen
class Rule:
    """Packets with firewall mark `mark` are routed by `table`."""

    mark: int
    table: int
    priority: int

    @property
    def key(self) -> tuple[str, ...]:
        return ("rule", str(self.priority), str(self.mark), str(self.table))

    def __str__(self) -> str:
        return f"rule fwmark {self.mark} lookup {self.table}"


@frozen
class Neighbour:
    """A permanent neighbour: nobody asks for it by ARP."""

    device: str
    address: str
    mac: str

    @property
    def key(self) -> tuple[str, ...]:
        return ("neighbour", self.device, self.address)

    def __str__(self) -> str:
        return f"neighbour {self.address} on {self.device}"


@frozen
class Forward:
    """An entry of a vxlan device's forwarding table: frames to `mac` go to host `to`."""

    device: str
    mac: str
    to: str

    @property
    def key(self) -> tuple[str, ...]:
        return ("forward", self.device, self.mac)

    def __str__(self) -> str:
        return f"forwarding entry {self.mac} to {self.to} on {self.device}"


NetObject = Address | Route | Rule | Neighbour | Forward
