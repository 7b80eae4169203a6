"""Hosts become nodes, and a node becomes the controller's home: over SSH, with nothing there yet.

Everything on the host is done by host.py, sent as text; this module decides in which order, says
what failed and why, and undoes what it began. Law: a host that was no node before a failed
`add_node` is none after it, and adding again is the upgrade: containers run on.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import attrs
import trio
from attrs import frozen

from orchestra.controller.package import (
    Archive,
    Platform,
    agent_archive,
    controller_archive,
)
from orchestra.controller.reach import ssh_target
from orchestra.model.codec import from_json, to_json
from orchestra.model.errors import Conflict, Failed, Invalid, Unavailable
from orchestra.model.node import InventoryNode, NodeFacts
from orchestra.model.paths import NodePaths
from orchestra.transport.errors import HostKeyUnknown, TransportError
from orchestra.transport.ssh import SshConnection, connect

CONTROLLER_STATE = "/var/lib/orchestra/controller"
CONTROLLER_SOCKET = NodePaths().controller_socket
CONTROLLER_KEY = f"{CONTROLLER_STATE}/id_ed25519"
CONTROLLER_CONFIG = f"{CONTROLLER_STATE}/config.json"

Report = Callable[[str], None]
Trust = Callable[[str, str], bool]  # (key line, fingerprint) of an unknown host: is it that one?

# Exit codes of the login shell's part, before Python runs.
NO_PYTHON, NO_ROOT = 42, 43

# Finds a Python and root rights, then hands stdin to host.py, whose length is the first argument.
SHELL = """exec sh -c '
s=; if [ "$(id -u)" != 0 ]; then sudo -n true 2>/dev/null || exit 43; s="sudo -n"; fi
for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3 \
  /opt/*/bin/python3; do
  p=$(command -v "$p" 2>/dev/null) || continue
  if "$p" -I -S -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
    exec $s "$p" -I -S -c "import sys; source = sys.stdin.buffer.read({length})
exec(compile(source, \\"host.py\\", \\"exec\\")); serve()"
  fi
done
exit 42'"""

INSTALL_PYTHON = """exec sh -c '
s=; if [ "$(id -u)" != 0 ]; then s="sudo -n"; fi
if command -v apt-get >/dev/null; then $s apt-get update; $s apt-get install -y python3
elif command -v dnf >/dev/null; then $s dnf install -y python3
elif command -v apk >/dev/null; then $s apk add python3
else echo "no apt-get, dnf or apk here" >&2; exit 1
fi'"""


@frozen
class Added:
    """A host that is a node now; `node` has its host key and its underlay filled in."""

    node: InventoryNode
    facts: NodeFacts
    version: str
    upgraded: bool  # it was a node already


@frozen
class Looked:
    """What host.py's `check` saw."""

    platform: Platform
    python: str
    node: Mapping[str, str] | None
    interfaces: Mapping[str, str]
    versions: Mapping[str, Sequence[str]]
    problems: Sequence[Mapping[str, str]]


class Host:
    """A login on a host that is, was or becomes a node."""

    def __init__(self, node: InventoryNode, connection: SshConnection) -> None:
        self.node = node
        self.connection = connection

    async def ask(self, *requests: Mapping[str, Any], payload: bytes = b"") -> list[Any]:
        """Run host.py with these requests, in order, as root; their answers.

        Unavailable where the host has no Python or no root for us, Failed with host.py's own
        words where a request is refused.
        """
        script = resources.files("orchestra.controller").joinpath("host.py").read_bytes()
        command = SHELL.format(length=len(script))
        stdin = script + json.dumps(requests).encode() + b"\n" + payload
        name = self.node.name
        done = await self.connection.run(command, stdin)
        if done.exit_status == NO_PYTHON:
            raise Unavailable(
                f"no Python 3.11 or newer on {name} ({self.node.address}); install it there "
                "(apt-get install python3, dnf install python3.11, apk add python3) or let "
                "`orchestra node add --install` try"
            )
        if done.exit_status == NO_ROOT:
            raise Unavailable(
                f"{self.node.user}@{self.node.address} is not root on {name} and may not use sudo "
                "without a password; log in as root, or allow it in /etc/sudoers.d"
            )
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.exit_status or not lines:
            words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"{name}: {' '.join(words) or f'exit status {done.exit_status}'}")
        answers = json.loads(lines[-1])
        if "error" in answers[-1]:
            raise Failed(f"{name}: {answers[-1]['error']}")
        return list(answers)

    async def look(self) -> Looked:
        (seen,) = await self.ask({"do": "check"})
        return Looked(
            platform=Platform(*seen["platform"]),
            python=seen["python"],
            node=seen["node"],
            interfaces=seen["interfaces"],
            versions=seen["versions"],
            problems=seen["problems"],
        )

    async def push(self, role: str, archive: Archive, there: Sequence[str]) -> None:
        """Bring the archive to the host unless it has it."""
        if archive.version in there:
            return
        request = {"do": "unpack", "role": role, "version": archive.version, "needs": archive.needs}
        await self.ask(request, payload=archive.data)


@asynccontextmanager
async def open_host(node: InventoryNode) -> AsyncIterator[Host]:
    """Log in at a node's host. Unavailable, with the transport's words, where that fails."""
    try:
        async with connect(ssh_target(node)) as connection:
            yield Host(node, connection)
    except TransportError as error:
        raise Unavailable(f"cannot reach {node.name}: {error}") from error


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
            return attrs.evolve(node, host_key=error.key)
        raise Unavailable(f"cannot add {node.name}: {error}") from None
    except TransportError as error:
        raise Unavailable(f"cannot reach {node.name}: {error}") from error


def trust_nobody(key: str, fingerprint: str) -> bool:
    return False


# --- nodes ----------------------------------------------------------------------------------


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
            await _install_python(host)
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
                with trio.move_on_after(30, shield=True):
                    await _undo(host, controller_key, report)
            raise
        report("agent answers")
        facts = from_json(NodeFacts, started["answer"], f"facts of {node.name}")
        return Added(attrs.evolve(node, underlay=underlay), facts, archive.version, upgraded)


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


async def _install_python(host: Host) -> None:
    done = await host.connection.run(INSTALL_PYTHON)
    if done.exit_status:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-2:]
        raise Unavailable(f"cannot install Python on {host.node.name}: {' '.join(words)}")


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

    An interface's name is resolved; without a wish the SSH address counts where it is one of the
    host's own, else (behind NAT, or reached by name) its only address.
    """
    if node.underlay in interfaces:
        return interfaces[node.underlay]
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


# --- the controller's home ------------------------------------------------------------------


def key_comment(cluster: str) -> str:
    """Marks the controller's key in the nodes' authorized_keys."""
    return f"orchestra-controller-{cluster}"


def as_seen_by_controller(node: InventoryNode) -> InventoryNode:
    """The same node, reached with the controller's own key."""
    return attrs.evolve(node, identity=CONTROLLER_KEY)


async def authorize(node: InventoryNode, key: str) -> None:
    """Let the controller's key in on a node."""
    async with open_host(node) as host:
        await host.ask({"do": "authorize", "user": node.user, "key": key})


async def install_controller(
    cluster: str,
    home: InventoryNode,
    nodes: Sequence[InventoryNode],
    *,
    report: Report = lambda text: None,
) -> str:
    """Make `home` the controller's home, reaching all `nodes` with a key of its own; that key.

    Again: the upgrade. Failed carries the controller's last words where it does not start.
    """
    async with open_host(home) as host:
        looked = await host.look()
        archive = await trio.to_thread.run_sync(controller_archive, looked.platform)
        report(f"installing controller {archive.version} on {home.name}")
        await host.push("controller", archive, looked.versions["controller"])
        (made,) = await host.ask({"do": "make_key", "comment": key_comment(cluster)})
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(authorize, node, made["key"])
        report(f"authorized its key on {len(nodes)} nodes")
        await host.ask(
            _config(cluster, nodes),
            {
                "do": "start",
                "role": "controller",
                "words": f"serve-controller --config {CONTROLLER_CONFIG}",
                "version": archive.version,
                "socket": CONTROLLER_SOCKET,
                "path": "/orchestra/v1/info",
            },
        )
        report("controller answers")
        return str(made["key"])


def _config(cluster: str, nodes: Sequence[InventoryNode]) -> dict[str, str]:
    config = {
        "name": cluster,
        "role": "daemon",
        "state_dir": f"{CONTROLLER_STATE}/state",
        "socket": CONTROLLER_SOCKET,
        "inventory": [to_json(as_seen_by_controller(node)) for node in nodes],
    }
    content = base64.b64encode(json.dumps(config, indent=2).encode()).decode()
    return {"do": "put_file", "path": "controller/config.json", "content": content}


async def uninstall_controller(
    cluster: str, home: InventoryNode, nodes: Sequence[InventoryNode]
) -> list[str]:
    """End the controller and take its key back everywhere; nodes that could not be asked."""
    async with open_host(home) as host:
        await host.ask({"do": "stop", "role": "controller"})
    unreached: list[str] = []

    async def take_back(node: InventoryNode) -> None:
        try:
            async with open_host(node) as host:
                await host.ask(
                    {"do": "withdraw", "user": node.user, "comment": key_comment(cluster)}
                )
        except (Unavailable, Failed):
            unreached.append(node.name)

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(take_back, node)
    return sorted(unreached)
