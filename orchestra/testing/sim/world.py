"""World: hosts with fake agents, the wires to them, and one controller, in virtual time.

Run it under `trio.testing.MockClock(autojump_threshold=0)`. A host can be killed, booted, cut off
and healed; a cut wire carries nothing and says nothing, as a real one. The controller can be
killed and started again on its store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio
from attrs import evolve, frozen

from orchestra.api.server import agent_app
from orchestra.controller.controller import Controller
from orchestra.controller.link import NodeConnection
from orchestra.controller.store import SqliteStore
from orchestra.image.images import Images
from orchestra.image.ship import Receiver
from orchestra.model.cluster import StackPhase
from orchestra.model.container import Image, ImageConfig
from orchestra.model.node import InventoryNode, NodeFacts
from orchestra.model.service import Stack
from orchestra.testing.sim.agent import FakeAgent
from orchestra.transport.errors import ChannelRefused, Unreachable
from orchestra.transport.memory import MemoryListener
from orchestra.wire.server import serve_http

EPOCH = 1_700_000_000.0  # Unix time at virtual second 0
MANIFEST = "sha256:" + "a" * 64
IMAGE_ID = "sha256:" + "b" * 64
PATIENCE = 3.0  # seconds for a host to take a connection, as in controller/main.py
DELAY = 0.001  # seconds that a wire adds to each piece


class Host:
    """One machine: its disk (the agent's assignment), whether it has power, and its wire."""

    def __init__(self, index: int, nursery: trio.Nursery) -> None:
        self.name = f"node-{index}"
        self.inventory = InventoryNode(self.name, f"192.0.2.{index}")
        self.agent = FakeAgent(_facts(index))
        self.on = False
        self.agent_on = False
        self.wire = trio.Event()  # set: carries
        self.wire.set()
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._listener = MemoryListener()
        self.broken = trio.Event()  # streams through the present wire end when it is set

    @property
    def reachable(self) -> bool:
        return self.on and self.wire.is_set()

    def boot(self) -> None:
        self.on = True
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._machine, self._scope)

    def kill(self) -> None:
        """Power off: everything in memory is gone, nobody says goodbye."""
        self.on = self.agent_on = False
        self._scope.cancel()

    def cut(self) -> None:
        if self.wire.is_set():
            self.wire = trio.Event()

    def heal(self) -> None:
        self.wire.set()

    def silence(self) -> None:
        """The agent dies; the host, and what runs on it, goes on."""
        self.agent_on = False
        self.lose_streams()

    def speak(self) -> None:
        """The agent is back, if its host has power."""
        self.agent_on = self.on

    def lose_streams(self) -> None:
        """Break every stream to the host; what was on its way is lost."""
        self.broken.set()
        self.broken = trio.Event()

    async def _machine(self, scope: trio.CancelScope) -> None:
        with scope:
            self._listener = MemoryListener()
            app = agent_app(cast(Any, self.agent), cast(Any, self.agent))
            async with trio.open_nursery() as nursery:
                self.agent_on = True
                nursery.start_soon(self.agent.run)
                nursery.start_soon(partial(serve_http, cast(Any, [self._listener]), app))

    async def open(self) -> trio.abc.HalfCloseableStream:
        await self.wire.wait()
        if not self.on:
            await trio.sleep_forever()  # a dead host answers nothing
        if not self.agent_on:
            raise ChannelRefused(f"{self.name}: nothing listens")
        return Wire(self, await self._listener.connect())


class Wire(trio.abc.HalfCloseableStream):
    """A stream to a host that stops carrying when the host is cut off or dies."""

    def __init__(self, host: Host, stream: trio.abc.HalfCloseableStream) -> None:
        self._host = host
        self._stream = stream
        self._broken = host.broken
        self._scope_of_host = host._scope

    async def _carry(self) -> None:
        await trio.sleep(DELAY)
        await self._host.wire.wait()
        if self._broken.is_set():
            raise trio.BrokenResourceError("the connection was reset")
        if self._scope_of_host.cancel_called:
            await trio.sleep_forever()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._carry()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        lost = False

        async def watch(scope: trio.CancelScope, broken: trio.Event) -> None:
            nonlocal lost
            await broken.wait()
            lost = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope, self._broken)
            data = bytes(await self._stream.receive_some(max_bytes))
            nursery.cancel_scope.cancel()
        if lost:
            raise trio.BrokenResourceError("the connection was reset")
        await self._carry()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@frozen
class _Login:
    host: Host

    async def open_agent(self) -> trio.abc.HalfCloseableStream:
        return await self.host.open()


class World:
    """`hosts` by name; `controller` is the one that runs now."""

    def __init__(self, nursery: trio.Nursery, directory: str, nodes: int) -> None:
        self.nursery = nursery
        self.directory = directory
        self.hosts = {f"node-{i}": Host(i, nursery) for i in range(1, nodes + 1)}
        self.controller: Controller | None = None
        self._scope = trio.CancelScope()
        self._stores = 0

    async def start_controller(self, fresh_store: bool = False) -> Controller:
        """Start a controller on the store (or on a new one, as if the old was lost)."""
        self._stores += fresh_store
        self._scope = trio.CancelScope()
        controller = Controller(
            SqliteStore(f"{self.directory}/{self._stores}/controller.db"),
            cast(Images, OneImage()),
            self.connect,
            name="sim",
            cluster_id=f"{self._stores + 1:032x}",
            role="daemon",
            clock=now,
            ship=ship_at_once,
        )
        self.controller = controller
        inventory = [host.inventory for host in self.hosts.values()]
        await self.nursery.start(self._run, controller, inventory)
        return controller

    async def _run(
        self,
        controller: Controller,
        inventory: Sequence[InventoryNode],
        task_status: trio.TaskStatus[None],
    ) -> None:
        with self._scope:
            await controller.run(inventory, task_status)

    def kill_controller(self) -> None:
        self._scope.cancel()

    @asynccontextmanager
    async def connect(self, node: InventoryNode) -> AsyncIterator[NodeConnection]:
        """Log in at a host; given up where it is dead or cut off."""
        host = self.hosts[node.name]
        with trio.move_on_after(PATIENCE) as patience:
            await host.wire.wait()
            if not host.on:
                await trio.sleep_forever()
        if patience.cancelled_caught:
            raise Unreachable(f"{node.name}: no answer within {PATIENCE:g} s")
        await trio.sleep(DELAY)
        if not host.on:
            raise Unreachable(f"{node.name} hung up")
        yield _Login(host)

    def running(self, reachable: bool = False) -> list[tuple[str, str]]:
        """(slot, host) of every task with a process, maybe on reachable hosts only."""
        return sorted(
            (task.slot, host.name)
            for host in self.hosts.values()
            if host.on and (host.reachable or not reachable)
            for task in host.agent.running().values()
        )

    async def up(self, stack: Stack) -> StackPhase:
        """Apply a stack and wait for its progress to end; how it ended."""
        assert self.controller is not None
        await self.controller.apply(stack)
        return await self.follow(stack.name)

    async def follow(self, name: str) -> StackPhase:
        assert self.controller is not None
        phase = StackPhase.CONVERGING
        async for line in self.controller.progress(name):
            phase = line.phase
        return phase


class OneImage:
    """The controller's store in a world of one image under every name."""

    def get(self, ref: str) -> Image:
        config = ImageConfig(cmd=("serve",), env=("PATH=/bin",))
        return Image(IMAGE_ID, MANIFEST, (ref,), architecture="amd64", config=config)


async def ship_at_once(
    images: Images,
    manifest_digest: str,
    names: Sequence[str],
    to: Receiver,
    report: Callable[[int, int], None],
) -> None:
    report(0, 1)
    await to.put_image(manifest_digest, names)


def now() -> float:
    return EPOCH + trio.current_time()


@asynccontextmanager
async def open_world(directory: str, nodes: int = 3) -> AsyncIterator[World]:
    """A world with all hosts on and a controller running."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, directory, nodes)
        for host in world.hosts.values():
            host.boot()
        await world.start_controller()
        try:
            yield world
        finally:
            nursery.cancel_scope.cancel()


def _facts(index: int) -> NodeFacts:
    return NodeFacts(
        id=f"{index:064x}",
        name=f"node-{index}",
        hostname=f"host-{index}",
        agent_version="0",
        protocol=1,
        os="linux",
        architecture="amd64",
        kernel="6.1",
        cpus=4.0,
        memory=8 << 30,
        cgroup_version=2,
        addresses=(f"192.0.2.{index}",),
    )


def labelled(host: Host, **labels: str) -> None:
    """Give a host labels, before the controller starts."""
    host.inventory = evolve(host.inventory, labels=labels)
