"""One node's containers as the agent sees them: create, start, exec, attach, logs, delete.

The public face of this package. A container's definition lies on disk, its processes are the
shim's, and what runs is followed by `Living`, which reports every exit exactly once on `exits`.
Here requests become bundles, cgroups, run directories and streams.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from attrs import evolve, field, frozen

from orchestra.linux.cgroups import (
    CgroupStats,
    Group,
    Hierarchy,
    LimitRefused,
    find_hierarchy,
    group_of,
)
from orchestra.linux.syscalls import pidfd_send_signal
from orchestra.model.codec import from_json, to_json
from orchestra.model.container import ContainerSpec, ExecSpec, Limits
from orchestra.model.errors import Conflict, Failed, Invalid, NotFound, StartFailed
from orchestra.model.paths import NodePaths
from orchestra.runtime import bundle
from orchestra.runtime.attachment import ContainerAttachment
from orchestra.runtime.execution import ExecProcess, set_window_size
from orchestra.runtime.init_program import init_program
from orchestra.runtime.link import Reply
from orchestra.runtime.living import (
    EXEC,
    STREAMS,
    Exited,
    Live,
    Living,
    remove_group,
    remove_run_directory,
)
from orchestra.runtime.log import STDERR, STDOUT, LogRecord, OpenLog, lines
from orchestra.runtime.stdin import Stdin

_FREEZE_PATIENCE = 10.0  # seconds

Meanwhile = Callable[[], Awaitable[None]]
T = TypeVar("T")

__all__ = ["EtcFiles", "ExecProcess", "Exited", "LogRecord", "Meanwhile", "Runtime", "open_runtime"]


@frozen
class EtcFiles:
    """The texts of /etc/hostname, /etc/hosts and /etc/resolv.conf."""

    hostname: str
    hosts: str = ""
    resolv_conf: str = ""


@frozen
class Definition:
    """What `create` was told, as it lies on disk."""

    spec: ContainerSpec
    lowers: tuple[str, ...]
    volumes: Mapping[str, str] = field(factory=dict)


@asynccontextmanager
async def open_runtime(
    paths: NodePaths, *, cgroup_parent: str = "orchestra"
) -> AsyncIterator[Runtime]:
    """Start the shim or re-attach to the running one; leaves everything running on exit."""
    os.makedirs(f"{paths.state}/containers", 0o700, exist_ok=True)
    os.makedirs(f"{paths.run}/containers", 0o700, exist_ok=True)
    # Six descriptors a container here, four in the shim: the usual 1024 would be 170 containers.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    runtime: Runtime | None = None
    try:
        async with trio.open_nursery() as nursery:
            runtime = Runtime(paths, find_hierarchy(), cgroup_parent, nursery)
            try:
                await runtime.attach_to_shim()
                yield runtime
            finally:
                nursery.cancel_scope.cancel()
    finally:
        if runtime is not None:
            runtime.let_go()  # not before: who still reads must not find another file's number


class Runtime:
    """Made by `open_runtime`. Errors: NotFound, Conflict, Invalid, StartFailed, Unavailable."""

    exits: trio.MemoryReceiveChannel[Exited]

    def __init__(
        self, paths: NodePaths, hierarchy: Hierarchy, cgroup_parent: str, nursery: trio.Nursery
    ) -> None:
        self._paths, self._hierarchy, self._parent = paths, hierarchy, cgroup_parent
        self._nursery = nursery
        self._living = Living(paths, hierarchy, cgroup_parent, nursery)
        self.exits = self._living.exits
        self._definitions: dict[str, Definition] = {}
        self._stdins: dict[str, Stdin] = {}  # of containers that are attached before their start

    async def attach_to_shim(self) -> None:
        """Connect to the shim, starting one if none answers, and take over what runs."""
        await self._living.attach()

    def let_go(self) -> None:
        """Close our ends; containers, shim and their records stay."""
        self._living.let_go()
        for stdin in self._stdins.values():
            stdin.close_all()

    # --- life of a container

    def running(self) -> Mapping[str, int]:
        """Container id -> pid of what runs now, taken-over containers too."""
        return {i: live.pid for i, live in self._living.containers.items() if live.end is None}

    def pids(self, container_id: str) -> list[int]:
        """Host pids of everything in it; empty where it does not run."""
        return self._group(container_id).pids()

    def stats(self, container_id: str) -> CgroupStats:
        """Usage now; zeros where it does not run."""
        return self._group(container_id).stats()

    async def create(
        self,
        container_id: str,
        spec: ContainerSpec,
        lowers: Sequence[str],
        volumes: Mapping[str, str],
    ) -> None:
        """Write the definition down. `lowers`: layer directories, topmost first; `volumes`: mount
        target -> host directory. Invalid for what can never run.

        It outlives our death, not a power cut: whoever keeps the record `repair`s it after one.
        """
        bundle.check(spec, volumes)
        if not lowers:
            raise Invalid("the image has no layers")
        definition = Definition(spec, tuple(lowers), dict(volumes))
        os.mkdir(self._paths.container(container_id), 0o700)
        self._write_down(container_id, definition)

    def repair(
        self,
        container_id: str,
        spec: ContainerSpec,
        lowers: Sequence[str],
        volumes: Mapping[str, str],
    ) -> None:
        """Make what the last power cut took of a container that was created before it."""
        try:
            self._definition(container_id)
        except (NotFound, ValueError):
            os.makedirs(self._paths.container(container_id), 0o700, exist_ok=True)
            self._write_down(container_id, Definition(spec, tuple(lowers), dict(volumes)))

    def _write_down(self, container_id: str, definition: Definition) -> None:
        directory = self._paths.container(container_id)
        for name in ("upper", "work"):
            os.makedirs(f"{directory}/{name}", 0o755, exist_ok=True)
        path = f"{directory}/definition.json"
        with open(
            os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:
            file.write(json.dumps(to_json(definition)))  # dump() would not use the C encoder
        os.rename(f"{path}.new", path)
        self._definitions[container_id] = definition

    async def start(
        self,
        container_id: str,
        netns: int | None,
        etc: EtcFiles,
        meanwhile: Meanwhile | None = None,
    ) -> int:
        """Run it; the pid, once the user's program was exec-ed. `netns` None: the host's network.

        `meanwhile` goes on beside the set-up; the program is exec-ed only after it, and not at all
        where it fails, with whatever it raises.
        StartFailed with the shell's code (127 not found, 126 not executable, 125 else); Conflict
        where it runs already.
        """
        if self._is_busy(container_id):
            raise Conflict(f"container {container_id} is already running")
        definition = self._definition(container_id)
        group = self._group(container_id)
        with self._living.asked(container_id):
            try:
                with trio.CancelScope(shield=True):
                    pid = await self._start(container_id, definition, netns, etc, group, meanwhile)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await remove_group(group)
                remove_run_directory(self._paths.container_run(container_id))
                if stdin := self._stdins.pop(container_id, None):
                    stdin.close_all()
                if log := self._living.logs.get(container_id):
                    log.end()
                raise
        return pid

    async def _start(
        self,
        container_id: str,
        definition: Definition,
        netns: int | None,
        etc: EtcFiles,
        group: Group,
        meanwhile: Meanwhile | None,
    ) -> int:
        spec = definition.spec
        run = self._paths.container_run(container_id)
        fds: dict[str, int] = {}

        def prepare() -> None:
            _make_run_directory(run, tty=spec.tty)
            fds.update(self._enter_group(group, spec))
            part = bundle.start_part(
                spec,
                lowers=definition.lowers,
                volumes=definition.volumes,
                directory=self._paths.container(container_id),
                run_directory=run,
                hierarchy=self._hierarchy,
                procs_files=_procs_files(group),
                hostname=etc.hostname,
                etc=_etc(etc),
                init=init_program() if spec.init else b"",
            )
            fds["payload"] = _payload(json.dumps(part).encode())
            for name in STREAMS.values():
                if os.path.exists(f"{run}/{name}"):
                    # The container's own end is open for reading too: the pipe then outlives
                    # every one of us, and a writer never gets SIGPIPE for our death.
                    fds[name] = os.open(f"{run}/{name}", os.O_RDWR | os.O_CLOEXEC)

        async def ask() -> Reply:
            prepare()
            record = f"{run}/process"
            return await self._living.request("start", container_id, fds, record=record)

        stdin: Stdin | None = None
        try:
            if netns is not None:
                fds["netns"] = os.dup(netns)
            stdin = self._stdin_for(container_id, spec, fds)
            if meanwhile is not None and not self._living.gates:
                await meanwhile()
                meanwhile = None
            reply = await (ask() if meanwhile is None else _gated(meanwhile, ask, fds))
        finally:
            for fd in fds.values():
                os.close(fd)
        if "error" in reply.body:
            raise StartFailed(
                f"unable to start container process: {reply.body['error']}",
                int(reply.body["code"]),
            )
        self._stdins.pop(container_id, None)  # until now its clients wrote to it there
        pid = self._living.add(container_id, reply, stdin).pid
        if stdin is not None and stdin.writer is None:  # its end came while the process was made
            await self._living.release_stdin(container_id)
        return pid

    def _stdin_for(
        self, container_id: str, spec: ContainerSpec, fds: dict[str, int]
    ) -> Stdin | None:
        if not spec.open_stdin or spec.tty:
            return None
        if container_id not in self._stdins:
            self._stdins[container_id] = Stdin()
        stdin = self._stdins[container_id]
        assert stdin.reader is not None
        fds["stdin"], stdin.reader = stdin.reader, None
        if stdin.writer is not None:
            fds["stdin_writer"] = os.dup(stdin.writer)
        return stdin

    def _enter_group(self, group: Group, spec: ContainerSpec) -> dict[str, int]:
        try:
            group.create()
            group.limit(bundle.cgroup_limits(spec.limits))
            if not spec.privileged:
                group.restrict_devices()
        except LimitRefused as error:
            raise StartFailed(f"cannot set {error.filename}: {error.strerror}") from None
        except (OSError, ValueError) as error:
            raise StartFailed(f"cannot make the cgroup {group.path}: {error}") from None
        if self._hierarchy.version == 2:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            return {"cgroup": os.open(group.directories()[0], flags)}
        return {}

    def update(self, container_id: str, limits: Limits) -> None:
        """Give it other limits, from now on and for its next runs. Invalid where the kernel does
        not take one, named; then the old ones stay.
        """
        definition = self._definition(container_id)
        if container_id in self._living.containers:
            group, old = self._group(container_id), definition.spec.limits
            try:
                _change_limits(group, old, limits)
            except LimitRefused as error:
                _change_limits(group, limits, old)
                raise Invalid(f"cannot set {error.filename}: {error.strerror}") from None
        spec = evolve(definition.spec, limits=limits)
        self._write_down(container_id, evolve(definition, spec=spec))

    async def kill(self, container_id: str, signal: int) -> None:
        """Signal its first process. Conflict where it does not run."""
        live = self._need(container_id)
        try:
            pidfd_send_signal(live.pidfd, signal)
        except ProcessLookupError:
            raise Conflict(f"Container {container_id} is not running") from None

    async def pause(self, container_id: str) -> None:
        """Freeze all of it; returns when nothing of it moves."""
        self._need(container_id)
        group = self._group(container_id)
        group.freeze(True)
        with trio.move_on_after(_FREEZE_PATIENCE):
            while not group.is_frozen():
                await trio.sleep(0.001)  # nothing tells of the change on v1
                group.freeze(True)
            return
        group.freeze(False)
        raise Failed(f"cannot pause {container_id}: the kernel does not freeze it, try again")

    async def unpause(self, container_id: str) -> None:
        self._need(container_id)
        self._group(container_id).freeze(False)

    async def resize(self, container_id: str, rows: int, columns: int) -> None:
        live = self._need(container_id)
        if live.master is not None:
            set_window_size(live.master, rows, columns)

    async def delete(self, container_id: str) -> None:
        """Remove directories, mounts and cgroup of a container that does not run."""
        if self._is_busy(container_id):
            raise Conflict(f"container {container_id} is running: stop it first")
        self._definitions.pop(container_id, None)
        if stdin := self._stdins.pop(container_id, None):
            stdin.close_all()
        if log := self._living.logs.get(container_id):
            log.end()
        self._group(container_id).remove()
        remove_run_directory(self._paths.container_run(container_id))
        directory = self._paths.container(container_id)
        if os.path.isdir(directory):
            await trio.to_thread.run_sync(shutil.rmtree, directory)

    # --- streams

    async def attach(
        self, container_id: str, stdin: bool, stdout: bool, stderr: bool
    ) -> ContainerAttachment:
        """A client's connection; before the start it gets the first byte."""
        spec = self._definition(container_id).spec
        log = OpenLog(self._living.logs, container_id, self._paths.container(container_id))
        if (
            stdin
            and spec.open_stdin
            and not spec.tty
            and container_id not in self._living.containers
            and container_id not in self._stdins
        ):
            self._stdins[container_id] = Stdin()
        streams = {STDOUT: stdout, STDERR: stderr}
        return ContainerAttachment(
            log,
            frozenset(s for s, wanted in streams.items() if wanted),
            (lambda: self._writer(container_id)) if stdin and spec.open_stdin else None,
            (lambda: self._end_stdin(container_id)) if spec.stdin_once and not spec.tty else None,
        )

    def _writer(self, container_id: str) -> Stdin | int | None:
        if live := self._living.containers.get(container_id):
            return live.master if live.master is not None else live.stdin
        return self._stdins.get(container_id)

    async def _end_stdin(self, container_id: str) -> None:
        live = self._living.containers.get(container_id)
        stdin = live.stdin if live else self._stdins.get(container_id)
        if stdin is not None:
            stdin.close()
            await self._living.release_stdin(container_id)

    async def logs(
        self,
        container_id: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        follow: bool = False,
        since: float = 0.0,
        until: float = 0.0,
        tail: int | None = None,
    ) -> AsyncIterator[LogRecord]:
        """One record per line in the order of arrival; times are Unix seconds, 0 = open."""
        self._definition(container_id)
        streams = frozenset(s for s, on in ((STDOUT, stdout), (STDERR, stderr)) if on)
        with OpenLog(self._living.logs, container_id, self._paths.container(container_id)) as log:
            async for record in lines(
                log, streams=streams, follow=follow, since=since, until=until, tail=tail
            ):
                yield record

    # --- exec

    async def exec(self, container_id: str, exec_id: str, spec: ExecSpec) -> ExecProcess:
        """Run a further process. Conflict where the container does not run; StartFailed."""
        live = self._need(container_id)
        definition = self._definition(container_id)
        group = self._group(container_id)
        part = bundle.exec_part(
            definition.spec,
            spec,
            procs_files=_procs_files(group),
            hostname=definition.spec.hostname or container_id[:12],
        )
        fds = {"target": os.dup(live.pidfd), "payload": _payload(json.dumps(part).encode())}
        readers: dict[int, int] = {}
        stdin = None
        name = EXEC + exec_id
        with self._living.asked(name):
            try:
                if self._hierarchy.version == 2:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                    fds["cgroup"] = os.open(group.directories()[0], flags)
                if not spec.tty:
                    stdin = _pipes(spec, readers, fds)
                with trio.CancelScope(shield=True):
                    reply = await self._living.request("exec", name, fds)
                if "error" in reply.body:
                    raise StartFailed(
                        f"exec failed: unable to start container process: {reply.body['error']}",
                        int(reply.body["code"]),
                    )
            except BaseException:
                for fd in readers.values():
                    os.close(fd)
                if stdin is not None:
                    stdin.close_all()
                raise
            finally:
                for fd in fds.values():
                    os.close(fd)
            os.close(reply.fds["pidfd"])
            master = reply.fds.get("master")
            if master is not None:
                os.set_blocking(master, False)
                readers = {STDOUT: master}
            process = ExecProcess(int(reply.body["pid"]), readers, stdin, master, self._nursery)
            self._living.add_exec(name, process)
        return process

    # --- small parts

    def _group(self, container_id: str) -> Group:
        return group_of(self._hierarchy, self._parent, container_id)

    def _is_busy(self, container_id: str) -> bool:
        return container_id in self._living.containers or self._living.is_asked(container_id)

    def _need(self, container_id: str) -> Live:
        live = self._living.containers.get(container_id)
        if live is None or live.end is not None:
            raise Conflict(f"Container {container_id} is not running")
        return live

    def _definition(self, container_id: str) -> Definition:
        if container_id not in self._definitions:
            path = f"{self._paths.container(container_id)}/definition.json"
            try:
                with open(path, "rb") as file:
                    body = json.load(file)
            except FileNotFoundError:
                raise NotFound(f"No such container: {container_id}") from None
            self._definitions[container_id] = from_json(Definition, body, path)
        return self._definitions[container_id]


async def _gated(meanwhile: Meanwhile, ask: Callable[[], Awaitable[T]], fds: dict[str, int]) -> T:
    """`ask` for a process and do `meanwhile` beside it; its gate opens when that is done.

    Both have ended when this returns or raises; what `meanwhile` raises goes before the process's
    own failure, which is only that its gate stayed shut.
    """
    fds["gate"], gate = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []

    async def open_gate() -> None:
        try:
            await meanwhile()
            os.write(gate, b"g")
        except Exception as error:
            failures.append(error)  # raised outside the nursery: there it would come in a group
        finally:
            os.close(gate)

    answers: list[T] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_gate)
        for _ in range(3):  # it begins, is let through to its thread, and that is at work
            await trio.lowlevel.checkpoint()
        try:
            answers.append(await ask())
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers[0]


def _change_limits(group: Group, old: Limits, new: Limits) -> None:
    """Write limits over others. v1 wants memory below memory + swap at every moment: where the new
    memory is above the old sum, the sum has to go first."""
    try:
        group.limit(bundle.cgroup_limits(new))
    except LimitRefused:
        if not old.memory or not new.memory:
            raise
        first = evolve(old, memory_swap=new.memory_swap or 2 * new.memory)
        group.limit(bundle.cgroup_limits(first))
        group.limit(bundle.cgroup_limits(new))


def _make_run_directory(run: str, *, tty: bool) -> None:
    remove_run_directory(run)
    os.mkdir(run, 0o700)
    os.mkdir(f"{run}/root", 0o755)
    os.mkdir(f"{run}/scratch", 0o700)
    for name in ["stdout"] if tty else STREAMS.values():
        os.mkfifo(f"{run}/{name}", 0o600)
        if not tty:
            # Reachable only through an inherited fd. Whoever holds it as stdout may open it again
            # as /dev/stdout, also after a change of user.
            os.chmod(f"{run}/{name}", 0o666)


def _pipes(spec: ExecSpec, readers: dict[int, int], fds: dict[str, int]) -> Stdin | None:
    """The streams of an exec without a terminal: our ends, and those that go to the shim."""
    for stream, wanted in ((STDOUT, spec.stdout), (STDERR, spec.stderr)):
        if wanted:
            readers[stream], fds[STREAMS[stream]] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(readers[stream], False)
        else:
            fds[STREAMS[stream]] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if not spec.stdin:
        return None
    stdin = Stdin()
    assert stdin.reader is not None
    fds["stdin"], stdin.reader = stdin.reader, None
    return stdin


def _payload(content: bytes) -> int:
    """A description in memory, to be handed to the shim's child."""
    fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:
        file.write(content)
    return fd


def _procs_files(group: Group) -> list[str]:
    if group.hierarchy.version == 2:
        return []  # clone3 puts the process there
    # Not cgroup.procs: moving a whole process waits for an RCU grace period, some 6 ms.
    return [f"{directory}/tasks" for directory in group.directories()]


def _etc(etc: EtcFiles) -> dict[str, str]:
    files = {"hostname": f"{etc.hostname}\n", "hosts": etc.hosts, "resolv.conf": etc.resolv_conf}
    return {name: text for name, text in files.items() if text}
