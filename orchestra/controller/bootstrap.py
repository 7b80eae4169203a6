"""Hosts become nodes, and plain hosts again: over SSH, with nothing there yet.

Everything on the host is done by the package `host`; this module decides in which order, says what
failed and why, and undoes what it began. Law: a host that was no node before a failed `add_node`
is none after it, and adding again is the upgrade: containers run on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from attrs import evolve, frozen

from orchestra.controller.login import FAREWELL, Host, Looked, Report, open_host
from orchestra.controller.package import agent_archive
from orchestra.controller.reach import ssh_target
from orchestra.model.codec import from_json
from orchestra.model.errors import Conflict, Failed, Invalid, Unavailable
from orchestra.model.node import InventoryNode, NodeFacts
from orchestra.model.paths import NodePaths
from orchestra.transport.errors import HostKeyUnknown, TransportError
from orchestra.transport.ssh import connect

Trust = Callable[[str, str], bool]  # (key line, fingerprint) of an unknown host: is it that one?


@frozen
class Added:
    """A host that is a node now; `node` has its host key and its underlay filled in."""

    node: InventoryNode
    facts: NodeFacts
    version: str
    upgraded: bool  # it was a node already


async def with_host_key(node: InventoryNode, trust: Trust) -> InventoryNode:
    """The node with a pinned host key: its own, or the one it shows where `trust` says yes.

    `trust` may take its time (it asks people): no connection waits for it meanwhile.
    """
    if node.host_key:
        return node
    try:
        async with connect(ssh_target(node)):
            raise AssertionError("a host without a pinned key was let in")
    except HostKeyUnknown as error:
        if trust(error.key, error.fingerprint):
            return evolve(node, host_key=error.key)
        raise Unavailable(f"cannot add {node.name}: {error}") from None
    except TransportError as error:
        raise Unavailable(f"cannot reach {node.name}: {error}") from error


def trust_nobody(key: str, fingerprint: str) -> bool:
    return False


async def add_node(
    node: InventoryNode,
    known: Sequence[InventoryNode] = (),
    *,
    trust: Trust = trust_nobody,
    controller_key: str = "",
    install: bool = False,
    report: Report = lambda text: None,
) -> Added:
    """Make the host of `node` a node, or bring its agent up to date; `known` are its peers.

    `controller_key` is the public key line of a controller that shall be let in.
    Raises Unavailable (host, key, Python, root or a kernel feature missing, each with its
    remedy), Conflict (another node's host, id or underlay), Failed (the agent does not start).
    """
    node = await with_host_key(node, trust)
    async with open_host(node) as host:
        try:
            looked = await host.look()
        except Unavailable:
            if not install:
                raise
            report("installing Python")
            await host.install_python()
            looked = await host.look()
        looked = await _repair(host, looked, install, report)
        _refuse_other_identity(node, looked)
        underlay = find_underlay(node, looked.interfaces)
        refuse_same_underlay(node.name, underlay, known)
        upgraded = looked.node is not None and bool(looked.versions["agent"])
        try:
            archive = await trio.to_thread.run_sync(agent_archive, looked.platform)
            report(f"{'upgrading to' if upgraded else 'installing'} agent {archive.version}")
            await host.push("agent", archive, looked.versions["agent"])
            let_in = {"do": "authorize", "user": node.user, "key": controller_key}
            *_, started = await host.ask(
                *([let_in] if controller_key else []),
                {"do": "identify", "name": node.name},
                {
                    "do": "start",
                    "role": "agent",
                    "words": "agent",
                    "version": archive.version,
                    "socket": NodePaths().agent_socket,
                    "path": "/orchestra/v1/node",
                },
            )
        except BaseException:
            if not upgraded:
                with trio.move_on_after(FAREWELL, shield=True):
                    await _undo(host, controller_key, report)
            raise
        report("agent answers")
        facts = from_json(NodeFacts, started["answer"], f"facts of {node.name}")
        return Added(evolve(node, underlay=underlay), facts, archive.version, upgraded)


async def _undo(host: Host, controller_key: str, report: Report) -> None:
    """Leave the host as it was; where even that fails, the first error is the one to tell."""
    requests: list[Mapping[str, Any]] = [{"do": "uninstall", "purge": True}]
    if controller_key:
        comment = controller_key.split()[2]
        requests.append({"do": "withdraw", "user": host.node.user, "comment": comment})
    try:
        await host.ask(*requests)
    except (Failed, Unavailable, TransportError) as error:
        report(f"could not undo what was begun ({error}); `orchestra node rm --purge` later")


async def _repair(host: Host, looked: Looked, install: bool, report: Report) -> Looked:
    """Fetch missing packages where allowed. Unavailable lists what is missing, with remedies."""
    packages = sorted({p["package"] for p in looked.problems if p["package"]})
    if packages and install:
        report(f"installing {' '.join(packages)}")
        await host.ask({"do": "fetch", "packages": packages})
        looked = await host.look()
    if looked.problems:
        listed = "".join(f"\n  {p['what']}: {p['remedy']}" for p in looked.problems)
        hint = "\n`--install` fetches the packages" if packages and not install else ""
        raise Unavailable(f"{host.node.name} lacks what a node needs:{listed}{hint}")
    return looked


def _refuse_other_identity(node: InventoryNode, looked: Looked) -> None:
    known = looked.node.get("name") if looked.node else None
    if looked.node is None or known in (None, node.name):
        return
    raise Conflict(
        f"{node.address} is a node already: {known} (id {looked.node['id'][:12]}). To rename it: "
        f"`orchestra node rm {known}` first. If the machine is a clone of that node: remove "
        "/var/lib/orchestra/node.json on the copy, then add it again"
    )


def find_underlay(node: InventoryNode, interfaces: Mapping[str, str]) -> str:
    """The address that other nodes reach the host by.

    An interface's name and a subnet are resolved to the host's address there; without a wish the
    SSH address counts where it is one of the host's own, else (behind NAT, or reached by name) its
    only address.
    """
    if node.underlay in interfaces:
        return interfaces[node.underlay]
    if "/" in node.underlay:
        return _in_subnet(node, interfaces)
    if node.underlay:
        try:
            return str(ipaddress.ip_address(node.underlay))
        except ValueError:
            raise Invalid(
                f"{node.name} has no interface {node.underlay!r}; it has {_listed(interfaces)}"
            ) from None
    if node.address in interfaces.values():
        return node.address
    own = {a for device, a in interfaces.items() if not device.startswith(("docker", "orc", "br-"))}
    if len(own) == 1:
        return own.pop()
    raise Invalid(
        f"cannot tell which address other nodes reach {node.name} by: {node.address} is none of "
        f"its own ({_listed(interfaces)}); say it with --underlay ADDRESS or --underlay INTERFACE"
    )


def _in_subnet(node: InventoryNode, interfaces: Mapping[str, str]) -> str:
    try:
        subnet = ipaddress.ip_network(node.underlay)
    except ValueError as error:
        raise Invalid(f"underlay {node.underlay!r} of {node.name} is no subnet: {error}") from None
    found = [a for a in interfaces.values() if ipaddress.ip_address(a) in subnet]
    if len(found) != 1:
        count = "several addresses" if found else "no address"
        raise Invalid(
            f"{node.name} has {count} in the underlay subnet {subnet}; it has "
            f"{_listed(interfaces)}; say it with --underlay"
        )
    return found[0]


def _listed(interfaces: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {address}" for name, address in interfaces.items()) or "no address"


def refuse_same_underlay(name: str, underlay: str, known: Sequence[InventoryNode]) -> None:
    for other in known:
        if other.name != name and other.underlay == underlay:
            raise Conflict(
                f"{name} and {other.name} would both have the underlay address {underlay}; give "
                "one of them its own with --underlay, or remove the other if it is the same host"
            )


async def remove_host(
    node: InventoryNode, *, purge: bool, comment: str = "", report: Report = lambda text: None
) -> None:
    """Make the node's host a plain host again: no agent, container or network of ours.

    Volumes and images stay unless `purge`. `comment` names the controller's key to take back.
    """
    async with open_host(node) as host:
        report("stopping the agent and its containers")
        requests: list[Mapping[str, Any]] = [{"do": "uninstall", "purge": purge}]
        if comment:
            requests.insert(0, {"do": "withdraw", "user": node.user, "comment": comment})
        await host.ask(*requests)
