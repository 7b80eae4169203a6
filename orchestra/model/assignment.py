"""An assignment: one node's whole share of the desired state, under a rising generation.

It travels and is stored in sections (`cluster`, `tasks`, `network/<id>`, `published`, `stacks`),
each with the digest of its canonical JSON, so that only sections that changed are sent and the
cost does not grow with nodes x endpoints. `sections` and `from_sections` are that mapping, pure
and exact: ``from_sections(sections(a)) == a``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from orchestra.model.codec import from_json, to_json
from orchestra.model.container import ContainerSpec

FORMAT = 1


@frozen
class Peer:
    """A node as the fabric sees it; `index` is 1..4095 and never reused within a cluster."""

    index: int
    id: str
    name: str
    underlay: str


@frozen
class ClusterNet:
    """`range` holds every network of the cluster; its first /16 the node addresses.

    With range B: H_n (host side of node n) is B + n, F_n (its fabric side) B + 0x8000 + n.
    """

    id: str
    range: str  # "10.16.0.0/12"
    vni: int
    port: int = 8470
    self_index: int = 0
    peers: tuple[Peer, ...] = ()  # all nodes, this one too


@frozen
class AssignedTask:
    """A task that this node shall run, or shall stop (`stop`: drained, then ended)."""

    id: str
    stack: str
    service: str
    slot: str  # "web.3"; of a global service "web.<node name>"
    name: str  # the container's name
    spec: ContainerSpec  # complete: addresses and the content of configs and secrets are in it
    image_manifest: str = ""  # digest of the image's manifest
    stop: bool = False
    restart_token: int = 0  # raised by `orchestra restart`


@frozen
class EndpointState:
    """A task's address in a network, as every member of the network must know it."""

    task: str
    slot: str
    container_name: str
    node: int
    address: str
    aliases: tuple[str, ...] = ()
    serving: bool = True  # healthy and not draining: in the VIP's map and the service's name


@frozen
class NetworkService:
    """A service in one network: its virtual address and the endpoints behind it."""

    stack: str
    service: str
    vip: str  # "": dnsrr
    aliases: tuple[str, ...] = ()
    endpoints: tuple[EndpointState, ...] = ()


@frozen
class AssignedNetwork:
    id: str
    name: str
    subnet: str
    gateway: str
    internal: bool = False
    blocks: Mapping[int, str] = field(factory=dict)  # node index -> block
    services: tuple[NetworkService, ...] = ()


@frozen
class Published:
    """A port that nodes answer; `targets` are "address" texts of serving endpoints.

    `node` 0: every node (ingress); else only the node of that index (host mode).
    """

    protocol: str
    port: int
    target: int
    service: str
    host_ip: str = ""
    node: int = 0
    targets: tuple[str, ...] = ()


@frozen
class Assignment:
    generation: int
    cluster: ClusterNet
    tasks: tuple[AssignedTask, ...] = ()
    networks: tuple[AssignedNetwork, ...] = ()
    published: tuple[Published, ...] = ()
    stacks: Mapping[str, Any] = field(factory=dict)  # last stack revisions, for `cluster adopt`


def _digest(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sections(assignment: Assignment) -> dict[str, Any]:
    """Return the bodies of the assignment's sections by name; the generation is not in them."""
    out = {
        "cluster": to_json(assignment.cluster),
        "tasks": to_json(assignment.tasks),
        "published": to_json(assignment.published),
        "stacks": to_json(assignment.stacks),
    }
    for network in assignment.networks:
        out[f"network/{network.id}"] = to_json(network)
    return out


def digests(bodies: Mapping[str, Any]) -> dict[str, str]:
    """Digest of each section's canonical JSON."""
    return {name: _digest(body) for name, body in bodies.items()}


def from_sections(generation: int, bodies: Mapping[str, Any]) -> Assignment:
    """Rebuild an assignment. Raises CodecError naming the section and key that does not fit."""
    return Assignment(
        generation=generation,
        cluster=from_json(ClusterNet, bodies["cluster"], "cluster"),
        tasks=tuple(
            from_json(AssignedTask, t, f"tasks[{i}]") for i, t in enumerate(bodies["tasks"])
        ),
        networks=tuple(
            from_json(AssignedNetwork, body, name)
            for name, body in sorted(bodies.items())
            if name.startswith("network/")
        ),
        published=tuple(
            from_json(Published, p, f"published[{i}]") for i, p in enumerate(bodies["published"])
        ),
        stacks=bodies.get("stacks", {}),
    )
