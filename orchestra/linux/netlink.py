"""rtnetlink by hand: values of `netobjects` to requests, batches with acks, dumps back to values.

A :class:`Netlink` belongs to the network namespace its thread was in when it was made, for good,
and may then be used from anywhere. The kernel does the work inside sendmsg (deleting a device
takes 20 ms), so callers live in a worker thread; nothing here is asynchronous. Requests are data:
they are sent many in one datagram, each is acknowledged by its sequence number, and a refusal
carries the kernel's own explanation (extended ack).

Sources: rtnetlink(7), netlink(7), the kernel's Documentation/userspace-api/netlink and
include/uapi/linux/{rtnetlink,if_link,neighbour,fib_rules}.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from attrs import frozen

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

PROTOCOL = 111
"""Origin (rtm_protocol) that our routes carry, so that they can be told from everybody's."""

_REQUEST, _ACK, _DUMP, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_F_ACK_TLVS, _DUMP_INTR = 0x200, 0x10
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34

_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 270, 10, 11, 12
_SO_RCVBUFFORCE = 33
_IFF_UP = 1
_SCOPES = {"global": 0, "link": 253, "host": 254}
_SCOPE_NAMES = {v: k for k, v in _SCOPES.items()}
_KINDS = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_KIND_NAMES = {v: k for k, v in _KINDS.items()}
_RTNH_F_ONLINK = 4
_NUD_PERMANENT, _NTF_SELF = 0x80, 0x02
_FR_ACT_TO_TBL = 1
_NDA_DST, _NDA_LLADDR = 1, 2


class NetlinkError(OSError):
    """The kernel refused a request; the text names the object and the kernel's reason."""


@frozen
class Request:
    """One rtnetlink message without its header; `what` names it in errors."""

    type: int
    flags: int
    payload: bytes
    what: str


@frozen
class Refusal:
    """Why the kernel did not do a request; `errno` as in errno(3)."""

    errno: int
    reason: str


class Netlink:
    """An rtnetlink socket of one namespace. Not thread-safe."""

    def __init__(self) -> None:
        """Open it in the calling thread's network namespace. Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                continue  # an older kernel: errors then lack their text, dumps are unfiltered
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- writing ---------------------------------------------------------------------------

    def execute(self, requests: Sequence[Request]) -> list[Refusal | None]:
        """Send requests in order and return the kernel's verdict on each (None: done).

        The kernel goes on after a refused one. Raises OSError if the socket itself fails.
        """
        verdicts: list[Refusal | None] = []
        for some in _chunks(requests):
            verdicts += self._execute(some)
        return verdicts

    def do(self, *requests: Request) -> None:
        """Execute requests. Raises NetlinkError for the first one refused."""
        for request, refusal in zip(requests, self.execute(requests)):
            if refusal:
                raise NetlinkError(refusal.errno, f"cannot {request.what}: {refusal.reason}")

    def _execute(self, requests: Sequence[Request]) -> list[Refusal | None]:
        out, waiting = [], {}
        for position, request in enumerate(requests):
            sequence = next(self._sequence)
            waiting[sequence] = position
            out.append(_message(request.type, request.flags | _ACK, sequence, request.payload))
        self._socket.send(b"".join(out))
        verdicts: list[Refusal | None] = [None] * len(requests)
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind == _NLMSG_ERROR and sequence in waiting:
                    verdicts[waiting.pop(sequence)] = _refusal(flags, body)
        return verdicts

    # -- reading ---------------------------------------------------------------------------

    def links(self) -> list[Link]:
        return [_link(b) for b in self._dump(_GETLINK, _NEWLINK, _ifinfo())]

    def link(self, name: str) -> Link | None:
        """One device by name, or None."""
        sequence = next(self._sequence)
        payload = _ifinfo() + _attribute(3, _text(name))
        self._socket.send(_message(_GETLINK, 0, sequence, payload))
        for kind, flags, number, body in self._receive():
            if number == sequence and kind == _NEWLINK:
                return _link(body)
            if number == sequence and kind == _NLMSG_ERROR:
                refusal = _refusal(flags, body)
                if refusal and refusal.errno != 19:  # ENODEV
                    raise NetlinkError(refusal.errno, f"cannot read {name}: {refusal.reason}")
        return None

    def addresses(self, names: dict[int, str], family: int = socket.AF_INET) -> list[Address]:
        """Addresses of one family; `names` maps device numbers to names (see `device_names`)."""
        found = []
        for body in self._dump(_GETADDR, _NEWADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0)):
            _, length, _, scope, index = struct.unpack_from("=BBBBi", body)
            attributes = _attributes(body, 8)
            raw = attributes.get(2) or attributes[1]
            text = f"{socket.inet_ntop(family, raw)}/{length}"
            found.append(Address(names.get(index, ""), text, _SCOPE_NAMES.get(scope, str(scope))))
        return found

    def routes(
        self, names: dict[int, str], *, protocol: int = 0, family: int = socket.AF_INET
    ) -> list[Route]:
        """Routes of one family outside the local table that have a single next hop.

        `protocol` 0 means those of every origin but the kernel's own.
        """
        header = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, protocol, 0, 0, 0)
        found = []
        for body in self._dump(_GETROUTE, _NEWROUTE, header):
            _, length, _, _, table, origin, scope, kind, flags = struct.unpack_from(
                "=BBBBBBBBI", body
            )
            attributes = _attributes(body, 12)
            table = _u32(attributes[15]) if 15 in attributes else table
            if table == 255 or origin == 2 or (protocol and origin != protocol):
                continue
            to = attributes.get(1, bytes(4 if family == socket.AF_INET else 16))
            found.append(
                Route(
                    to=f"{socket.inet_ntop(family, to)}/{length}",
                    device=names.get(_u32(attributes[4]), "") if 4 in attributes else "",
                    via=socket.inet_ntop(family, attributes[5]) if 5 in attributes else "",
                    source=socket.inet_ntop(family, attributes[7]) if 7 in attributes else "",
                    scope=_SCOPE_NAMES.get(scope, str(scope)),
                    kind=_KIND_NAMES.get(kind, str(kind)),
                    table=table,
                    onlink=bool(flags & _RTNH_F_ONLINK),
                )
            )
        return found

    def rules(self, family: int = socket.AF_INET) -> list[Rule]:
        """Rules that look up a table by firewall mark."""
        found = []
        for body in self._dump(_GETRULE, _NEWRULE, struct.pack("=BBBBBBBBI", family, *[0] * 8)):
            attributes = _attributes(body, 12)
            if 10 in attributes:
                table = _u32(attributes[15]) if 15 in attributes else body[4]
                priority = _u32(attributes[6]) if 6 in attributes else 0
                found.append(Rule(_u32(attributes[10]), table, priority))
        return found

    def neighbours(self, names: dict[int, str], family: int = socket.AF_INET) -> list[Neighbour]:
        """Permanent neighbours of one family."""
        return [
            Neighbour(device, socket.inet_ntop(family, attributes[_NDA_DST]), mac)
            for device, mac, attributes in self._permanent(family, names)
        ]

    def forwards(self, names: dict[int, str]) -> list[Forward]:
        """Permanent forwarding entries with a destination host."""
        return [
            Forward(device, mac, _host(attributes[_NDA_DST]))
            for device, mac, attributes in self._permanent(socket.AF_BRIDGE, names)
        ]

    def _permanent(
        self, family: int, names: dict[int, str]
    ) -> Iterator[tuple[str, str, dict[int, bytes]]]:
        header = struct.pack("=BxHiHBB", family, 0, 0, 0, 0, 0)
        for body in self._dump(_GETNEIGH, _NEWNEIGH, header):
            index, state = struct.unpack_from("=iH", body, 4)
            attributes = _attributes(body, 12)
            if state & _NUD_PERMANENT and _NDA_DST in attributes and _NDA_LLADDR in attributes:
                yield names.get(index, ""), _mac(attributes[_NDA_LLADDR]), attributes

    def _dump(self, request: int, answer: int, payload: bytes) -> list[bytes]:
        while True:
            found, is_whole = self._dump_once(request, answer, payload)
            if is_whole:
                return found

    def _dump_once(self, request: int, answer: int, payload: bytes) -> tuple[list[bytes], bool]:
        """One pass, and whether the table stayed the same meanwhile (netlink(7), DUMP_INTR)."""
        sequence = next(self._sequence)
        self._socket.send(_message(request, _DUMP, sequence, payload))
        found: list[bytes] = []
        is_whole = True
        while True:
            for kind, flags, number, body in self._receive():
                if number != sequence:
                    continue
                is_whole = is_whole and not flags & _DUMP_INTR
                if kind == answer:
                    found.append(body)
                elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    code = struct.unpack_from("=i", body)[0] if body else 0
                    if code:
                        reason = (_refusal(flags, body) or Refusal(-code, "")).reason
                        raise NetlinkError(-code, f"cannot read the kernel's tables: {reason}")
                    return found, is_whole

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data, offset = self._socket.recv(1 << 18), 0
        while offset < len(data):
            length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def device_names(links: Iterable[Link]) -> dict[int, str]:
    """Map device numbers to names."""
    return {link.index: link.name for link in links}


# -- requests ------------------------------------------------------------------------------


def new_veth(
    veth: Veth,
    peer_namespace: int,
    *,
    index: int = 0,
) -> Request:
    """Make a pair, its first side up here, its peer down in `peer_namespace` (a descriptor).

    `index` numbers both sides (0: the kernel chooses); the number must be free in both
    namespaces (EBUSY). It lets one batch create a device and the routes that name it.
    """
    peer = (
        _ifinfo(index)
        + _attribute(3, _text(veth.peer))
        + _attribute(1, _mac_bytes(veth.peer_mac))
        + _attribute(4, struct.pack("=I", veth.mtu))
        + _attribute(28, struct.pack("=I", peer_namespace))
    )
    payload = (
        _ifinfo(index, _IFF_UP, _IFF_UP)
        + _attribute(3, _text(veth.name))
        + _attribute(1, _mac_bytes(veth.mac))
        + _attribute(4, struct.pack("=I", veth.mtu))
        + _nested(18, _attribute(1, b"veth"), _nested(2, _nested_raw(1, peer)))
    )
    return Request(_NEWLINK, _CREATE | _EXCL, payload, f"make {veth}")


def new_vxlan(vxlan: Vxlan, namespace: int) -> Request:
    """Make a tunnel in `namespace` (a descriptor), its UDP socket in the requesting namespace.

    So its outer packets are routed by the requester's tables (see ip-link(8), `netns`).
    """
    payload = (
        _ifinfo(0, _IFF_UP, _IFF_UP)
        + _attribute(3, _text(vxlan.name))
        + _attribute(1, _mac_bytes(vxlan.mac))
        + _attribute(4, struct.pack("=I", vxlan.mtu))
        + _attribute(28, struct.pack("=I", namespace))
        + _nested(
            18,
            _attribute(1, b"vxlan"),
            _nested(
                2,
                _attribute(1, struct.pack("=I", vxlan.vni)),
                _attribute(4, socket.inet_aton(vxlan.local))
                if ":" not in vxlan.local
                else _attribute(17, socket.inet_pton(socket.AF_INET6, vxlan.local)),
                _attribute(7, b"\0"),  # learning off
                _attribute(15, struct.pack(">H", vxlan.port)),
            ),
        )
    )
    return Request(_NEWLINK, _CREATE | _EXCL, payload, f"make {vxlan}")


def set_link(
    index: int, name: str, *, up: bool = True, mac: str = "", mtu: int = 0, group: int | None = None
) -> Request:
    """Change a device: bring it up or down, and its address, MTU and group where given."""
    payload = _ifinfo(index, _IFF_UP if up else 0, _IFF_UP)
    if mac:
        payload += _attribute(1, _mac_bytes(mac))
    if mtu:
        payload += _attribute(4, struct.pack("=I", mtu))
    if group is not None:
        payload += _attribute(27, struct.pack("=I", group))
    return Request(_NEWLINK, 0, payload, f"change {name}")


def delete_link(name: str) -> Request:
    return Request(_DELLINK, 0, _ifinfo() + _attribute(3, _text(name)), f"delete {name}")


def delete_group(group: int) -> Request:
    """Delete every device of a group: one wait for readers in all instead of one for each."""
    payload = _ifinfo() + _attribute(27, struct.pack("=I", group))
    return Request(_DELLINK, 0, payload, f"delete the devices of group {group}")


def put(obj: NetObject, index: int) -> Request:
    """Write an object, replacing what has its key; `index` is its device's number (0: none)."""
    return _request(obj, index, remove=False)


def remove(obj: NetObject, index: int) -> Request:
    """Delete an object."""
    return _request(obj, index, remove=True)


def _request(obj: NetObject, index: int, *, remove: bool) -> Request:
    flags = 0 if remove else _CREATE | _REPLACE
    what = f"{'delete' if remove else 'set'} {obj}"
    match obj:
        case Address():
            payload = _address_payload(obj, index)
            return Request(_DELADDR if remove else _NEWADDR, flags, payload, what)
        case Route():
            return Request(
                _DELROUTE if remove else _NEWROUTE,
                flags,
                _route_payload(obj, index, 0 if remove else PROTOCOL),  # whoever made it
                what,
            )
        case Rule():
            kind, flags = (_DELRULE, 0) if remove else (_NEWRULE, _CREATE | _EXCL)
            payload = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
            for number, value in ((6, obj.priority), (10, obj.mark), (15, obj.table)):
                payload += _attribute(number, struct.pack("=I", value))
            return Request(kind, flags, payload, what)
        case Neighbour():
            family, raw = _packed(obj.address)
            payload = struct.pack("=BxHiHBB", family, 0, index, _NUD_PERMANENT, 0, 0)
            payload += _attribute(_NDA_DST, raw) + _attribute(_NDA_LLADDR, _mac_bytes(obj.mac))
            return Request(_DELNEIGH if remove else _NEWNEIGH, flags, payload, what)
        case Forward():
            payload = struct.pack(
                "=BxHiHBB", socket.AF_BRIDGE, 0, index, _NUD_PERMANENT, _NTF_SELF, 0
            )
            payload += _attribute(_NDA_LLADDR, _mac_bytes(obj.mac))
            payload += _attribute(_NDA_DST, _packed(obj.to)[1])
            return Request(_DELNEIGH if remove else _NEWNEIGH, flags, payload, what)
        case _:
            assert_never(obj)


def _address_payload(address: Address, index: int) -> bytes:
    text, _, length = address.address.partition("/")
    family, raw = _packed(text)
    header = struct.pack("=BBBBi", family, int(length), 0, _SCOPES[address.scope], index)
    return header + _attribute(2, raw) + _attribute(1, raw)


def _route_payload(route: Route, index: int, protocol: int) -> bytes:
    text, _, length = route.to.partition("/")
    family, raw = _packed(text)
    payload = struct.pack(
        "=BBBBBBBBI",
        family,
        int(length),
        0,
        0,
        route.table if route.table < 256 else 0,
        protocol,
        _SCOPES[route.scope],
        _KINDS[route.kind],
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    if int(length):
        payload += _attribute(1, raw)
    if route.via:
        payload += _attribute(5, _packed(route.via)[1])
    if index:
        payload += _attribute(4, struct.pack("=I", index))
    if route.source:
        payload += _attribute(7, _packed(route.source)[1])
    return payload + _attribute(15, struct.pack("=I", route.table))


# -- bytes ---------------------------------------------------------------------------------


def _chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Batches whose requests fit the send buffer and whose acks fit the receive buffer."""
    for start in range(0, len(requests), 512):
        yield requests[start : start + 512]


def _message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST, sequence, 0) + payload


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _nested_raw(kind: int, value: bytes) -> bytes:
    return _attribute(kind | 0x8000, value)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _u32(raw: bytes) -> int:
    return int(struct.unpack("=I", raw)[0])


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _host(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _refusal(flags: int, body: bytes) -> Refusal | None:
    code = -struct.unpack_from("=i", body)[0]
    if not code:
        return None
    text = os.strerror(code)
    if flags & _F_ACK_TLVS:  # CAP_ACK: only the request's header precedes the texts
        explanation = _attributes(body, 4 + 16).get(1, b"").rstrip(b"\0").decode(errors="replace")
        text = f"{text} ({explanation})" if explanation else text
    return Refusal(code, text)


def _link(body: bytes) -> Link:
    index, flags = struct.unpack_from("=iI", body, 4)
    attributes = _attributes(body, 16)
    info = _attributes(attributes.get(18, b""), 0)
    kind = info.get(1, b"").rstrip(b"\0").decode()
    data = _attributes(info.get(2, b""), 0) if kind == "vxlan" else {}
    local = data.get(4) or data.get(17) or b""
    return Link(
        index=index,
        name=attributes[3].rstrip(b"\0").decode(),
        kind=kind,
        mac=_mac(attributes.get(1, b"")),
        mtu=_u32(attributes[4]),
        up=bool(flags & _IFF_UP),
        vni=_u32(data[1]) if 1 in data else 0,
        local=_host(local) if local else "",
        port=int.from_bytes(data.get(15, b""), "big"),
    )
