"""Nemesis: harm done to a world in an order that a seed decides, and what must hold through it.

One step is one thing that happens in real clusters: power is lost, a cable pulled, an agent or the
controller killed, streams broken, and users go on with `up`, `scale`, `stop`, `restart` and `drain`
as if nothing were. Laws while it lasts: data is on one node and its slot runs there or nowhere;
generations only rise. Law afterwards, when all is mended: every slot that shall run does, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio
from attrs import evolve

from orchestra.controller.controller import Controller
from orchestra.model.cluster import Progress, StackPhase
from orchestra.model.errors import OrchestraError
from orchestra.model.node import Availability, NodeState
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    Healthcheck,
    Mount,
    MountType,
    Network,
    Service,
    ServiceMode,
    ServiceNetwork,
    Stack,
    Volume,
)
from orchestra.testing.sim.world import Host, World

NAME = "app"
CALM = 60.0  # virtual seconds in which a mended cluster must have come to rest
LONGEST_PAUSE = 8.0  # virtual seconds between two steps: shorter and longer than a lease


class Broken(AssertionError):
    """A law does not hold; the text says which, after what history."""


class Nemesis:
    """Harms `world`; `history` says what was done, with virtual times."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.history: list[str] = []
        self._random = random
        self._wanted = _stack(3, "1")
        self._scale: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._drained: set[str] = set()
        self._generation = 0
        self._steps: Sequence[Callable[[], Awaitable[str]]] = (
            self._kill_or_boot,
            self._kill_or_boot,
            self._cut_or_heal,
            self._silence,
            self._lose_streams,
            self._restart_controller,
            self._up,
            self._up,
            self._scale_web,
            self._stop_or_start,
            self._restart,
            self._drain,
        )

    async def run(self, steps: int) -> None:
        """Bring a stack up, do `steps` harmful things, mend everything. Raises Broken."""
        await self._ask(self._apply)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            for _ in range(steps):
                self._note(await self._random.choice(self._steps)())
                await trio.sleep(self._random.uniform(0, LONGEST_PAUSE))
            await self._mend()
            nursery.cancel_scope.cancel()
        self._check_rest()

    # --- what happens ------------------------------------------------------------------------

    async def _kill_or_boot(self) -> str:
        host = self._any_host()
        if host.on:
            host.kill()
            return f"kill {host.name}"
        host.boot()
        return f"boot {host.name}"

    async def _cut_or_heal(self) -> str:
        host = self._any_host()
        if host.wire.is_set():
            host.cut()
            return f"cut {host.name}"
        host.heal()
        return f"heal {host.name}"

    async def _silence(self) -> str:
        host = self._any_host()
        if host.agent_on:
            host.silence()
            return f"silence {host.name}"
        host.speak()
        return f"speak {host.name}"

    async def _lose_streams(self) -> str:
        host = self._any_host()
        host.lose_streams()
        return f"lose the streams of {host.name}"

    async def _restart_controller(self) -> str:
        self.world.kill_controller()
        await trio.sleep(self._random.uniform(0, LONGEST_PAUSE))
        await self.world.start_controller()
        return "restart the controller"

    async def _up(self) -> str:
        self._wanted = _stack(self._random.randint(0, 4), self._random.choice("123"))
        return await self._ask(self._apply)

    async def _scale_web(self) -> str:
        count = self._random.randint(0, 5)

        async def scale() -> str:
            await self._controller.scale(NAME, {"web": count})
            self._scale = {"web": count}
            return f"scale web={count}"

        return await self._ask(scale)

    async def _stop_or_start(self) -> str:
        service = self._random.choice(["web", "db", "agent"])

        async def act() -> str:
            if service in self._stopped:
                await self._controller.start_services(NAME, [service])
                self._stopped.discard(service)
                return f"start {service}"
            await self._controller.stop_services(NAME, [service])
            self._stopped.add(service)
            return f"stop {service}"

        return await self._ask(act)

    async def _restart(self) -> str:
        async def restart() -> str:
            await self._controller.restart_services(NAME, [])
            return "restart all services"

        return await self._ask(restart)

    async def _drain(self) -> str:
        name = self._any_host().name

        async def act() -> str:
            drained = name in self._drained
            value = Availability.ACTIVE if drained else Availability.DRAIN
            await self._controller.set_availability(name, value)
            self._drained ^= {name}
            return f"{'activate' if drained else 'drain'} {name}"

        return await self._ask(act)

    async def _apply(self) -> str:
        await self._controller.apply(self._wanted)
        self._scale, self._stopped = {}, set()
        web = self._wanted.services["web"]
        return f"up with web={web.replicas}, version {web.command}"

    async def _ask(self, act: Callable[[], Awaitable[str]]) -> str:
        """Act through the controller; that it refuses, or cannot answer yet, is part of life."""
        try:
            with trio.fail_after(LONGEST_PAUSE):
                return await act()
        except (OrchestraError, trio.TooSlowError) as error:
            return f"refused: {error or 'no answer'}"

    async def _mend(self) -> None:
        for host in self.world.hosts.values():
            host.heal()
            if not host.on:
                host.boot()
            host.speak()
        with trio.move_on_after(CALM):
            while not self._all_ready():
                await trio.sleep(0.1)
        self._note(f"mended, {'all' if self._all_ready() else 'NOT all'} nodes are ready")
        for name in sorted(self._drained):
            await self._controller.set_availability(name, Availability.ACTIVE)
        self._drained.clear()
        if self._stopped:
            await self._controller.start_services(NAME, [])
            self._stopped.clear()
        if NAME not in {record.stack.name for record in self._controller.stacks()}:
            await self._controller.apply(self._wanted)
        seen = Progress(0.0, "nothing was heard")
        with trio.move_on_after(CALM):
            while seen.phase is not StackPhase.CONVERGED:
                async for seen in self._controller.progress(NAME):
                    self._note(f"  {seen.phase.value}: {seen.text}")
                    self.history += [f"           {slot}" for slot in seen.slots]
                await trio.sleep(1.0)
        if seen.phase is not StackPhase.CONVERGED:
            raise self._broken(f"the stack has not come to rest in {CALM:g} s")

    # --- what holds ----------------------------------------------------------------------------

    def _all_ready(self) -> bool:
        return all(status.state is NodeState.READY for status in self._controller.nodes())

    async def _watch(self) -> None:
        while True:
            self._check_always()
            await trio.sleep(0.1)

    def _check_always(self) -> None:
        holders = [h.name for h in self.world.hosts.values() if "app_data" in h.agent.volumes_held]
        if len(holders) > 1:
            raise self._broken(f"the volume is on {holders}")
        places = [host for slot, host in self.world.running() if slot == "db.1"]
        if len(places) > 1:
            raise self._broken(f"db.1 runs on {places}")
        generation = max(host.agent.generation for host in self.world.hosts.values())
        if generation < self._generation:
            raise self._broken(f"generation {generation} after {self._generation}")
        self._generation = generation

    def _check_rest(self) -> None:
        """Exactly what shall run does, as the controller's own record says it shall."""
        web = self._scale.get("web", self._wanted.services["web"].replicas)
        expected = {f"web.{n}" for n in range(1, web + 1)}
        expected |= {"db.1", *(f"agent.{name}" for name in self.world.hosts)}
        running = Counter(slot for slot, _ in self.world.running())
        if running != Counter(expected):
            raise self._broken(f"{self.world.running()} run, not {sorted(expected)}")

    def _broken(self, law: str) -> Broken:
        return Broken("\n".join([law, "after:", *self.history]))

    # --- small things --------------------------------------------------------------------------

    @property
    def _controller(self) -> Controller:
        assert self.world.controller is not None
        return self.world.controller

    def _any_host(self) -> Host:
        return self._random.choice(list(self.world.hosts.values()))

    def _note(self, what: str) -> None:
        self.history.append(f"  {trio.current_time():7.2f}  {what}")


def _stack(replicas: int, version: str) -> Stack:
    """A web of several, data, and one on every node."""
    plain = Service(name="", image="any", command=(version,), networks=(ServiceNetwork("default"),))
    services = (
        evolve(
            plain,
            name="web",
            replicas=replicas,
            healthcheck=Healthcheck(("CMD", "true")),
            depends_on=(Dependency("db", DependencyCondition.STARTED),),
        ),
        evolve(plain, name="db", mounts=(Mount(MountType.VOLUME, "/data", "data"),)),
        evolve(plain, name="agent", mode=ServiceMode.GLOBAL),
    )
    return Stack(
        name=NAME,
        services={service.name: service for service in services},
        networks={"default": Network("default", f"{NAME}_default")},
        volumes={"data": Volume("data", f"{NAME}_data")},
    )
