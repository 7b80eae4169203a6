"""What this host is: collected once at the agent's start, from /proc, /sys and rtnetlink.

The node's id is random and written once; it is the node's identity, not the host's name, its
machine-id or its SSH key, which cloned machines share.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Iterable
from typing import Any

import orchestra
from orchestra.fabric.render import place
from orchestra.linux.netlink import Netlink, device_names
from orchestra.model.node import NodeFacts
from orchestra.model.paths import NodePaths
from orchestra.runtime.volumes import write_durably

PROTOCOL = 1
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def collect_facts(paths: NodePaths, fabric: str, problems: Iterable[str] = ()) -> NodeFacts:
    """Look at the host; `fabric` is the fabric's name, whose own devices are not the host's."""
    identity = _identity(paths)
    hostname = platform.node()
    addresses, routes = _network(place(fabric).uplink)
    machine = platform.machine()
    return NodeFacts(
        id=identity["id"],
        name=identity.get("name") or hostname,
        hostname=hostname,
        agent_version=orchestra.__version__,
        protocol=PROTOCOL,
        os="linux",
        architecture=ARCHITECTURES.get(machine, machine),
        kernel=platform.release(),
        cpus=float(len(os.sched_getaffinity(0))),
        memory=_memory(),
        cgroup_version=2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,
        addresses=addresses,
        routes=routes,
        problems=tuple(problems),
        boot_id=_read("/proc/sys/kernel/random/boot_id").strip(),
    )


def _identity(paths: NodePaths) -> dict[str, Any]:
    try:
        with open(paths.identity, encoding="utf-8") as file:
            known = json.load(file)
    except FileNotFoundError:
        known = {}
    if not known.get("id"):
        known = {**known, "id": secrets.token_hex(16)}
        write_durably(paths.identity, json.dumps(known).encode())
    return dict(known)


def _network(uplink: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the addresses and the destination prefixes of the host, without ours."""
    with Netlink() as netlink:
        names = device_names(netlink.links())
        held = [a for a in netlink.addresses(names) if a.device not in ("lo", uplink)]
        routed = [r.to for r in netlink.routes(names) if r.device != uplink]
    prefixes = [a.address for a in held if not a.address.endswith("/32")]
    routes = dict.fromkeys(to for to in (*routed, *prefixes) if to != "0.0.0.0/0")
    return tuple(a.address.split("/")[0] for a in held), tuple(routes)


def _memory() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
