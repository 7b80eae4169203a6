"""The engine: `api.engine.Engine` over runtime, image store, volumes and fabric.

The thin face of the package. Each method resolves what the user typed and hands over to the
module whose idea it is: `creation`, `lifecycle`, `execs`, `plumbing`, `events`. What changed a
container returns only when the change would outlive a power cut.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from tempfile import TemporaryDirectory

import trio
from attrs import evolve

from orchestra.agent.archive import (
    Part,
    View,
    path_stat,
    read_archive,
    user_of,
    write_archive,
)
from orchestra.agent.complete import complete
from orchestra.agent.containers import Wait
from orchestra.agent.creation import Parts, create_container, new_id
from orchestra.agent.execs import Execs
from orchestra.agent.lifecycle import Lifecycle
from orchestra.agent.names import generate
from orchestra.agent.plumbing import Plumbing
from orchestra.agent.rootdiff import changes, size_of
from orchestra.agent.top import TITLES, rows
from orchestra.agent.usage import read_usage
from orchestra.api.engine import (
    Attachment,
    Change,
    CreateRequest,
    EndpointWish,
    Images,
    LogLine,
    LogOptions,
    NetworkWish,
    PathStat,
    UpdateWish,
    Usage,
)
from orchestra.image.compression import decompress
from orchestra.image.flow import pull, push
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Endpoint,
    Exec,
    ExecSpec,
    LocalVolume,
)
from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.model.event import Event
from orchestra.model.local_network import LocalNetwork
from orchestra.model.node import NodeFacts
from orchestra.model.paths import NodePaths
from orchestra.model.service import MountType
from orchestra.runtime.files import resting_root, running_root

CONDITIONS = ("not-running", "next-exit", "removed")


class Engine:
    """Implements the protocol of the same name; texts of errors are those that clients match."""

    def __init__(
        self,
        paths: NodePaths,
        parts: Parts,
        lifecycle: Lifecycle,
        plumbing: Plumbing,
        facts: NodeFacts,
    ) -> None:
        self._paths = paths
        self.facts = facts
        self.images: Images = parts.images
        self._parts = parts
        self._containers = parts.containers
        self._runtime = parts.runtime
        self._lifecycle = lifecycle
        self._plumbing = plumbing
        self._execs = Execs(parts.containers, parts.runtime, lifecycle)

    # --- containers ------------------------------------------------------------------------

    def containers(self) -> Sequence[Container]:
        return [live.container for live in self._containers]

    def container(self, ref: str) -> Container:
        return self._containers.find(ref).container

    async def create(self, request: CreateRequest) -> tuple[str, Sequence[str]]:
        image = self.images.get(request.spec.image)
        container_id = new_id()
        name = request.name.removeprefix("/") or generate(self._containers.names)
        ports = self._plumbing.choose(request.spec.ports, request.port_ranges)
        request = evolve(request, spec=evolve(request.spec, ports=ports))
        spec = complete(request, image)
        mode, endpoints = self._networks(request)
        spec = evolve(spec, network_mode=mode, endpoints=endpoints)
        await create_container(self._parts, container_id, name, spec, request=request.body)
        await self._containers.persist()
        return container_id, _warnings(spec)

    def _networks(self, request: CreateRequest) -> tuple[str, tuple[Endpoint, ...]]:
        mode = request.spec.network_mode
        if mode in ("", "default"):
            mode = "bridge"
        if mode.startswith("container:"):
            other = self._containers.find(mode.removeprefix("container:"))
            return f"container:{other.id}", ()
        if mode in ("host", "none"):
            return mode, ()
        wishes = {("bridge" if n == "default" else n): w for n, w in request.networks.items()}
        # The mode's network comes first: it is eth0.
        names = dict.fromkeys((mode, *wishes))
        endpoints: dict[str, Endpoint] = {}
        for name in names:
            net = self._plumbing.find(name)
            wish = wishes.get(name, EndpointWish())
            endpoints.setdefault(
                net.id, Endpoint(net.id, net.name, wish.address, wish.aliases, wish.mac)
            )
        return mode, tuple(endpoints.values())

    async def start(self, ref: str) -> bool:
        started = await self._lifecycle.start(self._containers.find(ref))
        await self._containers.persist()
        return started

    async def stop(self, ref: str, timeout: float | None = None, signal: str = "") -> bool:
        stopped = await self._lifecycle.stop(self._containers.find(ref), timeout, signal)
        await self._containers.persist()
        return stopped

    async def restart(self, ref: str, timeout: float | None = None, signal: str = "") -> None:
        await self._lifecycle.restart(self._containers.find(ref), timeout, signal)
        await self._containers.persist()

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        await self._lifecycle.kill(self._containers.find(ref), signal)
        await self._containers.persist()

    async def pause(self, ref: str) -> None:
        await self._lifecycle.pause(self._containers.find(ref))
        await self._containers.persist()

    async def unpause(self, ref: str) -> None:
        await self._lifecycle.unpause(self._containers.find(ref))
        await self._containers.persist()

    async def update(self, ref: str, wish: UpdateWish) -> None:
        live = self._containers.find(ref)
        if live.container.task:
            raise Conflict(
                f"container {live.container.name} is a stack's: change the compose file, and "
                "`orchestra up`"
            )
        request = {**live.container.request, "HostConfig": wish.host_config}
        await self._lifecycle.update(live, wish.limits, wish.restart, request)
        await self._containers.persist()

    async def rename(self, ref: str, name: str) -> None:
        self._lifecycle.rename(self._containers.find(ref), name.removeprefix("/"))
        await self._containers.persist()

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        await self._lifecycle.remove(self._containers.find(ref), force, volumes)
        await self._containers.persist()

    def wait(self, ref: str, condition: str) -> Wait:
        live = self._containers.find(ref)
        condition = condition or "not-running"
        if condition not in CONDITIONS:
            raise Invalid(f"invalid condition: {condition!r} (one of {', '.join(CONDITIONS)})")
        wait = Wait(live, condition)
        alive = live.running or live.container.status is ContainerStatus.RESTARTING
        if condition == "not-running" and not alive:
            wait.settle(live.container.exit_code)
        return wait

    async def attach(
        self, ref: str, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> Attachment:
        live = self._containers.find(ref)
        if live.container.status in (ContainerStatus.PAUSED, ContainerStatus.RESTARTING):
            raise Conflict(
                f"Container {live.id} is {live.container.status.value}, "
                "wait until it runs before attaching"
            )
        attachment: Attachment = await self._runtime.attach(live.id, stdin, stdout, stderr)
        if stream:
            self._lifecycle.tell(live, "attach")
        if not logs:
            return attachment
        # The live stream was opened first, so what is written meanwhile is in neither twice.
        options = LogOptions(stdout, stderr, until=time.time())
        return _Replay(self.logs(live.id, options), attachment, stream)

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        live = self._containers.find(ref)
        self._lifecycle.need_running(live)
        await self._runtime.resize(live.id, rows, columns)
        self._lifecycle.tell(live, "resize", height=str(rows), width=str(columns))

    def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogLine]:
        return self._logs(self._containers.find(ref).id, options)

    async def _logs(self, container_id: str, options: LogOptions) -> AsyncIterator[LogLine]:
        records = self._runtime.logs(
            container_id,
            stdout=options.stdout,
            stderr=options.stderr,
            follow=options.follow,
            since=options.since,
            until=options.until,
            tail=options.tail,
        )
        async for record in records:
            yield LogLine(record.stream, record.time_ns, record.data)

    async def top(self, ref: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        live = self._containers.find(ref)
        self._lifecycle.need_running(live)
        self._lifecycle.tell(live, "top")
        return TITLES, rows(self._runtime.pids(live.id))

    def usage(self, ref: str) -> Usage | None:
        live = self._containers.find(ref)
        if not live.running:
            return None
        return read_usage(self._runtime, live.id, live.container.pid)

    async def changes(self, ref: str) -> Sequence[tuple[str, Change]]:
        container = self._containers.find(ref).container
        upper = f"{self._paths.container(container.id)}/upper"
        lowers = self._parts.images.lowers(container.spec.image_id)
        mounted = [m.target for m in container.spec.mounts]
        mounted += [f.target for f in container.spec.files]
        return await trio.to_thread.run_sync(changes, upper, lowers, mounted)

    async def path_stat(self, ref: str, path: str) -> PathStat:
        view = await self._view(ref)
        try:
            return await trio.to_thread.run_sync(path_stat, view, path)
        finally:
            view.close()

    async def archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        view = await self._view(ref)
        try:
            async with aclosing(push(read_archive(view, path))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            view.close()
        self._lifecycle.tell(self._containers.find(ref), "archive-path")

    async def unpack(
        self,
        ref: str,
        path: str,
        chunks: AsyncIterator[bytes],
        keep_kinds: bool = False,
        as_user: bool = False,
    ) -> None:
        view = await self._view(ref)
        spec = self._containers.find(ref).container.spec

        def work() -> None:
            owner = user_of(view, spec.user) if as_user and spec.user else None
            tar = decompress(pull(chunks))
            write_archive(view, path, tar, keep_kinds=keep_kinds, owner=owner)

        try:
            await trio.to_thread.run_sync(work)
        finally:
            view.close()
        self._lifecycle.tell(self._containers.find(ref), "extract-to-dir")

    async def _view(self, ref: str) -> View:
        """The container's files as they are now; no start or end comes in between."""
        live = self._containers.find(ref)
        async with live.lock:
            container = live.container
            if live.running:
                try:
                    root = running_root(container.pid)
                except OSError:
                    raise Conflict(f"Container {live.id} is just ending: try again") from None
                return View(container.name, root)
            lowers = self._parts.images.lowers(container.spec.image_id)
            return await trio.to_thread.run_sync(self._resting_view, container, lowers)

    def _resting_view(self, container: Container, lowers: Sequence[str]) -> View:
        spec = container.spec
        with TemporaryDirectory(dir=self._paths.run, prefix="view-") as scratch:
            root = resting_root(lowers, self._paths.container(container.id), scratch)
        parts = []
        for mount in spec.mounts:
            source = mount.source
            if mount.type is MountType.VOLUME:
                source = self._parts.volumes.path(container.volumes[mount.target])
            elif mount.type is MountType.TMPFS:
                continue
            if os.path.isdir(source):
                fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                parts.append(Part(mount.target.rstrip("/"), fd, mount.read_only))
        parts.sort(key=lambda part: len(part.target), reverse=True)
        return View(container.name, root, tuple(parts), spec.read_only)

    async def sizes(self, ref: str) -> tuple[int, int]:
        container = self._containers.find(ref).container
        upper = f"{self._paths.container(container.id)}/upper"
        own = await trio.to_thread.run_sync(size_of, upper)
        try:
            return own, own + self.images.get(container.spec.image_id).size
        except NotFound:
            return own, own

    # --- exec ------------------------------------------------------------------------------

    async def exec_create(self, ref: str, spec: ExecSpec) -> str:
        return self._execs.create(ref, spec)

    async def exec_start(self, exec_id: str, detach: bool, tty: bool) -> Attachment | None:
        return await self._execs.start(exec_id, detach)

    def exec_inspect(self, exec_id: str) -> Exec:
        return self._execs.inspect(exec_id)

    async def exec_resize(self, exec_id: str, rows: int, columns: int) -> None:
        await self._execs.resize(exec_id, rows, columns)

    # --- events, volumes, networks ---------------------------------------------------------

    def events(self, since: float = 0.0, until: float = 0.0) -> AsyncIterator[Event]:
        return self._parts.events.read(since, until)

    def volumes(self) -> Sequence[LocalVolume]:
        return self._parts.volumes.list()

    async def volume_create(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> LocalVolume:
        is_new = name not in {v.name for v in self._parts.volumes.list()}
        volume = self._parts.volumes.create(name, labels, options)
        if is_new:
            self._parts.events.publish("volume", "create", volume.name, {"driver": "local"})
        return volume

    def volume(self, name: str) -> LocalVolume:
        return self._parts.volumes.get(name)

    async def volume_remove(self, name: str, force: bool = False) -> None:
        users = [live.id for live in self._containers if name in live.container.volumes.values()]
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        await trio.to_thread.run_sync(self._parts.volumes.remove, name)
        self._parts.events.publish("volume", "destroy", name, {"driver": "local"})

    async def volume_size(self, name: str) -> int:
        return await trio.to_thread.run_sync(size_of, self._parts.volumes.path(name))

    def networks(self) -> Sequence[AssignedNetwork]:
        return self._plumbing.networks()

    def local_networks(self) -> Sequence[LocalNetwork]:
        return self._plumbing.local_networks()

    async def network_create(self, name: str, wish: NetworkWish) -> LocalNetwork:
        made = self._plumbing.make_network(name, wish)
        await self._containers.persist()
        attributes = {"name": name, "type": "bridge"}
        self._parts.events.publish("network", "create", made.id, attributes)
        return made

    async def network_remove(self, network_id: str) -> None:
        name = self._plumbing.find(network_id).name
        self._plumbing.remove_network(network_id)
        await self._containers.persist()
        attributes = {"name": name, "type": "bridge"}
        self._parts.events.publish("network", "destroy", network_id, attributes)


class _Replay:
    """An attachment that gives the log first, then (where `stream`) what comes live."""

    def __init__(self, lines: AsyncIterator[LogLine], attachment: Attachment, stream: bool) -> None:
        self._lines = lines
        self._attachment = attachment
        self._stream = stream

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for line in self._lines:
            yield line.stream, line.data
        if self._stream:
            async for chunk in self._attachment.output():
                yield chunk

    async def write(self, data: bytes) -> None:
        await self._attachment.write(data)

    async def close_stdin(self) -> None:
        await self._attachment.close_stdin()

    async def aclose(self) -> None:
        await self._attachment.aclose()


def _warnings(spec: ContainerSpec) -> Sequence[str]:
    if spec.network_mode == "host" and spec.ports:
        return ("Published ports are discarded when using host network mode",)
    return ()
