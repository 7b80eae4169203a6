"""An engine in memory whose containers run small programs of this file.

It keeps the protocol's promises (state first, then event, then reply; subscribers before start;
waiters registered at once) and knows these commands: `echo WORDS`, `cat`, `both` (a line to each
stream), `exit N`, `sleep` (until killed), `count N` (N lines).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from orchestra.api.engine import (
    Change,
    CreateRequest,
    LogLine,
    LogOptions,
    NetworkWish,
    PathStat,
    Traffic,
    UpdateWish,
    Usage,
)
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Endpoint,
    Exec,
    ExecSpec,
    Image,
    ImageConfig,
    LocalVolume,
)
from orchestra.model.errors import Conflict, Forbidden, Invalid, NotFound, StartFailed
from orchestra.model.event import Event
from orchestra.model.local_network import LocalNetwork
from orchestra.model.node import NodeFacts, Observed

FACTS = NodeFacts(
    id="n" * 25,
    name="toy",
    hostname="toy",
    agent_version="0",
    protocol=1,
    os="Toy Linux",
    architecture="amd64",
    kernel="6.18.0",
    cpus=2.0,
    memory=4 << 30,
    cgroup_version=2,
)
BRIDGE = AssignedNetwork(id="b" * 64, name="bridge", subnet="10.17.0.0/20", gateway="10.17.0.1")


class ToyProcess:
    """A program's streams: output is logged and sent to every subscriber, input is queued."""

    def __init__(self) -> None:
        self.log: list[LogLine] = []
        self.code: int | None = None
        self.grew = trio.Event()
        self.stdin_send, self.stdin = trio.open_memory_channel[bytes](1000)
        self.killed = trio.CancelScope()

    def write(self, stream: int, data: bytes) -> None:
        self.log.append(LogLine(stream, time.time_ns(), data))
        self._changed()

    def end(self, code: int) -> None:
        self.code = code
        self._changed()

    def _changed(self) -> None:
        self.grew.set()
        self.grew = trio.Event()

    async def lines(self, start: int = 0, follow: bool = True) -> AsyncIterator[LogLine]:
        at = start
        while True:
            while at < len(self.log):
                yield self.log[at]
                at += 1
            if self.code is not None or not follow:
                return
            await self.grew.wait()

    async def run(self, args: Sequence[str]) -> int:
        program, *words = args
        if program == "echo":
            self.write(1, " ".join(words).encode() + b"\n")
        elif program == "both":
            self.write(1, b"out\n")
            self.write(2, b"err\n")
        elif program == "count":
            for number in range(int(words[0])):
                self.write(1, b"%d\n" % number)
        elif program == "cat":
            async for data in self.stdin:
                self.write(1, data)
        elif program == "exit":
            return int(words[0])
        elif program == "sleep":
            await trio.sleep_forever()
        else:
            raise StartFailed(
                f'exec: "{program}": executable file not found in $PATH', exit_code=127
            )
        return 0

    async def live(self, args: Sequence[str]) -> int:
        with self.killed:
            return await self.run(args)
        return 137


class ToyAttachment:
    def __init__(self, process: ToyProcess, stdin: bool, wanted: set[int], start: int) -> None:
        self._process, self._stdin, self._wanted = process, stdin, wanted
        self._start = start
        self.closed = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for line in self._process.lines(self._start):
            if line.stream in self._wanted:
                yield line.stream, line.data

    async def write(self, data: bytes) -> None:
        if self._stdin:
            await self._process.stdin_send.send(data)

    async def close_stdin(self) -> None:
        if self._stdin:
            await self._process.stdin_send.aclose()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


class ToyWaiter:
    def __init__(self, engine: ToyEngine, container_id: str, condition: str) -> None:
        self._engine, self._id = engine, container_id
        self._done = trio.Event()
        self._result = (0, "")
        container = engine.records[container_id]
        if condition == "not-running" and container.status is not ContainerStatus.RUNNING:
            self.settle(container.exit_code)
        else:
            engine.waiters.append((container_id, condition, self))

    def settle(self, code: int) -> None:
        self._result = (code, "")
        self._done.set()

    async def result(self) -> tuple[int, str]:
        await self._done.wait()
        return self._result

    def close(self) -> None:
        self._engine.waiters = [w for w in self._engine.waiters if w[2] is not self]


class ToyImages:
    def __init__(self) -> None:
        self.store: dict[str, Image] = {}
        self.blobs: dict[str, bytes] = {}
        self.add("busybox:latest")

    def add(self, name: str) -> Image:
        digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        image = Image(
            id=digest,
            manifest_digest=digest,
            names=(name,) if name else (),
            created=1_700_000_000.0,
            size=1000,
            architecture="amd64",
            layers=("sha256:" + "1" * 64,),
            history=({"created": "2023-11-14T22:13:20Z", "created_by": "ADD rootfs /"},),
            config=ImageConfig(env=("PATH=/bin",), cmd=("sh",)),
        )
        self.store[digest] = image
        return image

    def list(self) -> Sequence[Image]:
        return list(self.store.values())

    def get(self, ref: str) -> Image:
        name = ref if ":" in ref.rpartition("/")[2] else f"{ref}:latest"
        for image in self.store.values():
            if ref == image.id or name in image.names or image.id[7:].startswith(ref):
                return image
        raise NotFound(f"No such image: {name}")

    async def load(self, chunks: AsyncIterator[bytes]) -> Sequence[str]:
        content = b"".join([chunk async for chunk in chunks])
        if not content.startswith(b"image "):
            raise Invalid("this is no image archive")
        return [self.add(content.split()[1].decode()).names[0]]

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        images = [self.get(ref) for ref in refs]

        async def chunks() -> AsyncIterator[bytes]:
            for image in images:
                yield f"image {image.names[0]}".encode()

        return chunks()

    async def import_rootfs(
        self, chunks: AsyncIterator[bytes], name: str, changes: Sequence[str], message: str = ""
    ) -> str:
        async for _ in chunks:
            pass
        return self.add(name).id

    async def tag(self, ref: str, name: str) -> None:
        image = self.get(ref)
        self.store[image.id] = attrs.evolve(image, names=(*image.names, name))

    async def remove(
        self, ref: str, force: bool = False, in_use: Mapping[str, str] | None = None
    ) -> Sequence[tuple[str, str]]:
        image = self.get(ref)
        if in_use and image.id in in_use and not force:
            raise Conflict(f"{in_use[image.id]} is using its referenced image {image.id}")
        del self.store[image.id]
        return [("Untagged", ref), ("Deleted", image.id)]

    def missing_blobs(self, digests: Sequence[str]) -> Sequence[str]:
        return [digest for digest in digests if digest not in self.blobs]

    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        content = b"".join([chunk async for chunk in chunks])
        found = "sha256:" + hashlib.sha256(content).hexdigest()
        if found != digest:
            raise Invalid(f"the blob's digest is {found}, not {digest}")
        self.blobs[digest] = content

    @asynccontextmanager
    async def open_blob(self, digest: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if digest not in self.blobs:
            raise NotFound(f"no blob {digest}")

        async def chunks() -> AsyncIterator[bytes]:
            yield self.blobs[digest]

        yield chunks()

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        return self.add(names[0])


class ToyEngine:
    """`nursery` runs the containers' programs."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.facts = FACTS
        self.images = ToyImages()
        self.nursery = nursery
        self.records: dict[str, Container] = {}
        self.processes: dict[str, ToyProcess] = {}
        self.execs: dict[str, tuple[Exec, ToyProcess]] = {}
        self.attachments: list[ToyAttachment] = []
        self.waiters: list[tuple[str, str, ToyWaiter]] = []
        self.local_volumes: dict[str, LocalVolume] = {}
        self.history: list[Event] = []
        self.happened = trio.Event()
        self.resized: list[tuple[str, int, int]] = []
        self.samples = 0
        self.made: dict[str, LocalNetwork] = {}
        self.files = {"/etc/motd": b"hello", "/": b"", "/.": b"everything"}
        self.unpacked: list[tuple[str, bool, bool]] = []

    # --- inner workings

    def _change(self, container_id: str, **values: Any) -> None:
        self.records[container_id] = attrs.evolve(self.records[container_id], **values)

    def _event(self, action: str, container: Container, **attributes: str) -> None:
        attributes = {"image": container.spec.image, "name": container.name, **attributes}
        self.history.append(
            Event("container", action, container.id, attributes, time_ns=time.time_ns())
        )
        self.happened.set()
        self.happened = trio.Event()

    def _settle(self, container_id: str, code: int, conditions: tuple[str, ...]) -> None:
        for waited, condition, waiter in list(self.waiters):
            if waited == container_id and condition in conditions:
                waiter.settle(code)

    async def _live(self, container_id: str) -> None:
        process = self.processes[container_id]
        container = self.records[container_id]
        code = await process.live(container.spec.args)
        self._change(
            container_id,
            status=ContainerStatus.EXITED,
            exit_code=code,
            finished=time.time(),
            pid=0,
        )
        process.end(code)
        self._event("die", container, exitCode=str(code))
        self._settle(container_id, code, ("not-running", "next-exit"))
        if container.spec.auto_remove:
            await self.remove(container_id)

    # --- containers

    def containers(self) -> Sequence[Container]:
        return list(self.records.values())

    def container(self, ref: str) -> Container:
        for container in self.records.values():
            if ref in (container.id, container.name):
                return container
        found = [c for c in self.records.values() if c.id.startswith(ref)]
        if len(found) != 1:
            raise NotFound(f"No such container: {ref}")
        return found[0]

    async def create(self, request: CreateRequest) -> tuple[str, Sequence[str]]:
        image = self.images.get(request.spec.image)
        container_id = hashlib.sha256(f"{time.time_ns()}".encode()).hexdigest()
        name = request.name or f"toy_{container_id[:6]}"
        for other in self.records.values():
            if other.name == name:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container '
                    f'"{other.id}". You have to remove (or rename) that container to be able to '
                    "reuse that name."
                )
        spec: ContainerSpec = attrs.evolve(
            request.spec,
            image_id=image.id,
            args=(*request.spec.entrypoint, *(request.spec.args or image.config.cmd)),
            env=(*image.config.env, *request.spec.env),
            endpoints=(Endpoint(BRIDGE.id, "bridge", "10.17.0.2", (), "02:42:0a:11:00:02"),),
        )
        container = Container(container_id, name, time.time(), spec, request=request.body)
        self.records[container_id] = container
        self.processes[container_id] = ToyProcess()
        self._event("create", container)
        return container_id, []

    async def start(self, ref: str) -> bool:
        container = self.container(ref)
        if container.status is ContainerStatus.RUNNING:
            return False
        if container.spec.args[0] not in ("echo", "both", "count", "cat", "exit", "sleep"):
            if container.spec.auto_remove:
                await self.remove(container.id)
            raise StartFailed(
                f'exec: "{container.spec.args[0]}": executable file not found in $PATH', 127
            )
        if container.started:
            self.processes[container.id] = ToyProcess()
        self._change(container.id, status=ContainerStatus.RUNNING, started=time.time(), pid=4242)
        self._event("start", container)
        self.nursery.start_soon(self._live, container.id)
        return True

    async def stop(self, ref: str, timeout: float | None = None, signal: str = "") -> bool:
        container = self.container(ref)
        if container.status is not ContainerStatus.RUNNING:
            return False
        waiter = self.wait(ref, "next-exit")
        self.processes[container.id].killed.cancel()
        await waiter.result()
        return True

    async def restart(self, ref: str, timeout: float | None = None, signal: str = "") -> None:
        await self.stop(ref, timeout, signal)
        await self.start(ref)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        container = self.container(ref)
        if container.status is not ContainerStatus.RUNNING:
            raise Conflict(f"cannot kill container: {ref}: Container {container.id} is not running")
        self._event("kill", container, signal=signal)
        self.processes[container.id].killed.cancel()

    async def pause(self, ref: str) -> None:
        self._change(self.container(ref).id, status=ContainerStatus.PAUSED)

    async def unpause(self, ref: str) -> None:
        self._change(self.container(ref).id, status=ContainerStatus.RUNNING)

    async def rename(self, ref: str, name: str) -> None:
        self._change(self.container(ref).id, name=name)

    async def update(self, ref: str, wish: UpdateWish) -> None:
        container = self.container(ref)
        spec = attrs.evolve(container.spec, limits=wish.limits, restart=wish.restart)
        request = {**container.request, "HostConfig": wish.host_config}
        self._change(container.id, spec=spec, request=request)

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        container = self.container(ref)
        if container.status is ContainerStatus.RUNNING:
            if not force:
                raise Conflict(
                    "cannot remove container: container is running: stop the container before "
                    "removing or force remove"
                )
            await self.stop(ref)
            container = self.container(ref)
        del self.records[container.id]
        self._event("destroy", container)
        self._settle(container.id, container.exit_code, ("not-running", "next-exit", "removed"))

    def wait(self, ref: str, condition: str) -> ToyWaiter:
        return ToyWaiter(self, self.container(ref).id, condition)

    async def attach(
        self, ref: str, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> ToyAttachment:
        container = self.container(ref)
        process = self.processes[container.id]
        wanted = {1} if stdout else set()
        wanted |= {2} if stderr else set()
        start = 0 if logs else len(process.log)
        attachment = ToyAttachment(process, stdin and container.spec.open_stdin, wanted, start)
        self.attachments.append(attachment)
        return attachment

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        self.resized.append((self.container(ref).id, rows, columns))

    async def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogLine]:
        process = self.processes[self.container(ref).id]
        start = 0 if options.tail is None else max(0, len(process.log) - options.tail)
        async for line in process.lines(start, options.follow):
            if (line.stream == 1 and options.stdout) or (line.stream == 2 and options.stderr):
                yield line

    async def top(self, ref: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        return ("UID", "PID", "CMD"), (("root", "4242", " ".join(self.container(ref).spec.args)),)

    # --- exec

    def usage(self, ref: str) -> Usage | None:
        if self.container(ref).status is not ContainerStatus.RUNNING:
            return None
        self.samples += 1
        return Usage(
            time=1_700_000_000.0 + self.samples,
            host_cpu=self.samples * 2_000_000_000,
            host_cpus=2,
            host_memory=8 << 30,
            cpu_total=self.samples * 500_000_000,
            memory=5 << 20,
            memory_details={"inactive_file": 1 << 20},
            pids=3,
            block_io=((8, 0, "read", 4096),),
            networks={"eth0": Traffic(rx_bytes=10, tx_bytes=20)},
        )

    async def changes(self, ref: str) -> Sequence[tuple[str, Change]]:
        self.container(ref)
        return [("/tmp", Change.MODIFIED), ("/tmp/new", Change.ADDED), ("/bin/ls", Change.DELETED)]

    async def path_stat(self, ref: str, path: str) -> PathStat:
        self.container(ref)
        if path not in self.files:
            raise NotFound(f"Could not find the file {path} in container {ref}")
        return PathStat("motd", len(self.files[path]), 0o104755, 1_700_000_000.0)

    async def archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        yield self.files[path]

    async def unpack(
        self,
        ref: str,
        path: str,
        chunks: AsyncIterator[bytes],
        keep_kinds: bool = False,
        as_user: bool = False,
    ) -> None:
        self.container(ref)
        self.files[path] = b"".join([chunk async for chunk in chunks])
        self.unpacked.append((path, keep_kinds, as_user))

    async def sizes(self, ref: str) -> tuple[int, int]:
        self.container(ref)
        return 100, 1100

    async def volume_size(self, name: str) -> int:
        self.volume(name)
        return 50

    async def exec_create(self, ref: str, spec: ExecSpec) -> str:
        container = self.container(ref)
        if container.status is not ContainerStatus.RUNNING:
            raise Conflict(f"Container {container.id} is not running")
        exec_id = hashlib.sha256(f"exec{time.time_ns()}".encode()).hexdigest()
        self.execs[exec_id] = (Exec(exec_id, container.id, spec), ToyProcess())
        return exec_id

    async def exec_start(self, exec_id: str, detach: bool, tty: bool) -> ToyAttachment | None:
        value, process = self.execs[exec_id]
        self.execs[exec_id] = (attrs.evolve(value, running=True), process)
        attachment = ToyAttachment(process, value.spec.stdin, {1, 2}, 0)
        self.attachments.append(attachment)
        self.nursery.start_soon(self._live_exec, exec_id)
        return None if detach else attachment

    async def _live_exec(self, exec_id: str) -> None:
        value, process = self.execs[exec_id]
        try:
            code = await process.live(value.spec.args)
        except StartFailed as error:
            code = error.exit_code
            process.write(1, f"OCI runtime exec failed: {error}\r\n".encode())
        self.execs[exec_id] = (attrs.evolve(value, running=False, exit_code=code), process)
        process.end(code)

    def exec_inspect(self, exec_id: str) -> Exec:
        if exec_id not in self.execs:
            raise NotFound(f"No such exec instance: {exec_id}")
        return self.execs[exec_id][0]

    async def exec_resize(self, exec_id: str, rows: int, columns: int) -> None:
        self.resized.append((exec_id, rows, columns))

    # --- the rest

    async def events(self, since: float = 0.0, until: float = 0.0) -> AsyncIterator[Event]:
        at = 0 if since else len(self.history)
        while True:
            while at < len(self.history):
                yield self.history[at]
                at += 1
            if until and until <= time.time():
                return
            await self.happened.wait()

    def volumes(self) -> Sequence[LocalVolume]:
        return list(self.local_volumes.values())

    async def volume_create(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> LocalVolume:
        made = LocalVolume(name, f"/volumes/{name}", time.time(), labels, options)
        return self.local_volumes.setdefault(name, made)

    def volume(self, name: str) -> LocalVolume:
        if name not in self.local_volumes:
            raise NotFound(f"get {name}: no such volume")
        return self.local_volumes[name]

    async def volume_remove(self, name: str, force: bool = False) -> None:
        self.volume(name)
        del self.local_volumes[name]

    def local_networks(self) -> Sequence[LocalNetwork]:
        return tuple(self.made.values())

    async def network_create(self, name: str, wish: NetworkWish) -> LocalNetwork:
        made = LocalNetwork(
            hashlib.sha256(name.encode()).hexdigest(),
            name,
            0,
            1.0,
            wish.internal,
            wish.labels,
            wish.options,
        )
        self.made[made.id] = made
        return made

    async def network_remove(self, network_id: str) -> None:
        if network_id not in self.made:
            raise Forbidden("bridge is a pre-defined network and cannot be removed")
        del self.made[network_id]

    def networks(self) -> Sequence[AssignedNetwork]:
        made = (AssignedNetwork(n.id, n.name, "10.17.16.0/24", "", n.internal) for n in
                self.made.values())  # fmt: skip
        return [BRIDGE, *made]


class ToyNode:
    """The node protocol's side: an assignment in memory, a report that changes with it."""

    def __init__(self) -> None:
        self.generation = 0
        self.digests: dict[str, str] = {}
        self.bodies: dict[str, Any] = {}
        self.sequence = 1
        self.changed = trio.Event()

    def observed(self) -> Observed:
        return Observed(self.sequence, FACTS, applied=self.generation)

    async def wait_observed(self, after: int, timeout: float) -> Observed:
        with trio.move_on_after(timeout):
            while self.sequence <= after:
                await self.changed.wait()
        return self.observed()

    def assignment_digests(self) -> tuple[int, Mapping[str, str]]:
        return self.generation, self.digests

    def assignment_bodies(self) -> Mapping[str, Any]:
        return self.bodies

    async def put_assignment(
        self, generation: int, digests: Mapping[str, str], bodies: Mapping[str, Any]
    ) -> Sequence[str]:
        if generation < self.generation:
            raise Conflict(f"generation {generation} is below the stored {self.generation}")
        known = {name for name, digest in self.digests.items() if digests.get(name) == digest}
        missing = [name for name in digests if name not in bodies and name not in known]
        if missing:
            return missing
        self.bodies = {n: bodies[n] if n in bodies else self.bodies[n] for n in digests}
        self.digests, self.generation = dict(digests), generation
        self.sequence += 1
        self.changed.set()
        self.changed = trio.Event()
        return []
