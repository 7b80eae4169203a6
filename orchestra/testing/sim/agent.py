"""FakeAgent: the node protocol kept by an agent that runs nothing.

It stores assignments as a real one does, moves each task through its states in virtual time, and
reports. What a task does is written in its command: ("exit", "1") fails, ("exit", "0") completes,
("unhealthy",) never passes its health check, everything else runs and becomes healthy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio
from attrs import define, evolve

from orchestra.model.assignment import AssignedTask, digests, from_sections
from orchestra.model.container import Container, HealthStatus, Image
from orchestra.model.errors import Conflict, NotFound
from orchestra.model.node import TERMINAL, NodeFacts, Observed, ObservedTask, TaskState

START = 0.2  # seconds from assignment to a running process
HEALTHY = 0.5  # seconds from there to a passed health check
STOP = 0.3  # seconds that a task takes to end


class FakeImages:
    """The images of a fake node: manifests only, everything can be put."""

    def __init__(self) -> None:
        self.manifests: set[str] = set()

    def list(self) -> Sequence[Image]:
        return []

    def missing_blobs(self, wanted: Sequence[str]) -> Sequence[str]:
        return []

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        self.manifests.add(manifest_digest)
        return Image(manifest_digest, manifest_digest, tuple(names))


@define
class FakeTask:
    assigned: AssignedTask
    observed: ObservedTask
    scope: trio.CancelScope
    restarting: bool = False


class FakeAgent:
    """Engine and Node in one, as far as the controller asks. `run` must be running."""

    def __init__(self, facts: NodeFacts) -> None:
        self.facts = facts
        self.images = FakeImages()
        self.tasks: dict[str, FakeTask] = {}
        self.volumes_held: set[str] = set()
        self.generation = 0
        self.digests: Mapping[str, str] = {}
        self.bodies: dict[str, Any] = {}
        self.applied = 0
        self.slowness = 1.0  # everything takes that many times longer
        self.started: list[str] = []  # slots, in the order in which their tasks came to run
        self._sequence = 1
        self._news = trio.Event()
        self._work = trio.Event()

    # --- the life of the process -----------------------------------------------------------

    async def run(self) -> None:
        """Live until cancelled, as a host does; on return nothing runs, the disk stays."""
        self._sequence += 1
        for task in self.tasks.values():
            task.restarting = False
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    work = self._work
                    self._reconcile(nursery)
                    await work.wait()
        finally:
            ended = {i: t for i, t in self.tasks.items() if t.observed.state in TERMINAL}
            self.tasks = ended

    def _reconcile(self, nursery: trio.Nursery) -> None:
        if not self.bodies:
            return
        assignment = from_sections(self.generation, self.bodies)
        wanted = {task.id: task for task in assignment.tasks}
        for task_id, held in list(self.tasks.items()):
            if task_id not in wanted:
                held.scope.cancel()
                del self.tasks[task_id]
        for task in assignment.tasks:
            known = self.tasks.get(task.id)
            if known is None and not task.stop:
                report = ObservedTask(task.id, TaskState.STARTING, restart_token=task.restart_token)
                fresh = FakeTask(task, report, trio.CancelScope())
                self.tasks[task.id] = fresh
                nursery.start_soon(self._live, fresh)
            elif known is not None and task.stop and not known.assigned.stop:
                known.assigned = task
                nursery.start_soon(self._stop, known)
            elif known is not None and not task.stop:
                again = task.restart_token > known.observed.restart_token
                known.assigned = task
                if again and not known.restarting:
                    known.restarting = True
                    nursery.start_soon(self._restart, known)
        self.applied = self.generation
        self._changed()

    async def _live(self, task: FakeTask) -> None:
        with task.scope:
            spec = task.assigned.spec
            await trio.sleep(START * self.slowness)
            if spec.image_id and task.assigned.image_manifest not in self.images.manifests:
                self._report(task, state=TaskState.REJECTED, error="no such image", final=True)
                return
            self.volumes_held |= {m.source for m in spec.mounts if m.source}
            self.started.append(task.assigned.slot)
            check = spec.healthcheck
            health = HealthStatus.STARTING if check else None
            self._report(task, state=TaskState.RUNNING, health=health, started=trio.current_time())
            if spec.args[0] == "exit":
                await trio.sleep(START * self.slowness)
                code = int(spec.args[1])
                state = TaskState.FAILED if code else TaskState.COMPLETE
                self._report(task, state=state, exit_code=code, final=True, health=None)
            elif check:
                await trio.sleep(HEALTHY * self.slowness)
                bad = spec.args[0] == "unhealthy"
                status = HealthStatus.UNHEALTHY if bad else HealthStatus.HEALTHY
                self._report(task, health=status)

    async def _stop(self, task: FakeTask) -> None:
        if task.observed.state in TERMINAL:
            return
        await trio.sleep(STOP * self.slowness)
        task.scope.cancel()
        self._report(task, state=TaskState.SHUTDOWN, exit_code=0, final=True, health=None)

    async def _restart(self, task: FakeTask) -> None:
        """End what runs of it and run it again, in place."""
        if task.observed.state not in TERMINAL:
            await trio.sleep(STOP * self.slowness)
        task.scope.cancel()
        task.scope, task.restarting = trio.CancelScope(), False
        task.observed = ObservedTask(
            task.assigned.id, TaskState.STARTING, restart_token=task.assigned.restart_token
        )
        if task.assigned.id in self.tasks:
            await self._live(task)

    def _report(self, task: FakeTask, **changes: Any) -> None:
        task.observed = evolve(task.observed, **changes)
        self._changed()

    def _changed(self) -> None:
        self._sequence += 1
        self._news.set()
        self._news = trio.Event()

    def crash(self, slot: str, code: int = 1) -> None:
        """Let the task of a slot end for good."""
        for task in self.tasks.values():
            if task.assigned.slot == slot and task.observed.state is TaskState.RUNNING:
                task.scope.cancel()
                self._report(task, state=TaskState.FAILED, exit_code=code, final=True)

    # --- the node protocol -------------------------------------------------------------------

    def observed(self) -> Observed:
        return Observed(
            self._sequence,
            self.facts,
            self.applied,
            tuple(task.observed for task in self.tasks.values()),
            tuple(sorted(self.volumes_held)),
        )

    async def wait_observed(self, after: int, timeout: float) -> Observed:
        with trio.move_on_after(timeout):
            while self._sequence <= after:
                await self._news.wait()
        return self.observed()

    def assignment_digests(self) -> tuple[int, Mapping[str, str]]:
        return self.generation, self.digests

    def assignment_bodies(self) -> Mapping[str, Any]:
        return self.bodies

    async def put_assignment(
        self, generation: int, digests_: Mapping[str, str], bodies: Mapping[str, Any]
    ) -> Sequence[str]:
        if generation < self.generation:
            raise Conflict(f"generation {self.generation} is stored, {generation} is older")
        kept = {
            name: self.bodies[name]
            for name, digest in digests_.items()
            if self.digests.get(name) == digest
        }
        merged = {**kept, **bodies}
        missing = [name for name in digests_ if name not in merged]
        if missing:
            return missing
        assert digests(merged) == dict(digests_), "the controller's digests do not fit the bodies"
        self.generation, self.digests, self.bodies = generation, dict(digests_), merged
        self._work.set()
        self._work = trio.Event()
        await trio.lowlevel.checkpoint()
        return ()

    # --- as much of the engine as the controller asks ---------------------------------------

    def containers(self) -> Sequence[Container]:
        return []

    async def volume_remove(self, name: str, force: bool = False) -> None:
        if name not in self.volumes_held:
            raise NotFound(f"get {name}: no such volume")
        used = [t for t in self.tasks.values() for m in t.assigned.spec.mounts if m.source == name]
        if used:
            raise Conflict(f"remove {name}: volume is in use")
        self.volumes_held.discard(name)
        await trio.lowlevel.checkpoint()

    def running(self) -> dict[str, AssignedTask]:
        """Tasks of which a process would be running, by id."""
        return {
            task_id: task.assigned
            for task_id, task in self.tasks.items()
            if task.observed.state is TaskState.RUNNING
        }
