"""The cluster: takes wishes, decides, and brings every node to its share.

One loop turns whatever changed (a wish, a report, a lost node) into the next state: absorb what
ended, plan, enact, commit, push. Everything between reading the state and committing it happens
without an `await`, so there is one writer and no lock. What is decided is pure and in `plan`; what
takes time (connections, shipments, removals) runs beside the loop and calls `_changed` when done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import trio
from attrs import evolve

from orchestra import __version__
from orchestra.api.engine import Images as StoreOfImages
from orchestra.controller import adopt, enroll, resolve, wish
from orchestra.controller.apply import Assembler
from orchestra.controller.events import Events
from orchestra.controller.last_lines import last_lines
from orchestra.controller.link import Connect, Link, Silence, Wanted
from orchestra.controller.links import Links
from orchestra.controller.progress import behind, clashes, look
from orchestra.controller.rows import task_rows
from orchestra.controller.ship import Ship, Shipping
from orchestra.controller.store import Store, new_state
from orchestra.controller.volumes import Removals
from orchestra.image.images import Images
from orchestra.image.ship import ship
from orchestra.model.cluster import (
    ControllerInfo,
    ImageNeed,
    NodeStatus,
    Plan,
    Progress,
    SlotPhase,
    SlotProgress,
    StackPhase,
    StackRecord,
    TaskStatus,
)
from orchestra.model.errors import Conflict, Invalid, NotFound, OrchestraError, Unavailable
from orchestra.model.event import Event
from orchestra.model.node import Availability, InventoryNode
from orchestra.model.service import Stack
from orchestra.plan.check import check_stack
from orchestra.plan.enact import absorb, done, enact, release
from orchestra.plan.forecast import forecast
from orchestra.plan.reconcile import reconcile
from orchestra.plan.standing import SETTLE
from orchestra.plan.state import NodeRecord, State, View

log = logging.getLogger(__name__)

PROTOCOL = 1
QUIET = 0.01  # seconds in which further changes join the one that woke the loop
TICK = 0.5  # seconds between two looks while something waits for time to pass
LOOK = 5.0  # seconds between two looks while something lacks that news will bring
AGAIN = 1.0  # seconds before something that failed is tried again
FIRST_CONTACT = 15.0  # seconds that adding a node may take
FAREWELL = 5.0  # seconds for a node that leaves to take its empty assignment
BREATH = 0.1  # seconds between two lines of progress: what changes meanwhile is one line
KEPT_PLANS = 32
ENDS = (StackPhase.CONVERGED, StackPhase.FAILED, StackPhase.REMOVED)


class Controller:
    """Implements `api.cluster.Cluster`; `run` must be running for anything to happen.

    `connect` logs in at a node, `ship` brings an image there; they and `clock` (Unix time) are
    what a simulation replaces.
    """

    def __init__(
        self,
        store: Store,
        images: Images,
        connect: Connect,
        *,
        name: str,
        cluster_id: str,
        role: str = "session",
        clock: Callable[[], float] = time.time,
        ship: Ship = ship,
    ) -> None:
        """`cluster_id` (32 hex digits) is used where the store is new."""
        self.images: StoreOfImages = images
        self._images = images
        self._ship = ship
        self._store = store
        self._role = role
        self._clock = clock
        self._state = store.load() or new_state(name, cluster_id)
        self._links = Links(connect, self._changed, clock)
        self._wanted: dict[str, Wanted] = {}  # by node id
        self._plan = Plan(self._state.generation)
        self._planned: State | None = None  # the state that `_plan` leads to
        self._shown: dict[tuple[str, int], Plan] = {}  # plans that users saw
        self._events = Events()
        self._assembler = Assembler()
        self._looked = trio.Event()  # every node was heard, or is known to be down
        self._news = trio.Event()  # for the loop
        self._moved = trio.Event()  # for those who watch
        self._nursery: trio.Nursery | None = None
        self._shipping: Shipping | None = None
        self._removals: Removals | None = None

    async def run(
        self,
        inventory: Sequence[InventoryNode] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect to all nodes and decide until cancelled; the nodes are left as they are."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._shipping = Shipping(self._images, nursery, self._changed, self._tell, self._ship)
            self._removals = Removals(nursery, self._drop_volumes)
            if self._role == "session":
                # The user's file, which may have been edited, is newer than the store; a daemon's
                # is as old as its installation.
                self._state = enroll.retold(self._state, inventory)
            known = {record.name: record.node for record in self._state.nodes.values()}
            for node in {**{n.name: n for n in inventory}, **known}.values():
                self._links.open(node, nursery)
            task_status.started()
            while not self._links.all_heard:
                await self._news.wait()
            self._looked.set()
            while True:
                news = self._news
                try:
                    pause = self._step()
                except OrchestraError as error:  # the store's disk is full, say: try again
                    log.error("cannot go on: %s", error)
                    pause = AGAIN
                with trio.move_on_after(pause):
                    await news.wait()
                await trio.sleep(QUIET)

    # --- the loop ------------------------------------------------------------------------

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _step(self) -> float:
        """Decide once; how long to wait for news until deciding again anyway."""
        self._enroll()
        if self._orphaned():
            for link in self._links:
                link.want(None)
            self._tell()
            return float("inf")
        assert self._shipping is not None
        links = self._links.by_id(self._state)
        view = self._view()
        state = absorb(self._state, view)
        state = release(state, self._shipping.arrived(state, links))
        plan = reconcile(state, view)
        state, refused = enact(state, plan, view)
        state = self._forget_removed(state)
        state, wanted = self._assembler.next_wanted(state, view, self._wanted, links)
        self._commit(state)
        self._wanted = wanted
        for node_id, mine in wanted.items():
            if node_id in links:
                links[node_id].want(mine)
        self._plan = done(plan, refused)
        self._planned = state
        for action in self._plan.actions:
            self._events.action(action, self._clock())
        self._tell()
        if self._plan.actions:
            return 0.0
        if self._unsettled(view) or any(waiting.until for waiting in self._plan.waiting):
            return TICK
        return float("inf") if self._plan.empty else LOOK

    def _unsettled(self, view: View) -> bool:
        return any(view.now - since < 2 * SETTLE for since in view.serving_since.values())

    def _commit(self, state: State) -> None:
        self._store.commit(state)
        self._state = state

    def _wish(self, state: State) -> None:
        """Commit what a user asked for, under the next generation, and let the loop see it."""
        self._commit(evolve(state, generation=state.generation + 1))
        self._changed()

    def _view(self) -> View:
        return self._links.view(self._state)

    # --- nodes ---------------------------------------------------------------------------

    def _enroll(self) -> None:
        """Make records of nodes that are heard for the first time, or say why not."""
        for link in self._links:
            if link.observed is None:
                continue
            facts = link.observed.facts
            record = self._record_named(link.node.name)
            why = ""
            if record is not None:
                why = enroll.stranger(record, facts)
            elif not self._orphaned():
                try:
                    self._commit(enroll.enrolled(self._state, link.node, facts, link.held))
                except Conflict as error:
                    why = str(error)
                else:
                    self._events.node("add", link.node.name, self._clock())
            link.refuse(why)

    def _orphaned(self) -> int:
        """A generation on the nodes that this store does not know of; 0 = none."""
        return self._links.orphaned(self._state)

    def _refuse_orphaned(self) -> None:
        found = self._orphaned()
        if found:
            raise Conflict(
                f"the nodes hold generation {found}, this controller's store only "
                f"{self._state.generation}: another controller has changed the cluster, or the "
                "store was lost. Nothing is overwritten; `orchestra cluster adopt` rebuilds the "
                "store from the nodes"
            )

    def nodes(self) -> Sequence[NodeStatus]:
        return self._links.statuses(self._state)

    async def put_node(self, node: InventoryNode) -> NodeStatus:
        self._refuse_orphaned()
        record = self._record_named(node.name)
        if record is not None:
            changed = evolve(record, node=node)
            self._wish(evolve(self._state, nodes={**self._state.nodes, record.id: changed}))
        assert self._nursery is not None
        link = self._links.get(node.name)
        if link is None or _login(link.node) != _login(node):
            link = self._links.open(node, self._nursery)
        link.node = node
        with trio.move_on_after(FIRST_CONTACT):
            while self._record_named(node.name) is None or link.observed is None:
                if link.refused or self._orphaned():
                    break
                await self._moved.wait()
        if self._record_named(node.name) is None:
            foreign = self._orphaned()
            if foreign and not self._state.nodes:
                # The first node of a cluster whose controller was lost: adopting goes through it.
                return next(row for row in self.nodes() if row.node.name == node.name)
            self._links.close(node.name)
            if foreign:
                raise Conflict(
                    f"cannot add node {node.name}: it belongs to another cluster, whose "
                    f"generation {foreign} it holds. `orchestra node rm` it there; or, where that "
                    "cluster's controller is lost, add it to a new one (`orchestra cluster create "
                    "NAME`) and `orchestra cluster adopt` it or `orchestra node rm --purge` it"
                )
            if link.refused:
                raise Conflict(f"cannot add node {node.name}: {link.refused}")
            raise Unavailable(f"cannot add node {node.name}: {link.reason}")
        return next(row for row in self.nodes() if row.node.name == node.name)

    async def remove_node(self, name: str, force: bool = False) -> None:
        link = self._links.get(name)
        if link is not None and self._record_named(name) is None:
            self._links.close(name)  # it never became a node of this cluster
            self._changed()
            return
        record = self._node(name)
        self._refuse_orphaned()
        self._wish(wish.without_node(self._state, record, force))
        link = self._links.take(name)
        if link is not None:
            link.want(self._assembler.nothing(self._state, record))
            try:
                with trio.move_on_after(FAREWELL):
                    while not link.pushed:
                        await self._news.wait()
            finally:
                link.scope.cancel()
        self._events.node("remove", name, self._clock())
        self._changed()

    async def set_availability(self, name: str, availability: Availability) -> None:
        self._change_node(evolve(self._node(name), availability=availability))

    async def set_labels(self, name: str, labels: Mapping[str, str | None]) -> None:
        self._change_node(wish.relabelled(self._node(name), labels))

    def _change_node(self, record: NodeRecord) -> None:
        self._refuse_orphaned()
        link = self._links.get(record.name)
        if link is not None:
            link.node = record.node
        self._wish(evolve(self._state, nodes={**self._state.nodes, record.id: record}))

    def _record_named(self, name: str) -> NodeRecord | None:
        return next((r for r in self._state.nodes.values() if r.name == name), None)

    def _node(self, name: str) -> NodeRecord:
        record = self._record_named(name)
        if record is None:
            known = ", ".join(sorted(r.name for r in self._state.nodes.values())) or "none"
            raise NotFound(f"no node is called {name}; the cluster has: {known}")
        return record

    async def open_agent(self, node: str) -> trio.abc.HalfCloseableStream:
        link = self._links.get(node)
        if link is None:
            raise NotFound(f"no node is called {node}; `orchestra node ls` lists them")
        return await link.open_agent()

    # --- stacks --------------------------------------------------------------------------

    def info(self) -> ControllerInfo:
        return ControllerInfo(
            cluster=self._state.identity.name,
            cluster_id=self._state.identity.id,
            version=__version__,
            protocol=PROTOCOL,
            role=self._role,
            generation=self._state.generation,
            nodes=len(self._state.nodes),
            heals=self._role == "daemon",
            orphaned_generation=self._orphaned(),
        )

    def stacks(self) -> Sequence[StackRecord]:
        return sorted(self._state.stacks.values(), key=lambda r: r.stack.name)

    def stack(self, name: str) -> StackRecord:
        record = self._state.stacks.get(name)
        if record is None:
            known = ", ".join(sorted(self._state.stacks)) or "none"
            raise NotFound(f"no stack is called {name}; the cluster runs: {known}")
        return record

    async def image_needs(self, stack: Stack) -> Sequence[ImageNeed]:
        await self._looked.wait()
        links = list(self._links)
        return [
            await resolve.resolve(self._images, links, text) for text in resolve.image_texts(stack)
        ]

    async def plan(self, stack: Stack) -> Plan:
        needs = await self._checked_needs(stack)
        plan = self._foresee(stack, needs)
        self._shown[stack.name, plan.generation] = plan
        while len(self._shown) > KEPT_PLANS:
            del self._shown[next(iter(self._shown))]
        return plan

    async def apply(self, stack: Stack, generation: int | None = None) -> int:
        needs = await self._checked_needs(stack)
        if generation is not None and generation != self._state.generation:
            # Reports raise the generation too: what counts is whether the plan still is the same.
            shown = self._shown.get((stack.name, generation))
            if shown is None or shown.actions != self._foresee(stack, needs).actions:
                raise Conflict(
                    f"the cluster has changed since the plan of generation {generation} was made "
                    f"(it is at {self._state.generation} now); plan again"
                )
        assert self._shipping is not None
        self._shipping.retry()
        self._wish(self._with_stack(stack, needs))
        self._events.stack("up", stack.name, self._clock())
        return self._state.generation

    async def _checked_needs(self, stack: Stack) -> Sequence[ImageNeed]:
        await self._looked.wait()
        self._refuse_orphaned()
        for service in stack.services.values():
            if not service.image:
                raise Invalid(
                    f"service {service.name} has no image; building is not supported yet: build it "
                    "elsewhere and `orchestra image load` it"
                )
        record = self._state.stacks.get(stack.name)
        if record is not None and record.removing:
            raise Conflict(f"stack {stack.name} is being removed; wait until it is gone")
        check_stack(self._state, self._view(), stack)
        needs = await self.image_needs(stack)
        for need in needs:
            resolve.require(need)
        return needs

    def _with_stack(self, stack: Stack, needs: Sequence[ImageNeed]) -> State:
        facts = {need.manifest: resolve.facts_of(self._images, need) for need in needs}
        return wish.with_stack(self._state, stack, needs, facts, self._clock())

    def _foresee(self, stack: Stack, needs: Sequence[ImageNeed]) -> Plan:
        view = self._view()
        before = self._state
        plan = forecast(absorb(self._with_stack(stack, needs), view), view, stack.name)
        warnings = (*plan.warnings, *clashes(view, stack.name))
        return evolve(plan, generation=before.generation, warnings=warnings)

    async def remove_stack(self, name: str, volumes: bool = False) -> None:
        self._refuse_orphaned()
        record = evolve(self.stack(name), removing=True, remove_volumes=volumes)
        self._put_stack(record)
        self._events.stack("down", name, self._clock())

    async def scale(self, name: str, replicas: Mapping[str, int]) -> None:
        self._put_stack(wish.scaled(self.stack(name), replicas))

    async def stop_services(self, name: str, services: Sequence[str]) -> None:
        self._put_stack(wish.stopped(self.stack(name), services))

    async def start_services(self, name: str, services: Sequence[str]) -> None:
        self._put_stack(wish.started(self.stack(name), services, self._clock()))

    async def restart_services(self, name: str, services: Sequence[str]) -> None:
        self._refuse_orphaned()
        self._wish(wish.restarted(self._state, self.stack(name), services))

    def _put_stack(self, record: StackRecord) -> None:
        self._refuse_orphaned()
        self._wish(wish.put(self._state, record))

    # --- removal -------------------------------------------------------------------------

    def _forget_removed(self, state: State) -> State:
        """Drop the records of stacks of which nothing is left; their volumes go first."""
        for name, record in list(state.stacks.items()):
            if not record.removing or any(t.task.stack == name for t in state.tasks.values()):
                continue
            volumes = [v for v in wish.own_volumes(record) if v in state.volumes]
            if not (record.remove_volumes and volumes):
                state = wish.without_stack(state, name, self._clock())
                continue
            links = self._links.by_id(self._state)
            homes = {v: [links[h] for h in state.volumes[v] if h in links] for v in volumes}
            if all(_has_applied(link, state) for home in homes.values() for link in home):
                assert self._removals is not None
                self._removals.begin(name, homes)
        return state

    def _drop_volumes(self, volumes: Sequence[str]) -> None:
        """Volumes are gone from their nodes."""
        kept = {v: n for v, n in self._state.volumes.items() if v not in volumes}
        self._commit(evolve(self._state, volumes=kept))
        self._changed()

    # --- watching ------------------------------------------------------------------------

    def tasks(self, name: str) -> Sequence[TaskStatus]:
        self.stack(name)
        assert self._shipping is not None
        notes = self._shipping.notes(self._state)
        return task_rows(self._state, self._view(), self._plan, name, notes)

    async def progress(self, name: str) -> AsyncIterator[Progress]:
        await self._looked.wait()
        assert self._shipping is not None and self._removals is not None
        told: dict[str, SlotProgress] = {}
        text = ""
        goal = 0  # the generation that every node shall have before the stack is called up
        while True:
            moved = self._moved
            self._refuse_orphaned()
            if self._planned is self._state:
                notes = self._shipping.notes(self._state)
                sight = look(self._state, self._view(), self._plan, name, notes)
                line = sight.progress
                if name in self._removals.texts:
                    line = evolve(line, text=self._removals.texts[name])
                if line.phase is StackPhase.CONVERGED:
                    goal = goal or self._state.generation
                    late = behind(self._view(), goal)
                    if late:
                        line = evolve(line, phase=StackPhase.CONVERGING, text="; ".join(late))
                else:
                    goal = 0
                ended = line.phase in ENDS
                slots = {s.slot: s for s in line.slots}
                line = evolve(line, slots=_changes(told, slots))
                if line.phase is StackPhase.FAILED:
                    tail = await last_lines(
                        self._state, self._links.by_id(self._state), sight.failing
                    )
                    line = evolve(line, log_tail=tail)
                if ended or line.slots or line.text != text:
                    told, text = slots, line.text
                    yield line
                    if ended:
                        return
                    await trio.sleep(BREATH)
                    continue
            await moved.wait()

    def events(self) -> AsyncIterator[Event]:
        return self._events.subscribe()

    async def adopt(self) -> Sequence[str]:
        await self._looked.wait()
        if not self._orphaned():
            return []
        held = []
        silent = []
        for link in self._links:
            name = link.node.name
            try:
                client = link.ask()
                generation, _ = await client.assignment_digests()
                bodies = await client.assignment_bodies() if generation else {}
            except Silence as error:
                silent.append(f"{name} could not be asked: {error}")
                continue
            node_id = link.observed.facts.id if link.observed else ""
            held.append(adopt.Legacy(node_id, name, generation, bodies))
        state, told = adopt.rebuild(held, self._clock())
        # Who controlled them before had another key and maybe another way to them.
        own = {link.node.name: link.node for link in self._links}
        labels = {record.name: record.node.labels for record in state.nodes.values()}
        ways = [evolve(node, labels=labels.get(name, {})) for name, node in own.items()]
        state = enroll.retold(state, ways)
        self._commit(state)
        self._wanted = {}
        for record in state.nodes.values():
            if self._links.get(record.name) is None and self._nursery is not None:
                self._links.open(record.node, self._nursery)
        self._changed()
        return [*told, *silent]


def _login(node: InventoryNode) -> tuple[object, ...]:
    """What makes another connection necessary when it changes."""
    return (node.address, node.port, node.user, node.identity, node.jump, node.host_key)


def _has_applied(link: Link, state: State) -> bool:
    """Whether a node has done all it was asked to: what mounted its volumes is gone."""
    return link.observed is not None and link.observed.applied >= state.generation


def _changes(
    before: Mapping[str, SlotProgress], now: Mapping[str, SlotProgress]
) -> tuple[SlotProgress, ...]:
    """The slots that are not as they were; those that are no more are gone."""
    gone = tuple(SlotProgress(slot, SlotPhase.GONE) for slot in before if slot not in now)
    return (*(s for slot, s in now.items() if before.get(slot) != s), *gone)
