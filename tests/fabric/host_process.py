"""A host of the lab: one process whose network namespace is the host's, driving a real Fabric.

Commands come as JSON lines on stdin, results go as JSON lines to stdout. Container namespaces stay
open in this process; tests reach them as /proc/<pid>/fd/<n>.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from typing import Any

import trio

from orchestra.fabric import apply
from orchestra.fabric.fabric import open_fabric
from orchestra.linux.netlink import Netlink
from orchestra.linux.nft import Nft
from orchestra.model.codec import from_json
from orchestra.model.errors import OrchestraError
from orchestra.model.fabric import FabricEndpoint, FabricState
from orchestra.model.paths import NodePaths


def die_after(calls: int) -> None:
    """Arrange to be killed in the middle of things: at the given call into the kernel."""
    left = [calls]

    def counted(original: Any) -> Any:
        def call(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return call

    Netlink.execute = counted(Netlink.execute)
    Nft.run = counted(Nft.run)


async def main(directory: str, name: str) -> None:
    lines = trio.wrap_file(sys.stdin)
    async with open_fabric(NodePaths(f"{directory}/s", f"{directory}/run"), name=name) as fabric:
        async for line in lines:
            command, arguments = json.loads(line)
            try:
                result = await do(fabric, command, arguments)
            except OrchestraError as error:
                result = {"error": str(error)}
            print(json.dumps(result), flush=True)


async def do(fabric: Any, command: str, arguments: dict[str, Any]) -> Any:
    state = from_json(FabricState, arguments["state"]) if "state" in arguments else None
    endpoints = [from_json(FabricEndpoint, e) for e in arguments.get("endpoints", ())]
    container = arguments.get("container", "")
    match command:
        case "apply":
            return list(await fabric.apply(state))
        case "changes":
            return list(await fabric.changes(state))
        case "attach":
            return await fabric.attach(container, endpoints, state)
        case "attach_to":
            await fabric.attach_to(container, arguments["namespace"], endpoints, state)
        case "detach":
            await fabric.detach(container, arguments.get("devices", ()))
        case "close":
            os.close(arguments["namespace"])
        case "resolver":
            await fabric.ensure_resolver()
        case "destroy":
            await fabric.destroy()
        case "die_after":
            die_after(arguments["calls"])
        case "dump":
            return await trio.to_thread.run_sync(partial(dump, fabric))
        case _:
            raise AssertionError(command)
    return None


def dump(fabric: Any) -> list[str]:
    """Everything of ours in the kernel, as sorted texts."""
    place = fabric._place
    inner = fabric._ensure_namespace()
    found = []
    for where, namespace, objects in (
        ("fabric", inner, apply.read_fabric(inner, ())),
        ("host", fabric._host, apply.read_host(fabric._host, (), place)),
    ):
        found += [f"{where} {o!r}" for o in objects.objects]
        found += [
            f"{where} {link.name} {link.mtu} {link.up} {link.vni} {link.local} {link.port}"
            for link in namespace.netlink.links()
        ]
        listing = namespace.nft.table("inet", place.table)
        found.append(apply._COUNTER.sub("", listing))
    return sorted(found)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
