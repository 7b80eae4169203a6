"""One container's life: start, end, restart in place, stop, removal.

Every transition holds the container's lock and keeps one order: the kernel acts, the record is
committed, the event is published, those who wait are answered. A transition that began is
finished even where the client that asked for it has gone: the short ones are shielded, the long
ones (a stop's grace) run in this module's nursery.
Restarts by policy, health checks and automatic removal run there too, each guarded: what goes
wrong with one container is logged with its name and kept in `problems`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio
from attrs import evolve

from orchestra.agent.containers import Containers, Live
from orchestra.agent.etc import etc_files
from orchestra.agent.events import Events
from orchestra.agent.health import watch_health
from orchestra.agent.plumbing import Plumbing, host_resolvers
from orchestra.agent.signals import signal_number
from orchestra.model.container import ContainerStatus, Limits
from orchestra.model.errors import Conflict, Failed, OrchestraError, StartFailed
from orchestra.model.paths import NodePaths
from orchestra.model.service import RestartPolicy
from orchestra.plan.health import at_start
from orchestra.plan.restart import Restart, Restarts, next_start, starts_at_boot
from orchestra.runtime.runtime import Exited, Runtime
from orchestra.runtime.volumes import Volumes

log = logging.getLogger(__name__)

UNKNOWN_EXIT = 255
KILL_TIMEOUT = 30.0  # seconds for the kernel to end a killed process before we say that it hangs


class Lifecycle:
    """`problems` holds, by the object's name, what went wrong without a client to tell it."""

    def __init__(
        self,
        paths: NodePaths,
        containers: Containers,
        runtime: Runtime,
        volumes: Volumes,
        plumbing: Plumbing,
        events: Events,
        nursery: trio.Nursery,
    ) -> None:
        self._paths = paths
        self._containers = containers
        self._runtime = runtime
        self._volumes = volumes
        self._plumbing = plumbing
        self._events = events
        self._nursery = nursery
        self.problems: dict[str, str] = {}

    # --- start -----------------------------------------------------------------------------

    async def start(self, live: Live) -> bool:
        """Start a container; False where it runs. StartFailed, Conflict or Failed with the reason.

        A container with `auto_remove` that cannot be started is removed.
        """
        async with live.lock:
            if live.running:
                return False
            if live.container.status is ContainerStatus.REMOVING:
                raise Conflict("container is marked for removal and cannot be started")
            live.back_off.cancel()
            with trio.CancelScope(shield=True):
                try:
                    await self._launch(live, Restarts(), restart_count=0)
                except OrchestraError:
                    if live.container.spec.auto_remove:
                        await self._remove(live, volumes=True)
                    raise
        return True

    async def _launch(self, live: Live, restarts: Restarts, restart_count: int) -> None:
        container = live.container
        netns: int | None = None
        live.ended = trio.Event()
        try:
            spec = self._plumbing.place(container)
            node = self._plumbing.node_address
            etc = etc_files(container, spec.endpoints, node, host_resolvers())
            netns = await self._plumbing.namespace(live, spec)
            wire = partial(self._plumbing.wire, live, spec, netns)
            pid = await self._runtime.start(live.id, netns, etc, wire)
        except Exception as error:
            await self._plumbing.unwire(live)
            code = error.exit_code if isinstance(error, StartFailed) else 125
            self._containers.store(live, exit_code=code, error=str(error), finished=time.time())
            live.settle("next-exit", error=str(error))
            if isinstance(error, OrchestraError):
                raise
            log.exception("cannot start container %s", container.name)
            raise Failed(f"cannot start container {container.name}: {error}") from error
        finally:
            if netns is not None:
                os.close(netns)
        self._containers.store(
            live,
            record={"restarts": restarts},
            spec=spec,
            status=ContainerStatus.RUNNING,
            pid=pid,
            exit_code=0,
            error="",
            oom_killed=False,
            started=time.time(),
            stopped_by_user=False,
            restart_count=restart_count,
            health=at_start(spec.healthcheck),
        )
        self._connected(live, "connect")
        self._mounted(live, "mount")
        self.tell(live, "start")
        self.problems.pop(container.name, None)
        self._watch(live)

    def _watch(self, live: Live) -> None:
        """Run the health check of a running container, where it has one."""
        if live.container.health is not None:
            live.probes = trio.CancelScope()
            self.spawn(
                live, watch_health, live, self._containers, self._runtime, self._events.publish
            )

    # --- end -------------------------------------------------------------------------------

    async def watch_exits(self) -> None:
        """Take the runtime's exits, for ever; each is seen to in a task of its own."""
        async for exited in self._runtime.exits:
            self.take(exited)

    def take(self, exited: Exited) -> None:
        if live := self._containers.get(exited.container):
            self.spawn(live, self._ended, live, exited)

    async def _ended(self, live: Live, exited: Exited) -> None:
        with trio.CancelScope(shield=True):
            async with live.lock:
                before = live.container
                if not live.running and exited.time <= max(before.started, before.finished):
                    return  # told before, the agent died in between
                live.probes.cancel()
                await self._plumbing.unwire(live)
                code = UNKNOWN_EXIT if exited.code is None else exited.code
                error = "" if exited.code is not None else "the exit code was lost with the shim"
                again = self._decide(live, code, exited.time)
                self._containers.store(
                    live,
                    status=ContainerStatus.RESTARTING if again else ContainerStatus.EXITED,
                    pid=0,
                    exit_code=code,
                    last_exit_code=code,
                    error=error,
                    oom_killed=exited.oom,
                    finished=exited.time,
                )
                self._tell_end(live, exited.oom)
                live.ended.set()
                live.settle("not-running", "next-exit")
                if again:
                    self._come_back_later(live, again)
                elif live.container.spec.auto_remove:
                    await self._remove(live, volumes=True)

    def _tell_end(self, live: Live, oom: bool) -> None:
        container = live.container
        if oom:
            self.tell(live, "oom")
        self._connected(live, "disconnect")
        self._mounted(live, "unmount")
        lasted = int(max(0.0, container.finished - container.started))
        self.tell(live, "die", exitCode=str(container.exit_code), execDuration=str(lasted))

    def _decide(self, live: Live, exit_code: int, finished: float) -> Restart | None:
        container = live.container
        return next_start(
            container.spec.restart,
            live.record.restarts,
            exit_code=exit_code,
            started=container.started,
            finished=finished,
            stopped_by_user=container.stopped_by_user,
        )

    # --- restart in place ------------------------------------------------------------------

    def _come_back_later(self, live: Live, again: Restart) -> None:
        live.back_off = trio.CancelScope()
        self.spawn(live, self._come_back, live, again, live.back_off)

    async def _come_back(self, live: Live, again: Restart, back_off: trio.CancelScope) -> None:
        with back_off:
            await trio.sleep(max(0.0, again.at - time.time()))
        if back_off.cancelled_caught:
            return
        with trio.CancelScope(shield=True):
            async with live.lock:
                waiting = live.container.status is ContainerStatus.RESTARTING
                if back_off.cancel_called or not waiting:
                    return
                try:
                    await self._launch(live, again.restarts, live.container.restart_count + 1)
                except OrchestraError as error:
                    self._retry(live, error, again.restarts)

    def _retry(self, live: Live, error: OrchestraError, restarts: Restarts) -> None:
        """Go on by the same policy after a start that failed."""
        log.warning("cannot restart container %s: %s", live.container.name, error)
        self.problems[live.container.name] = f"container {live.container.name}: {error}"
        container = live.container
        again = next_start(
            container.spec.restart,
            restarts,
            exit_code=container.exit_code,
            started=container.finished,
            finished=container.finished,
            stopped_by_user=container.stopped_by_user,
        )
        self._containers.store(
            live,
            record={"restarts": restarts},
            restart_count=container.restart_count + 1,
            status=ContainerStatus.RESTARTING if again else ContainerStatus.EXITED,
        )
        if again:
            self._come_back_later(live, again)
        else:
            live.settle("not-running")

    async def start_task(self, live: Live) -> None:
        """Start an assigned task's container; a start that fails is repeated by its policy."""
        try:
            await self.start(live)
        except OrchestraError as error:
            with trio.CancelScope(shield=True):
                async with live.lock:
                    if live.container.status in (ContainerStatus.CREATED, ContainerStatus.EXITED):
                        self._retry(live, error, live.record.restarts)

    # --- stop, kill, pause -----------------------------------------------------------------

    async def stop(self, live: Live, timeout: float | None = None, signal_name: str = "") -> bool:
        """Ask the process to end, kill it after `timeout` seconds (-1: never; None: as specified).

        False where it does not run. No policy revives it.
        """
        if live.container.status is ContainerStatus.RESTARTING:
            live.back_off.cancel()
            async with live.lock:
                if live.container.status is ContainerStatus.RESTARTING:
                    self._containers.store(
                        live, status=ContainerStatus.EXITED, stopped_by_user=True
                    )
                    self.tell(live, "stop")
                    live.settle("not-running")
                    return True
        if not live.running:
            return False
        spec = live.container.spec
        number = signal_number(signal_name or spec.stop_signal or "SIGTERM")
        grace = spec.stop_grace if timeout is None else timeout
        self._containers.store(live, stopped_by_user=True)
        await self._outlive(self._end, live, number, grace)
        return True

    async def _end(self, live: Live, number: int, grace: float) -> None:
        ended = live.ended
        await self._signal_to_end(live, number)
        with trio.move_on_after(grace if grace >= 0 else float("inf")):
            await ended.wait()
        if not ended.is_set():
            await self._kill(live, ended)
        self.tell(live, "stop")

    async def _kill(self, live: Live, ended: trio.Event) -> None:
        await self._signal_to_end(live, signal.SIGKILL)
        with trio.move_on_after(KILL_TIMEOUT):
            await ended.wait()
        if not ended.is_set():
            raise Failed(
                f"container {live.container.name} did not end {KILL_TIMEOUT:.0f} s after SIGKILL: "
                f"its process {live.container.pid} hangs in the kernel (see its stack in /proc)"
            )

    async def _signal_to_end(self, live: Live, number: int) -> None:
        try:
            await self._signal(live, number)
        except Conflict:
            return  # it ended by itself in this very moment; that is told soon

    async def _signal(self, live: Live, number: int) -> None:
        paused = live.container.status is ContainerStatus.PAUSED
        await self._runtime.kill(live.id, number)
        self.tell(live, "kill", signal=str(number))
        if paused:
            # A frozen process takes no signal.
            await self._runtime.unpause(live.id)

    async def restart(
        self, live: Live, timeout: float | None = None, signal_name: str = ""
    ) -> None:
        """Stop and start; a container that does not run is just started."""
        await self.stop(live, timeout, signal_name)
        await self.start(live)
        self.tell(live, "restart")

    async def kill(self, live: Live, signal_name: str) -> None:
        """Send a signal. SIGKILL is waited for, and like the stop signal it ends restarts."""
        number = signal_number(signal_name or "SIGKILL")
        if not live.running:
            raise Conflict(
                f"cannot kill container: {live.container.name}: container {live.id} is not running"
            )
        if number in (signal.SIGKILL, signal_number(live.container.spec.stop_signal)):
            self._containers.store(live, stopped_by_user=True)
        if number == signal.SIGKILL:
            await self._outlive(self._kill, live, live.ended)
        else:
            await self._outlive(self._signal, live, number)

    async def pause(self, live: Live) -> None:
        async with live.lock:
            if live.container.status is ContainerStatus.PAUSED:
                raise Conflict(f"Container {live.id} is already paused")
            self.need_running(live)
            await self._runtime.pause(live.id)
            self._containers.store(live, status=ContainerStatus.PAUSED)
            self.tell(live, "pause")

    async def unpause(self, live: Live) -> None:
        async with live.lock:
            if live.container.status is not ContainerStatus.PAUSED:
                raise Conflict(f"Container {live.id} is not paused")
            await self._runtime.unpause(live.id)
            self._containers.store(live, status=ContainerStatus.RUNNING)
            self.tell(live, "unpause")

    def need_running(self, live: Live) -> None:
        if not live.running:
            raise Conflict(f"Container {live.id} is not running")

    def rename(self, live: Live, name: str) -> None:
        """Give a container another name. Invalid or Conflict where it cannot be."""
        old = live.container.name
        self._containers.rename(live, name)
        self.tell(live, "rename", oldName=f"/{old}")

    async def update(
        self, live: Live, limits: Limits, restart: RestartPolicy, request: Mapping[str, Any]
    ) -> None:
        """Give a container other limits and another policy, running or not. Invalid, Conflict."""
        async with live.lock:
            if live.container.status is ContainerStatus.REMOVING:
                raise Conflict("container is marked for removal and cannot be updated")
            self._runtime.update(live.id, limits)
            spec = evolve(live.container.spec, limits=limits, restart=restart)
            self._containers.store(live, spec=spec, request=request)
            self.tell(live, "update")

    # --- removal ---------------------------------------------------------------------------

    async def remove(self, live: Live, force: bool = False, volumes: bool = False) -> None:
        """Remove a container, its anonymous volumes too where `volumes`. Conflict where it runs
        and `force` does not end it."""
        alive = live.running or live.container.status is ContainerStatus.RESTARTING
        if alive and not force:
            raise Conflict(
                f'cannot remove container "/{live.container.name}": container is '
                f"{live.container.status.value}: stop the container before removing or "
                "force remove"
            )
        await self._outlive(self._end_and_remove, live, volumes)

    async def _end_and_remove(self, live: Live, volumes: bool) -> None:
        live.back_off.cancel()
        if live.running:
            self._containers.store(live, stopped_by_user=True)
            await self._kill(live, live.ended)
        with trio.CancelScope(shield=True):
            async with live.lock:
                if live.id in self._containers:
                    await self._remove(live, volumes)

    async def _remove(self, live: Live, volumes: bool) -> None:
        live.back_off.cancel()
        live.probes.cancel()
        self._containers.store(live, status=ContainerStatus.REMOVING)
        try:
            await self._runtime.delete(live.id)
        except OrchestraError as error:
            self._containers.store(live, status=ContainerStatus.DEAD, error=str(error))
            live.settle("removed", error=str(error))
            raise
        if volumes:
            await self._remove_anonymous(live)
        self._containers.forget(live)
        self.tell(live, "destroy")
        live.settle("not-running", "next-exit", "removed")

    async def _remove_anonymous(self, live: Live) -> None:
        others = [o for o in self._containers if o is not live]
        shared = {name for other in others for name in other.container.volumes.values()}
        anonymous = {v.name for v in self._volumes.list() if v.anonymous}
        for name in anonymous.intersection(live.container.volumes.values()) - shared:
            await trio.to_thread.run_sync(self._volumes.remove, name)
            self._events.publish("volume", "destroy", name, {"driver": "local"})

    # --- the agent's own start -------------------------------------------------------------

    def resume(self, *, booted: bool) -> None:
        """Take over what the agent finds at its start.

        Running containers are watched again, ends that nobody saw are seen to, interrupted
        removals finished. After a reboot (`booted`) containers come back by their policies, and
        every task that ran does: its end was the host's, not its own.
        """
        pids, told = self._runtime.running(), self._told_already()
        for live in self._containers:
            container = live.container
            if live.id in pids:
                self._adopt(live, pids[live.id])
            elif exited := told.get(live.id):
                self.take(exited)
            elif self._is_settling(live):
                self._plumbing.restore(live)  # its end is told when its output is drained
            elif container.status is ContainerStatus.REMOVING:
                self.spawn(live, self.remove, live, True, True)
            elif booted:
                self._boot(live)
            elif live.running:
                self.take(Exited(live.id, None, False, time.time()))
            elif container.status is ContainerStatus.RESTARTING:
                self._resume_back_off(live)
            elif container.spec.auto_remove and container.started:
                self.spawn(live, self.remove, live, True, True)

    def _told_already(self) -> dict[str, Exited]:
        """Take the exits that the runtime has told before anybody listened."""
        told: dict[str, Exited] = {}
        while True:
            try:
                exited = self._runtime.exits.receive_nowait()
            except trio.WouldBlock:
                return told
            told[exited.container] = exited

    def _is_settling(self, live: Live) -> bool:
        """Whether it ended and the runtime is still at it: its run directory is there then."""
        return os.path.exists(f"{self._paths.container_run(live.id)}/process")

    def _adopt(self, live: Live, pid: int) -> None:
        self._plumbing.restore(live)
        if not live.running or live.container.pid != pid:
            # The agent died between the start and its record.
            self._containers.store(
                live,
                status=ContainerStatus.RUNNING,
                pid=pid,
                started=live.container.started if live.running else time.time(),
                health=at_start(live.container.spec.healthcheck),
            )
        self._watch(live)

    def _resume_back_off(self, live: Live) -> None:
        container = live.container
        again = self._decide(live, container.exit_code, container.finished)
        at = max(again.at, time.time()) if again else time.time()
        restarts = again.restarts if again else live.record.restarts
        self._come_back_later(live, Restart(at, restarts))

    def _boot(self, live: Live) -> None:
        container = live.container
        was_running = live.running or container.status is ContainerStatus.RESTARTING
        comes_back = (was_running and bool(container.task)) or starts_at_boot(
            container.spec.restart,
            was_running=was_running,
            ever_started=container.started > 0,
            stopped_by_user=container.stopped_by_user,
        )
        if not was_running and not comes_back:
            return
        ended: dict[str, Any] = {
            "pid": 0,
            "finished": time.time(),
            "exit_code": UNKNOWN_EXIT,
            "last_exit_code": UNKNOWN_EXIT,
        }
        status = ContainerStatus.RESTARTING if comes_back else ContainerStatus.EXITED
        self._containers.store(live, status=status, **(ended if was_running else {}))
        if comes_back:
            self._come_back_later(live, Restart(time.time(), Restarts()))
        elif container.spec.auto_remove:
            self.spawn(live, self.remove, live, True, True)

    # --- telling, spawning -----------------------------------------------------------------

    def tell(self, live: Live, action: str, **attributes: str) -> None:
        """Publish an event of a container, with its image, name and labels."""
        spec = live.container.spec
        self._events.publish(
            "container",
            action,
            live.id,
            {**spec.labels, "image": spec.image, "name": live.container.name, **attributes},
        )

    def _connected(self, live: Live, action: str) -> None:
        for endpoint in live.container.spec.endpoints:
            name = endpoint.network_name
            kind = "bridge" if name == "bridge" else "overlay"
            attributes = {"container": live.id, "name": name, "type": kind}
            self._events.publish("network", action, endpoint.network, attributes)

    def _mounted(self, live: Live, action: str) -> None:
        for target, name in live.container.volumes.items():
            attributes = {"container": live.id, "driver": "local", "destination": target}
            self._events.publish("volume", action, name, attributes)

    async def _outlive(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Do `work` to its end even where the client that waits for it goes away."""
        errors: list[Exception] = []
        done = trio.Event()

        async def run() -> None:
            try:
                await work(*arguments)
            except Exception as error:
                errors.append(error)
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if errors:
            raise errors[0]

    def spawn(self, live: Live, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run `work` of one container beside everything else; its failure stays its own."""
        self._nursery.start_soon(self._guarded, live, work, arguments)

    async def _guarded(
        self, live: Live, work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]
    ) -> None:
        try:
            await work(*arguments)
        except Exception as error:
            log.exception("container %s (%s)", live.container.name, live.id[:12])
            self.problems[live.container.name] = f"container {live.container.name}: {error}"
