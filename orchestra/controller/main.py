"""The controller's process: its store, its images, its socket, around one `Controller`.

As a daemon on a node it runs until it is told to stop; as the CLI's session it also ends by
itself after a while without requests. Either way the nodes are left exactly as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from attrs import evolve, frozen

from orchestra.api.server import controller_app, serve_unix
from orchestra.controller.controller import Controller
from orchestra.controller.link import NodeConnection
from orchestra.controller.reach import ssh_target
from orchestra.controller.store import SqliteStore
from orchestra.controller.usage import Usage
from orchestra.image.images import Images
from orchestra.model.codec import from_json
from orchestra.model.node import InventoryNode
from orchestra.model.paths import NodePaths
from orchestra.transport.ssh import SshConnection, connect, ssh_loop

log = logging.getLogger(__name__)

AGENT_SOCKET = NodePaths().agent_socket
PATIENCE = 3.0  # seconds to TCP: a host that was cut off is tried again soon after it is back


@frozen
class ControllerConfig:
    """`idle_exit` is seconds without a request after which a session ends (None: never)."""

    name: str
    state_dir: str
    socket: str
    role: str = "session"  # or "daemon"
    inventory: tuple[InventoryNode, ...] = ()
    idle_exit: float | None = None


async def serve_controller(
    config: ControllerConfig, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve a cluster's controller on its socket until cancelled or idle.

    Raises Unavailable where the store or the socket cannot be opened.
    """
    os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    store = SqliteStore(os.path.join(config.state_dir, "controller.db"))
    try:
        async with ssh_loop(), trio.open_nursery() as nursery:
            controller = Controller(
                store,
                Images(os.path.join(config.state_dir, "images")),
                ssh_connect,
                name=config.name,
                cluster_id=secrets.token_hex(16),
                role=config.role,
            )
            await nursery.start(controller.run, config.inventory)
            use = Usage()
            app = use.counted(controller_app(controller))
            await nursery.start(partial(serve_unix, config.socket, app))
            task_status.started()
            if config.idle_exit is not None:
                await use.idle(config.idle_exit)
                log.info("no request for %g s: the session ends", config.idle_exit)
                nursery.cancel_scope.cancel()
    finally:
        store.close()


@asynccontextmanager
async def ssh_connect(node: InventoryNode) -> AsyncIterator[NodeConnection]:
    """Log in at a node; its pinned key is required."""
    async with connect(ssh_target(node), patience=PATIENCE) as connection:
        yield _AgentOverSsh(connection)


@frozen
class _AgentOverSsh:
    connection: SshConnection

    async def open_agent(self) -> trio.abc.HalfCloseableStream:
        return await self.connection.open_unix(AGENT_SOCKET)


def main(argv: Sequence[str]) -> int:
    """`orchestra serve-controller --config FILE`: the daemon, from a ControllerConfig in JSON."""
    parser = argparse.ArgumentParser(prog="orchestra serve-controller")
    parser.add_argument("--config", required=True, metavar="FILE")
    args = parser.parse_args(argv)
    with open(args.config, encoding="utf-8") as file:
        config = from_json(ControllerConfig, json.load(file))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    trio.run(_until_signalled, evolve(config, role="daemon"))
    return 0


async def _until_signalled(config: ControllerConfig) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_controller, config)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
