"""A node as the controller's home: the daemon, its own key, and who lets that key in.

Law: a failed installation takes back what was not there before; doing it again is the upgrade.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from contextlib import suppress

import trio
from attrs import evolve

from orchestra.controller.login import FAREWELL, Report, open_host
from orchestra.controller.package import controller_archive
from orchestra.model.codec import to_json
from orchestra.model.errors import Failed, Unavailable
from orchestra.model.node import InventoryNode
from orchestra.model.paths import NodePaths

STATE = "/var/lib/orchestra/controller"
SOCKET = NodePaths().controller_socket
KEY = f"{STATE}/id_ed25519"
CONFIG = f"{STATE}/config.json"


def key_comment(cluster: str) -> str:
    """Marks the controller's key in the nodes' authorized_keys."""
    return f"orchestra-controller-{cluster}"


def as_seen_by_controller(node: InventoryNode) -> InventoryNode:
    """The same node, reached with the controller's own key.

    A loopback address is a port that the operator's machine forwards (a virtual machine behind
    NAT): from another node it is reached at its underlay address, where sshd has its own port.
    """
    if is_loopback(node.address) and node.underlay:
        return evolve(node, identity=KEY, address=node.underlay, port=22)
    return evolve(node, identity=KEY)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


async def install_controller(
    cluster: str,
    home: InventoryNode,
    nodes: Sequence[InventoryNode],
    *,
    report: Report = lambda text: None,
) -> str:
    """Make `home` the controller's home, reaching all `nodes` with a key of its own; that key.

    Failed carries the controller's last words where it does not start.
    """
    authorized: list[InventoryNode] = []

    async def authorize(node: InventoryNode, key: str) -> None:
        async with open_host(node) as host:
            await host.ask({"do": "authorize", "user": node.user, "key": key})
        authorized.append(node)

    async with open_host(home) as host:
        looked = await host.look()
        upgraded = bool(looked.versions["controller"])
        try:
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
                    "words": f"serve-controller --config {CONFIG}",
                    "version": archive.version,
                    "socket": SOCKET,
                    "path": "/orchestra/v1/info",
                },
            )
        except BaseException:
            if not upgraded:
                with trio.move_on_after(FAREWELL, shield=True):
                    with suppress(Unavailable, Failed):  # the first failure is the one to tell
                        await uninstall_controller(cluster, home, authorized)
            raise
        report("controller answers")
        return str(made["key"])


def _config(cluster: str, nodes: Sequence[InventoryNode]) -> dict[str, str]:
    config = {
        "name": cluster,
        "role": "daemon",
        "state_dir": f"{STATE}/state",
        "socket": SOCKET,
        "inventory": [to_json(as_seen_by_controller(node)) for node in nodes],
    }
    return {
        "do": "put_file",
        "path": "controller/config.json",
        "text": json.dumps(config, indent=2),
    }


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
