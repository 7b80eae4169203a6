"""nftables' text for both namespaces, pure: the same state gives the same bytes.

The fabric's table translates virtual addresses, keeps networks apart (only pairs in @joined pass,
default drop), lets no wire speak for an address that is not its own (@wires), and remembers by
which node a client from outside came (`return_path`). The host's table answers published ports
and guards the tunnel's port. A packet's cost does not grow with services: verdict maps dispatch.
Each table's comment carries the digest of its text, so what is applied is read from the kernel.

Grammar that nft 1.0.6 (Debian 12) wants: a newline or `;` before `}`, `meta l4proto tcp` before a
dnat to an `addr . port` map, no empty `elements`, a number for the priority of an output nat hook,
no chain named like a keyword; and `ct status & dnat == 0`, since `!= dnat` compares all bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from orchestra.fabric.render import (
    GATEWAY,
    RESOLVER,
    Place,
    host_address,
    node_index,
    node_range,
    spans,
    tunnel_mac,
    wires,
)
from orchestra.model.fabric import FabricPort, FabricService, FabricState

SEAL = "seal"
"""A chain without rules whose comment is the fingerprint of the listing (see `apply`)."""


def fabric_table(state: FabricState, place: Place) -> str:
    """The fabric's table, without the elements of @wires (see `wire_elements`)."""
    cluster = state.cluster
    serving = [s for s in state.services if s.vip and s.targets]
    peers = [p.index for p in cluster.peers if p.index != cluster.self_index]
    pairs = _unique(f"{n.subnet} . {n.subnet}" for n in state.networks)
    egress = _unique(n.subnet for n in state.networks if not n.internal)
    local = _unique(n.subnet for n in state.networks if n.local)
    gateways = _unique(n.gateway for n in state.networks)
    here = host_address(cluster, node_index(cluster))
    interval = "flags interval; auto-merge;"
    lines = [
        "  set wires { type ifname . ipv4_addr; }",
        # addresses of tasks that are gone for good; filled when draining comes
        "  set gone { type ipv4_addr; flags timeout; }",
        _set("range", f"type ipv4_addr; {interval}", spans(state)),
        _set("nodes", f"type ipv4_addr; {interval}", [node_range(cluster)]),
        _set("joined", "type ipv4_addr . ipv4_addr; flags interval;", pairs),
        _set("egress", f"type ipv4_addr; {interval}", egress),
        _set("local", f"type ipv4_addr; {interval}", local),
        _set("hosts", "type ipv4_addr;", _unique([here, *gateways])),
        _map("peers", "type ether_addr : mark;", [f"{tunnel_mac(i)} : {i}" for i in peers]),
        _map("vips", "type ipv4_addr : verdict;", [f"{s.vip} : goto {_chain(s)}" for s in serving]),
        *(_service(s) for s in serving),
        """\
  chain antispoof {
    type filter hook prerouting priority raw;
    iifname "t*" meta nfproto ipv6 drop
    iifname "t*" iifname . ip saddr != @wires counter drop
  }
  chain return_path {
    type filter hook prerouting priority mangle;
    iifname "vx0" ct direction original ip saddr != @range ct mark set ether saddr map @peers
    iifname "up0" ct direction original ct mark != 0 ct mark set 0
    ct direction reply ct mark != 0 meta mark set ct mark
  }
  chain balance {
    type nat hook prerouting priority dstnat;
    ip daddr vmap @vips
  }
  chain isolate {
    type filter hook forward priority filter; policy drop;
    meta l4proto tcp ip daddr @gone reject with tcp reset
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related accept
    ip saddr . ip daddr @joined accept
    iifname "t*" oifname "up0" ip daddr @hosts accept
    iifname "t*" oifname "up0" ip saddr @egress accept
    iifname "t*" oifname "vx0" ip daddr @nodes ip saddr != @local accept
    iifname { "up0", "vx0" } ip daddr @range ip saddr != @range accept
    iifname { "up0", "vx0" } ip saddr @nodes accept
    counter reject with icmpx type admin-prohibited
  }""",
        f"""\
  chain local_in {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "t*" ip daddr {{ {GATEWAY}, {RESOLVER} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    icmp type echo-request accept
  }}
  chain hairpin {{
    type nat hook postrouting priority srcnat;
    oifname . ip saddr @wires ct status dnat snat ip to {GATEWAY}
  }}""",
    ]
    return _table(place, lines, state.generation)


def host_table(state: FabricState, place: Place) -> str:
    """The host's table: published ports, their way back, the guard of tunnel and wires."""
    cluster = state.cluster
    here = host_address(cluster, node_index(cluster))
    orc = place.uplink
    peers = _unique(p.underlay for p in cluster.peers if p.index != cluster.self_index)
    served = [p for p in state.ports if p.targets]
    shut = [p for p in state.ports if not p.targets]
    # forged tunnel packets end here; an engine in no cluster has no tunnel to guard
    guard = f"    udp dport {cluster.port} ip saddr != @peers counter drop\n" if peers else ""
    port_type, at_type = "inet_proto . inet_service", "ipv4_addr . inet_proto . inet_service"
    lines = [
        _set("peers", "type ipv4_addr;", peers),
        _map(
            "published", f"type {port_type} : verdict;", [_goto(p) for p in served if not p.host_ip]
        ),
        _map("published_at", f"type {at_type} : verdict;", [_goto(p) for p in served if p.host_ip]),
        _set("shut", f"type {port_type};", [_port_key(p) for p in shut if not p.host_ip]),
        _set("shut_at", f"type {at_type};", [_port_key(p) for p in shut if p.host_ip]),
        *(_port(p) for p in served),
        f"""\
  chain guard_lo {{
    type filter hook prerouting priority raw;
    iifname "{orc}" ip daddr 127.0.0.0/8 drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr . meta l4proto . th dport vmap @published_at
    fib daddr type local meta l4proto . th dport vmap @published
  }}
  chain output {{
    type nat hook output priority -100;
    ip daddr . meta l4proto . th dport vmap @published_at
    fib daddr type local meta l4proto . th dport vmap @published
  }}
  chain input {{
    type filter hook input priority filter;
{guard}    ip daddr . meta l4proto . th dport @shut_at goto refuse
    fib daddr type local meta l4proto . th dport @shut goto refuse
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain forward {{
    type filter hook forward priority filter;
    oifname "{orc}" iifname != "{orc}" ct state new ct status & dnat == 0 drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{orc}" ip saddr 127.0.0.0/8 snat ip to {here}
    iifname "{orc}" oifname "{orc}" ct status dnat snat ip to {here}
    iifname "{orc}" oifname != "{orc}" masquerade
  }}""",
    ]
    return _table(place, lines, state.generation)


def wire_elements(place: Place, state: FabricState) -> str:
    """Fill @wires; empty text if there are none. They change with every container, the rest not."""
    return put_wires(place, wires(state.endpoints))


def put_wires(place: Place, elements: Iterable[tuple[str, str]]) -> str:
    return _wires("add", place, elements)


def drop_wires(place: Place, elements: Iterable[tuple[str, str]]) -> str:
    return _wires("delete", place, elements)


def replace(text: str, place: Place) -> str:
    """The transaction that puts a table in the place of the one that may be there."""
    return f"table inet {place.table} {{ }}\ndelete table inet {place.table}\n{text}"


def digest(text: str) -> str:
    """Digest of a table's text whatever generation it was rendered for."""
    body = text.partition("\n")[2].partition("\n")[2]
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _wires(verb: str, place: Place, elements: Iterable[tuple[str, str]]) -> str:
    texts = sorted(f'"{device}" . {address}' for device, address in elements)
    if not texts:
        return ""
    return f"{verb} element inet {place.table} wires {{ {', '.join(texts)} }}\n"


def _table(place: Place, lines: Sequence[str], generation: int) -> str:
    body = "\n".join(lines) + "\n}\n"
    text = f"table inet {place.table} {{\n\n{body}"
    comment = f'  comment "generation={generation} digest={digest(text)}"'
    return f"table inet {place.table} {{\n{comment}\n{body}"


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    return _collection("set", name, kind, list(elements))


def _map(name: str, kind: str, elements: Iterable[str]) -> str:
    return _collection("map", name, kind, list(elements))


def _collection(word: str, name: str, kind: str, elements: list[str]) -> str:
    inside = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"  {word} {name} {{ {kind}{inside} }}"


def _service(service: FabricService) -> str:
    rule = f"dnat ip to {_spread(service.targets)}"
    return f"  chain {_chain(service)} {{\n    {rule}\n  }}"


def _port(port: FabricPort) -> str:
    targets = [f"{t} . {port.target_port}" for t in port.targets]
    alone = f"{port.targets[0]}:{port.target_port}"
    to = alone if len(targets) == 1 else _spread(targets)
    rule = f"meta l4proto {port.protocol} dnat ip to {to}"
    return f"  chain {_port_chain(port)} {{\n    {rule}\n  }}"


def _spread(targets: Sequence[str]) -> str:
    """One of the targets by chance, for each new connection."""
    if len(targets) == 1:
        return targets[0]
    choices = ", ".join(f"{i} : {t}" for i, t in enumerate(targets))
    return f"numgen random mod {len(targets)} map {{ {choices} }}"


def _chain(service: FabricService) -> str:
    """A chain's name must be a word of nft and unique: the address is both."""
    return f"vip_{service.vip.replace('.', '_')}"


def _port_chain(port: FabricPort) -> str:
    at = f"_{port.host_ip.replace('.', '_')}" if port.host_ip else ""
    return f"pub_{port.protocol}_{port.port}{at}"


def _port_key(port: FabricPort) -> str:
    at = f"{port.host_ip} . " if port.host_ip else ""
    return f"{at}{port.protocol} . {port.port}"


def _goto(port: FabricPort) -> str:
    return f"{_port_key(port)} : goto {_port_chain(port)}"


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
