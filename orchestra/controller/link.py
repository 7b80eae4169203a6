"""One supervised connection to one node: connect, hear it, push to it, notice its silence.

Three things can fail and are told apart. The agent is silent: the host still opens (or refuses)
channels, the node is *not ready* and nothing is moved. The connection broke: it is made again. The
host cannot be reached for `LEASE` seconds: the node is *down*. A link never decides what to push;
it brings the node to the last assignment it was given, sending only sections that differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio
from attrs import frozen

from orchestra.api.client import NodeClient
from orchestra.model.errors import Conflict, OrchestraError, Unavailable
from orchestra.model.node import InventoryNode, NodeState, Observed
from orchestra.transport.errors import ChannelRefused, TransportError

log = logging.getLogger(__name__)

LEASE = 4.0  # seconds without an answer of the host after which a node is down
POLL = 1.0  # seconds that a node may let a report wait when nothing changes
PATIENCE = 1.0  # seconds beyond it before the agent is called silent
PUSH = 10.0  # seconds for a node to store an assignment
PROBE = 1.0  # seconds in which a host must open or refuse a channel
LOGIN = 25.0  # seconds for a connection attempt; the lease decides when a node is down
OPEN = 3.0  # seconds for a channel to open, or for a connection's farewell
FIRST_DELAY = 0.2
LONGEST_DELAY = 2.0
SILENT_DELAY = 0.5  # between two questions to a silent agent

# What a request to a node that is cut off, gone or broken raises (ValueError: not our JSON).
Silence = (
    OrchestraError,
    TransportError,
    OSError,
    ValueError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


class NodeConnection(Protocol):
    """A login on a node's host."""

    async def open_agent(self) -> trio.abc.HalfCloseableStream:
        """A stream to the agent's socket; ChannelRefused where nothing listens on it."""
        ...


Connect = Callable[[InventoryNode], AbstractAsyncContextManager[NodeConnection]]


@frozen
class Wanted:
    """The assignment that a node shall have, by sections."""

    generation: int
    digests: Mapping[str, str]
    bodies: Mapping[str, Any]


@frozen
class Held:
    """What a node said it has."""

    generation: int
    digests: Mapping[str, str]
    cluster: str  # id of the cluster that gave it, "" = none


class Link:
    """`changed` is called after everything that the controller may want to think about."""

    def __init__(self, node: InventoryNode, connect: Connect, changed: Callable[[], None]) -> None:
        self.node = node
        self.state = NodeState.UNKNOWN
        self.reason = "it was not reached yet"
        self.observed: Observed | None = None
        self.held: Held | None = None
        self.last_seen = 0.0  # trio's clock
        self.refused = ""  # why the controller does not use this node although it answers
        self.images: set[str] = set()  # manifests known to be there, since the connection began
        self.scope = trio.CancelScope()  # ends the link
        self.client: NodeClient | None = None
        self._connection: NodeConnection | None = None
        self._connect = connect
        self._changed = changed
        self._wanted: Wanted | None = None
        self._news = trio.Event()  # for the pusher
        self._heard_event = trio.Event()  # for the lease
        self._tried = trio.Event()  # the first attempt to reach the host has ended
        self._heard = 0.0

    def want(self, wanted: Wanted | None) -> None:
        """Bring the node to `wanted` from now on (None: leave it as it is)."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake()

    def refuse(self, why: str) -> None:
        """Do not use the node although it answers ("" = use it)."""
        self.refused = why
        if why and self.state is NodeState.READY:
            self.state, self.reason = NodeState.NOT_READY, why

    @property
    def pushed(self) -> bool:
        """Whether the node has what is wanted."""
        wanted, held = self._wanted, self.held
        return wanted is None or (held is not None and held.generation >= wanted.generation)

    def ask(self) -> NodeClient:
        """The client of the node's agent. Unavailable with the reason."""
        if self.client is None:
            raise Unavailable(f"node {self.node.name} cannot be reached: {self.reason}")
        return self.client

    async def open_agent(self) -> trio.abc.HalfCloseableStream:
        """A stream to the agent's socket. Unavailable with the reason."""
        if self._connection is None:
            raise Unavailable(f"node {self.node.name} cannot be reached: {self.reason}")
        try:
            with trio.fail_after(OPEN):
                return await self._connection.open_agent()
        except (TransportError, OSError, trio.TooSlowError) as error:
            raise Unavailable(f"node {self.node.name}: {_text(error)}") from error

    async def run(self) -> None:
        """Keep the link until `scope` is cancelled."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_lease)
                delay = FIRST_DELAY
                while True:
                    if await self._one_connection():
                        delay = FIRST_DELAY
                    self._tried.set()
                    await trio.sleep(delay)
                    delay = min(2 * delay, LONGEST_DELAY)

    async def _one_connection(self) -> bool:
        """Connect and stay until it breaks; whether it was ever up."""
        up = False
        with trio.CancelScope(deadline=trio.current_time() + LOGIN) as scope:
            try:
                async with self._connect(self.node) as connection:
                    scope.deadline = float("inf")
                    up = True
                    self._connection = connection
                    try:
                        await self._stay(connection)
                    finally:
                        self._connection = self.client = None
                        # A dead connection's farewell must not hold up the next attempt.
                        scope.deadline = trio.current_time() + OPEN
            except Silence as error:
                self._note(_text(error))
        if scope.cancelled_caught:
            self._note(f"it does not answer within {LOGIN:g} s")
        return up

    async def _stay(self, connection: NodeConnection) -> None:
        """Hear the node, and push to it, for as long as its host answers."""
        client = NodeClient(connection.open_agent)
        self.client = client
        self.images = set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._push_news, client)
                await self._hear(connection, client)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(PROBE) as scope:
                scope.shield = True
                await client.aclose()

    async def _hear(self, connection: NodeConnection, client: NodeClient) -> None:
        sequence = -1
        while True:
            try:
                with trio.fail_after(POLL + PATIENCE):
                    if sequence < 0:  # a new connection, or an agent that may have restarted
                        await self._ask_held(client)
                    observed = await client.wait_observed(sequence, POLL)
            except Silence as error:
                if not await self._host_answers(connection):
                    self._note(f"its connection broke: {_text(error)}")
                    return
                self._heard_now()
                self._become(NodeState.NOT_READY, f"its agent is silent: {_text(error)}")
                sequence = -1
                await trio.sleep(SILENT_DELAY)
                continue
            self._heard_now()
            self.last_seen = trio.current_time()
            fresh = observed.sequence != sequence
            sequence = observed.sequence
            self.observed = observed
            problems = (*observed.facts.problems, *filter(None, [self.refused]))
            state = NodeState.NOT_READY if problems else NodeState.READY
            self._become(state, "; ".join(problems), fresh)

    async def _push_news(self, client: NodeClient) -> None:
        while True:
            news = self._news
            try:
                if not self.pushed and self.held is not None:
                    with trio.fail_after(PUSH):
                        await self._push(client)
            except Silence as error:
                log.info("cannot push to %s: %s", self.node.name, _text(error))
                await trio.sleep(SILENT_DELAY)
                continue
            await news.wait()

    async def _ask_held(self, client: NodeClient) -> None:
        generation, digests = await client.assignment_digests()
        before, section = self.held, digests.get("cluster")
        cluster = ""
        if before is not None and before.digests.get("cluster") == section:
            cluster = before.cluster
        elif generation:
            bodies = await client.assignment_bodies()
            cluster = bodies.get("cluster", {}).get("id", "")
        self.held = Held(generation, digests, cluster)
        self._wake()

    def _wake(self) -> None:
        """Let the pusher look again."""
        self._news.set()
        self._news = trio.Event()

    async def _push(self, client: NodeClient) -> None:
        """Send what differs. A node that has a higher generation keeps it: `held` tells of it."""
        wanted = self._wanted
        assert wanted is not None
        held = self.held.digests if self.held else {}
        bodies = {
            name: wanted.bodies[name]
            for name, digest in wanted.digests.items()
            if held.get(name) != digest
        }
        try:
            missing = await client.put_assignment(wanted.generation, wanted.digests, bodies)
            if missing:
                bodies = {**bodies, **{name: wanted.bodies[name] for name in missing}}
                await client.put_assignment(wanted.generation, wanted.digests, bodies)
        except Conflict:
            await self._ask_held(client)
        else:
            cluster = wanted.bodies["cluster"]["id"]
            self.held = Held(wanted.generation, wanted.digests, cluster)
        self._changed()

    async def _host_answers(self, connection: NodeConnection) -> bool:
        """Whether the host (sshd, the kernel's socket queue) still opens or refuses channels."""
        try:
            with trio.fail_after(PROBE):
                stream = await connection.open_agent()
                await trio.aclose_forcefully(stream)
        except ChannelRefused:
            return True
        except Silence:
            return False
        return True

    async def _watch_lease(self) -> None:
        """Call the host down when it was silent for too long.

        While the very first login is under way it is not: a small or busy host takes its time.
        """
        self._heard = trio.current_time()
        with trio.move_on_after(LOGIN):
            await self._tried.wait()
        while True:
            await trio.sleep_until(self._heard + LEASE)
            if trio.current_time() >= self._heard + LEASE:
                self._become(NodeState.DOWN, self.reason)
                self._heard_event = trio.Event()
                await self._heard_event.wait()

    def _heard_now(self) -> None:
        self._tried.set()
        self._heard = trio.current_time()
        self._heard_event.set()

    def _note(self, reason: str) -> None:
        """Remember why the node cannot be reached; the lease decides when that makes it down."""
        self.reason = reason

    def _become(self, state: NodeState, reason: str, fresh: bool = False) -> None:
        news = fresh or state is not self.state or reason != self.reason
        self.state, self.reason = state, reason
        if news:
            self._changed()


def _text(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    return str(error) or type(error).__name__
