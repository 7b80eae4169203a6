"""The short forms of single attributes: one text, one long form.

`8080:80/udp`, `./data:/data:ro`, `name=1.2.3.4`: each function parses one such text and raises
ValueError with a message that says what is wrong with it. Grammars: compose specification, ports,
volumes and extra_hosts of 05-services.
"""

from __future__ import annotations

import posixpath
from typing import Any

PROTOCOLS = ("tcp", "udp", "sctp")
PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


def port(text: str) -> list[dict[str, Any]]:
    """`[HOST_IP:][PUBLISHED:]TARGET[/PROTOCOL]`, ranges allowed, as long forms (one per target)."""
    body, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise ValueError(f"{text!r}: the protocol must be tcp, udp or sctp, not {protocol!r}")
    head, _, target = body.rpartition(":")
    address, published = _address(head, text)
    first, last = _range(target, text)
    if not first:
        raise ValueError(f"{text!r}: a container has no port 0")
    entry: dict[str, Any] = {"mode": "ingress"}
    if address:
        entry["host_ip"] = address
    if not published:
        return [{**entry, "target": t, "protocol": protocol} for t in range(first, last + 1)]
    low, high = _range(published, text)
    if high - low == last - first:
        return [
            {**entry, "target": t, "published": str(low + t - first), "protocol": protocol}
            for t in range(first, last + 1)
        ]
    if first != last:
        raise ValueError(f"{text!r}: the ranges differ in length")
    return [{**entry, "target": first, "published": f"{low}-{high}", "protocol": protocol}]


def _address(head: str, text: str) -> tuple[str, str]:
    """Divide what stands before the target into host address and published port."""
    if head.startswith("["):
        address, bracket, rest = head[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError(f"{text!r}: expected [ADDRESS]:PORT")
        return address, rest[1:]
    address, _, published = head.rpartition(":")
    return address, published


def _range(text: str, whole: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdecimal() or (high and not high.isdecimal()) or text.endswith("-"):
        raise ValueError(f"{whole!r}: {text!r} is no port or range of ports")
    first, last = int(low), int(high or low)
    if not (0 <= first <= last <= 65535):
        raise ValueError(f"{whole!r}: {text!r} is no port or range of ports within 0-65535")
    return first, last


def is_path(source: str) -> bool:
    """Is this volume source a path (a bind) and not the name of a volume?"""
    return source[:1] in (".", "/", "~", "\\") or source[1:3] in (":\\", ":/")


def clean(path: str) -> str:
    """A container path without `.`, `//` and a trailing slash; Windows paths stay as written."""
    return posixpath.normpath(path).replace("//", "/", 1) if "\\" not in path else path


def volume(text: str) -> dict[str, Any]:
    """`[SOURCE:]TARGET[:OPTION,...]` as the long form. A bind keeps its source as written."""
    parts = _split_volume(text)
    if any(not part.strip() for part in parts):
        raise ValueError(f"{text!r}: nothing between two colons")
    if len(parts) > 3:
        raise ValueError(f"{text!r}: too many colons")
    if len(parts) == 1:
        return {"type": "volume", "target": clean(parts[0]), "volume": {}}
    source, target = parts[0], parts[1]
    kind = "bind" if is_path(source) else "volume"
    entry: dict[str, Any] = {"type": kind, "source": source, "target": clean(target), kind: {}}
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option == "ro":
            entry["read_only"] = True
        elif option in PROPAGATIONS and kind == "bind":
            entry["bind"]["propagation"] = option
        elif option in ("z", "Z") and kind == "bind":
            entry["bind"]["selinux"] = option
        elif option == "nocopy" and kind == "volume":
            entry["volume"]["nocopy"] = True
    return entry


def _split_volume(text: str) -> list[str]:
    """At the colons, except the one of a Windows drive: one letter, then a colon."""
    parts, current = [], ""
    for index, letter in enumerate(text):
        drive = len(current) == 1 and current.isalpha() and current.isascii()
        if letter == ":" and not (drive and index + 1 < len(text)):
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current]


def host(text: str) -> list[str]:
    """`NAME=ADDRESS[,ADDRESS]` or `NAME:ADDRESS` as `NAME=ADDRESS` entries."""
    equals, colon = text.find("="), text.find(":")
    at = equals if equals >= 0 and (colon < 0 or equals < colon) else colon
    if at <= 0:
        raise ValueError(f"{text!r} is no NAME=ADDRESS")
    return hosts(text[:at], text[at + 1 :].split(","))


def hosts(name: str, addresses: list[str]) -> list[str]:
    """The entries of one name; addresses may be bracketed."""
    if not name or any(not a.strip() for a in addresses):
        raise ValueError(f"{name!r} has an empty address")
    return [f"{name}={a.strip().removeprefix('[').removesuffix(']')}" for a in addresses]


def device(text: str) -> dict[str, Any]:
    """`SOURCE[:TARGET[:PERMISSIONS]]` as the long form (a CDI name stays its source)."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(f"{text!r} is no SOURCE[:TARGET[:PERMISSIONS]]")
    source, target, permissions = parts[0], [*parts, ""][1] or parts[0], "rwm"
    if len(parts) == 3:
        permissions = parts[2]
    return {"source": source, "target": target, "permissions": permissions}
