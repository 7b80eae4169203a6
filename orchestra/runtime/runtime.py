"""One node's containers as the agent sees them: create, start, exec, attach, logs, end, delete.

The kernel's side lives in the shim and outlives this object: a Runtime that opens finds what runs
(the shim's list, and records in the run directory for what another shim left behind), takes over
its log FIFOs, terminals and pidfds, and reports every exit exactly once on `exits`, those of its
absence too. Law: a container's end is told after its output is in the log and its cgroup is gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import field, frozen

from orchestra.linux.cgroups import (
    CgroupStats,
    Group,
    Hierarchy,
    LimitRefused,
    find_hierarchy,
    group_of,
)
from orchestra.linux.syscalls import exit_status, pidfd_open, pidfd_send_signal
from orchestra.model.codec import from_json, to_json
from orchestra.model.container import ContainerSpec, ExecSpec
from orchestra.model.errors import Conflict, Failed, Invalid, NotFound, StartFailed, Unavailable
from orchestra.model.paths import NodePaths
from orchestra.runtime import bundle
from orchestra.runtime.execution import ExecProcess, set_window_size
from orchestra.runtime.init_program import init_program
from orchestra.runtime.link import Link, LinkLost, Reply, connect
from orchestra.runtime.log import STDERR, STDOUT, Log, LogRecord, OpenLog, follow, lines
from orchestra.runtime.shim import boot_id, start_time
from orchestra.runtime.spawn import start_shim
from orchestra.runtime.stdin import Stdin, close_watched, write_all

_log = logging.getLogger(__name__)
_STREAMS = {STDOUT: "stdout", STDERR: "stderr"}
_PIPE_SIZE = 256 << 10
_FULL_DISK_RETRY = 1.0  # seconds
_EXEC = "exec/"
_CODE_PATIENCE = 1.0  # seconds between a death and its status (kernel < 6.15: it may be gone)
_FREEZE_PATIENCE = 10.0
_SHIM_RETRY = 1.0

__all__ = ["EtcFiles", "ExecProcess", "Exited", "LogRecord", "Runtime", "open_runtime"]


@frozen
class Exited:
    """A container ended. `code` None: nobody can know it (the shim died, kernel < 6.15)."""

    container: str
    code: int | None
    oom: bool
    time: float  # Unix seconds


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


class Live:
    """A running container, or one whose end is not settled yet."""

    def __init__(self, id_: str, pid: int, pidfd: int, log: OpenLog) -> None:
        self.id, self.pid, self.pidfd, self.open_log = id_, pid, pidfd, log
        self.master: int | None = None
        self.sources: dict[int, int] = {}  # stream -> fd to drain
        self.stdin: Stdin | None = None
        self.shim_pid = 0  # whose child it is; 0: of none that runs
        self.code: int | None = None
        self.time = 0.0
        self.ended = trio.Event()
        self.execs: dict[str, ExecProcess] = {}

    def end(self, code: int | None, at: float) -> None:
        if not self.ended.is_set():
            self.code, self.time = code, at
            self.ended.set()


@asynccontextmanager
async def open_runtime(
    paths: NodePaths, *, cgroup_parent: str = "orchestra"
) -> AsyncIterator[Runtime]:
    """Start the shim or re-attach to the running one; leaves everything running on exit."""
    os.makedirs(f"{paths.state}/containers", 0o700, exist_ok=True)
    os.makedirs(f"{paths.run}/containers", 0o700, exist_ok=True)
    async with trio.open_nursery() as nursery:
        runtime = Runtime(paths, find_hierarchy(), cgroup_parent, nursery)
        try:
            await runtime.attach_to_shim()
            yield runtime
        finally:
            nursery.cancel_scope.cancel()
            runtime.let_go()


class Runtime:
    """Made by `open_runtime`. Errors: NotFound, Conflict, Invalid, StartFailed, Unavailable."""

    exits: trio.MemoryReceiveChannel[Exited]

    def __init__(
        self, paths: NodePaths, hierarchy: Hierarchy, cgroup_parent: str, nursery: trio.Nursery
    ) -> None:
        self._paths, self._hierarchy, self._parent = paths, hierarchy, cgroup_parent
        self._nursery = nursery
        self._told, self.exits = trio.open_memory_channel[Exited](float("inf"))
        self._live: dict[str, Live] = {}
        self._starting: set[str] = set()
        self._definitions: dict[str, Definition] = {}
        self._logs: dict[str, Log] = {}
        self._stdins: dict[str, Stdin] = {}  # of containers that are attached before their start
        self._execs: dict[str, ExecProcess] = {}
        self._asked_execs: set[str] = set()
        self._ended_execs: dict[str, int] = {}
        self._ended_early: dict[str, tuple[int, float]] = {}
        self._link: Link | None = None

    # --- the shim

    async def attach_to_shim(self) -> None:
        """Connect to the shim, starting one if none answers, and take over what runs."""
        try:
            self._link = await connect(self._paths.shim_socket)
        except LinkLost:
            await start_shim(self._paths, self._hierarchy, self._parent)
            try:
                self._link = await connect(self._paths.shim_socket)
            except LinkLost as error:
                raise Unavailable(f"the shim does not answer: {error}") from None
        self._nursery.start_soon(self._serve, self._link)
        for reply in await self._link.request_all("list"):
            if "id" in reply.body:
                self._take_over(reply.body, reply.fds, self._link.pid)
        for container_id in os.listdir(f"{self._paths.run}/containers"):
            if container_id not in self._live:
                self._adopt(container_id)
        for live in self._live.values():
            await self._hand_over(live)

    async def _serve(self, link: Link) -> None:
        """Follow one shim to its end, then start another and hand it what still runs."""
        await link.serve(self._on_event)
        for exec_id in list(self._execs):
            self._execs.pop(exec_id).ended(137)  # its end cannot be heard any more
        for live in self._live.values():
            if live.shim_pid == link.pid:
                live.shim_pid = 0
                self._nursery.start_soon(self._watch_orphan, live)
        while True:
            try:
                await self.attach_to_shim()
                return
            except Unavailable as error:
                _log.error("%s; trying again", error)
                await trio.sleep(_SHIM_RETRY)

    def _take_over(self, body: Mapping[str, object], fds: Mapping[str, int], shim: int) -> None:
        """A process that the shim holds: ours to follow, or an exec nobody asks for any more."""
        name, code = str(body["id"]), body["code"]
        known = self._live.get(name)
        if known is None and not name.startswith(_EXEC) and self._is_ours(name):
            if code is None and "pidfd" not in fds:  # another shim's child, held by this one
                self._adopt(name, fds)
                return
            known = self._open_live(name, int(str(body["pid"])), fds)
            self._nursery.start_soon(self._follow_to_end, known)
        else:
            for fd in fds.values():
                os.close(fd)
        if known is not None:
            known.shim_pid = shim
            if code is not None:
                known.end(int(str(code)), float(str(body["time"])))
        elif code is not None:
            self._nursery.start_soon(self._forget, name)

    def _is_ours(self, name: str) -> bool:
        return os.path.isdir(self._paths.container(name))

    def _adopt(self, container_id: str, fds: Mapping[str, int] = {}) -> None:
        """A container of a shim that is gone: follow it by pidfd, or settle its end."""
        record = f"{self._paths.container_run(container_id)}/process"
        try:
            with open(record) as file:
                told = json.load(file)
        except FileNotFoundError:
            return
        if not self._is_ours(container_id):
            shutil.rmtree(self._paths.container_run(container_id))
            return
        pidfd = _pidfd_of(told["pid"], told["start"]) if told["boot"] == boot_id() else None
        found = {} if pidfd is None else {"pidfd": pidfd}
        live = self._open_live(container_id, told["pid"], {**fds, **found})
        if pidfd is None:
            live.end(*_recorded_end(record))
        else:
            self._nursery.start_soon(self._watch_orphan, live)
        self._nursery.start_soon(self._follow_to_end, live)

    async def _hand_over(self, live: Live) -> None:
        """Let the present shim hold what a dead one held."""
        link = self._link
        if link is None or live.shim_pid == link.pid or live.ended.is_set():
            return
        fds = {_STREAMS[stream]: fd for stream, fd in live.sources.items() if fd != live.master}
        if live.master is not None:
            fds["master"] = live.master
        if live.stdin is not None and live.stdin.writer is not None:
            fds["stdin_writer"] = live.stdin.writer
        await self._ask("hold", fds, id=live.id, pid=live.pid)

    def _open_live(self, container_id: str, pid: int, fds: Mapping[str, int]) -> Live:
        log = OpenLog(self._logs, container_id, self._paths.container(container_id))
        live = Live(container_id, pid, fds.get("pidfd", -1), log)
        if "master" in fds:
            live.master = fds["master"]
            os.set_blocking(live.master, False)
            live.sources[STDOUT] = live.master
        for stream, name in _STREAMS.items():
            path = f"{self._paths.container_run(container_id)}/{name}"
            if live.master is None and os.path.exists(path):
                live.sources[stream] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                fcntl.fcntl(live.sources[stream], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            if name in fds:
                os.close(fds[name])
        if "stdin_writer" in fds:
            live.stdin = Stdin.of_writer(fds["stdin_writer"])
        self._live[container_id] = live
        log.log.begin()
        if end := self._ended_early.pop(container_id, None):
            live.end(*end)
        return live

    def _on_event(self, event: Mapping[str, object]) -> None:
        name, code = str(event["id"]), int(str(event["code"]))
        if name.startswith(_EXEC):
            exec_id = name.removeprefix(_EXEC)
            if process := self._execs.pop(exec_id, None):
                process.ended(code)
            elif exec_id in self._asked_execs:  # its start's reply is not read yet
                self._ended_execs[exec_id] = code
            self._nursery.start_soon(self._forget, name)
        elif live := self._live.get(name):
            live.end(code, float(str(event["time"])))
        elif name in self._starting:  # it ended before the reply to its start was read
            self._ended_early[name] = (code, float(str(event["time"])))

    async def _forget(self, name: str) -> None:
        await self._ask("forget", id=name)

    async def _ask(self, op: str, fds: Mapping[str, int] = {}, **body: object) -> None:
        """A request that does not matter any more where the shim is gone."""
        if self._link is not None:
            try:
                await self._link.request(op, fds, **body)
            except LinkLost:
                pass

    async def _watch_orphan(self, live: Live) -> None:
        """Wait by pidfd for the end of a container whose shim is gone."""
        try:
            await trio.lowlevel.wait_readable(live.pidfd)
        except trio.ClosedResourceError:
            return
        code, at = _recorded_end(f"{self._paths.container_run(live.id)}/process")
        deadline = trio.current_time() + _CODE_PATIENCE
        while code is None and trio.current_time() < deadline:
            status = exit_status(live.pid, live.pidfd)
            if status is None:
                await trio.sleep(0.01)
                continue
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code
        live.end(code, at or time.time())

    def let_go(self) -> None:
        """Close our ends; containers, shim and their records stay."""
        for live in self._live.values():
            self._close(live)
        self._live.clear()
        for stdin in self._stdins.values():
            stdin.close_all()
        if self._link is not None:
            self._link.close()

    # --- life of a container

    def running(self) -> Mapping[str, int]:
        """Container id -> pid of what runs now, taken-over containers too."""
        return {i: live.pid for i, live in self._live.items() if not live.ended.is_set()}

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
            json.dump(to_json(definition), file)
        os.rename(f"{path}.new", path)
        self._definitions[container_id] = definition

    async def start(self, container_id: str, netns: int | None, etc: EtcFiles) -> int:
        """Run it; the pid, once the user's program was exec-ed. `netns` None: the host's network.

        StartFailed with the shell's code (127 not found, 126 not executable, 125 else); Conflict
        where it runs already.
        """
        if container_id in self._live or container_id in self._starting:
            raise Conflict(f"container {container_id} is already running")
        definition = self._definition(container_id)
        self._starting.add(container_id)
        group = self._group(container_id)
        try:
            with trio.CancelScope(shield=True):
                live = await self._start(container_id, definition, netns, etc, group)
        except BaseException:
            with trio.CancelScope(shield=True):
                await _remove_group(group)
            _remove_run_directory(self._paths.container_run(container_id))
            if log := self._logs.get(container_id):
                log.end()
            raise
        finally:
            self._starting.discard(container_id)
        self._nursery.start_soon(self._follow_to_end, live)
        return live.pid

    async def _start(
        self,
        container_id: str,
        definition: Definition,
        netns: int | None,
        etc: EtcFiles,
        group: Group,
    ) -> Live:
        spec = definition.spec
        run = self._paths.container_run(container_id)
        _make_run_directory(run, tty=spec.tty)
        fds: dict[str, int] = {}
        try:
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
            if not spec.tty:
                for name in _STREAMS.values():
                    # The container's own end is open for reading too: the pipe then outlives
                    # every one of us, and a writer never gets SIGPIPE for our death.
                    fds[name] = os.open(f"{run}/{name}", os.O_RDWR | os.O_CLOEXEC)
            stdin = self._stdin_for(container_id, spec, fds)
            if netns is not None:
                fds["netns"] = os.dup(netns)
            reply = await self._request("start", fds, id=container_id, record=f"{run}/process")
        finally:
            for fd in fds.values():
                os.close(fd)
        if "error" in reply.body:
            if stdin is not None:
                stdin.close_all()
            raise StartFailed(
                f"unable to start container process: {reply.body['error']}",
                int(reply.body["code"]),
            )
        live = self._open_live(container_id, int(reply.body["pid"]), reply.fds)
        live.stdin = stdin
        live.shim_pid = self._link.pid if self._link else 0
        return live

    def _stdin_for(
        self, container_id: str, spec: ContainerSpec, fds: dict[str, int]
    ) -> Stdin | None:
        if not spec.open_stdin or spec.tty:
            return None
        stdin = self._stdins.pop(container_id, None) or Stdin()
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

    async def _follow_to_end(self, live: Live) -> None:
        """Drain its output until it ends; then settle the end."""
        log = live.open_log.log
        async with trio.open_nursery() as nursery:
            for stream, fd in live.sources.items():
                nursery.start_soon(_drain, log, stream, fd)
            await live.ended.wait()
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            # Every writer is gone with the container's first process: empty means complete.
            for stream, fd in live.sources.items():
                await _drain_rest(log, stream, fd)
            group = self._group(live.id)
            oom = group.oom_kills() > 0
            await _remove_group(group)
            self._close(live)
            _remove_run_directory(self._paths.container_run(live.id))
            del self._live[live.id]
            await self._forget(live.id)
        self._told.send_nowait(Exited(live.id, live.code, oom, live.time))

    def _close(self, live: Live) -> None:
        for fd in {*live.sources.values(), live.pidfd, live.master}:
            if fd is not None and fd >= 0:
                close_watched(fd)
        live.pidfd, live.master, live.sources = -1, None, {}
        if live.stdin is not None:
            live.stdin.close_all()
        if live.ended.is_set():
            live.open_log.log.end()
        live.open_log.close()

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
        if container_id in self._live or container_id in self._starting:
            raise Conflict(f"container {container_id} is running: stop it first")
        self._definitions.pop(container_id, None)
        if stdin := self._stdins.pop(container_id, None):
            stdin.close_all()
        if log := self._logs.get(container_id):
            log.end()
        self._group(container_id).remove()
        _remove_run_directory(self._paths.container_run(container_id))
        directory = self._paths.container(container_id)
        if os.path.isdir(directory):
            await trio.to_thread.run_sync(shutil.rmtree, directory)

    # --- streams

    async def attach(
        self, container_id: str, stdin: bool, stdout: bool, stderr: bool
    ) -> ContainerAttachment:
        """A client's connection; before the start it gets the first byte."""
        spec = self._definition(container_id).spec
        log = OpenLog(self._logs, container_id, self._paths.container(container_id))
        if stdin and spec.open_stdin and not spec.tty and container_id not in self._live:
            self._stdins.setdefault(container_id, Stdin())
        streams = {STDOUT: stdout, STDERR: stderr}
        return ContainerAttachment(
            log,
            frozenset(s for s, wanted in streams.items() if wanted),
            (lambda: self._writer(container_id)) if stdin and spec.open_stdin else None,
            (lambda: self._end_stdin(container_id)) if spec.stdin_once and not spec.tty else None,
        )

    def _writer(self, container_id: str) -> Stdin | int | None:
        if live := self._live.get(container_id):
            return live.master if live.master is not None else live.stdin
        return self._stdins.get(container_id)

    async def _end_stdin(self, container_id: str) -> None:
        live = self._live.get(container_id)
        stdin = live.stdin if live else self._stdins.get(container_id)
        if stdin is not None:
            stdin.close()
            await self._ask("release", id=container_id, name="stdin_writer")

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
        with OpenLog(self._logs, container_id, self._paths.container(container_id)) as log:
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
        try:
            if self._hierarchy.version == 2:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                fds["cgroup"] = os.open(group.directories()[0], flags)
            if not spec.tty:
                for stream, wanted in ((STDOUT, spec.stdout), (STDERR, spec.stderr)):
                    if wanted:
                        readers[stream], fds[_STREAMS[stream]] = os.pipe2(os.O_CLOEXEC)
                        os.set_blocking(readers[stream], False)
                    else:
                        fds[_STREAMS[stream]] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                if spec.stdin:
                    stdin = Stdin()
                    assert stdin.reader is not None
                    fds["stdin"], stdin.reader = stdin.reader, None
            self._asked_execs.add(exec_id)
            with trio.CancelScope(shield=True):
                reply = await self._request("exec", fds, id=_EXEC + exec_id)
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
            self._asked_execs.discard(exec_id)
            for fd in fds.values():
                os.close(fd)
        os.close(reply.fds["pidfd"])
        master = reply.fds.get("master")
        if master is not None:
            os.set_blocking(master, False)
            readers = {STDOUT: master}
        process = ExecProcess(int(reply.body["pid"]), readers, stdin, master, self._nursery)
        code = self._ended_execs.pop(exec_id, None)
        if code is None:
            self._execs[exec_id] = process
        else:
            process.ended(code)
        return process

    # --- small parts

    def _group(self, container_id: str) -> Group:
        return group_of(self._hierarchy, self._parent, container_id)

    def _need(self, container_id: str) -> Live:
        live = self._live.get(container_id)
        if live is None or live.ended.is_set():
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

    async def _request(self, op: str, fds: Mapping[str, int], **body: object) -> Reply:
        if self._link is None:
            raise Unavailable("the shim is not connected")
        try:
            return await self._link.request(op, fds, **body)
        except LinkLost:
            raise Failed(f"the shim ended during {op}: try again") from None


class ContainerAttachment:
    """A client at a container's streams; its output is read from the log, from now on."""

    def __init__(
        self,
        log: OpenLog,
        streams: frozenset[int],
        writer: Callable[[], Stdin | int | None] | None,
        end_stdin: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._log, self._streams = log, streams
        self._writer, self._end_stdin = writer, end_stdin
        self._position = log.log.index_size
        self._ends = log.log.ends
        self._reading = self._gone = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1 stdout | 2 stderr, bytes) until the run ends; of a terminal all is 1."""
        self._reading = True
        try:
            async for item in follow(self._log.log, self._position, self._streams, self._over):
                yield item
        finally:
            self._reading = False
            self._log.close()

    def _over(self) -> bool:
        return self._gone or self._log.log.ends != self._ends

    async def write(self, data: bytes) -> None:
        """To the process's stdin; a terminal that is not there yet is waited for."""
        if self._writer is None:
            return
        log = self._log.log
        while (target := self._writer()) is None:
            if log.running or self._over():
                return
            await log.changed.park()
        if isinstance(target, int):
            await write_all(target, data)
        else:
            await target.write(data)

    async def close_stdin(self) -> None:
        """The client's half-close: ends stdin where the container was made with StdinOnce."""
        if self._writer is not None and self._end_stdin is not None:
            await self._end_stdin()

    async def aclose(self) -> None:
        """The client is gone; the process lives on."""
        await self.close_stdin()
        self._gone = True
        self._log.log.changed.unpark_all()
        if not self._reading:
            self._log.close()


async def _drain(log: Log, stream: int, fd: int) -> None:
    """Move output to the log as it comes; a full disk only makes it wait."""
    while True:
        await trio.lowlevel.wait_readable(fd)
        try:
            for _ in range(8):  # then let others run
                if not log.take(stream, fd):
                    return
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno == errno.EIO:  # nobody has the terminal open (any more, or yet)
                return
            await trio.sleep(_FULL_DISK_RETRY)
        else:
            await trio.lowlevel.checkpoint()


async def _drain_rest(log: Log, stream: int, fd: int) -> None:
    while True:
        try:
            if not log.take(stream, fd):
                return
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.EIO:
                return
            await trio.sleep(_FULL_DISK_RETRY)


async def _remove_group(group: Group) -> None:
    """The last exec of a container may still be leaving it."""
    for _ in range(200):
        try:
            group.remove()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            group.kill()
            await trio.sleep(0.01)
    group.remove()


def _pidfd_of(pid: int, started: int) -> int | None:
    """A pidfd of exactly the process that began at `started`; None where it is gone."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if start_time(pid) == started:
            return pidfd
    except (FileNotFoundError, ProcessLookupError):
        pass
    os.close(pidfd)
    return None


def _recorded_end(record: str) -> tuple[int | None, float]:
    """What the shim wrote down at the exit: (code, Unix time); (None, now) where it did not."""
    try:
        with open(record + ".exit") as file:
            told = json.load(file)
        return told["code"], told["time"]
    except FileNotFoundError:
        return None, time.time()


def _make_run_directory(run: str, *, tty: bool) -> None:
    _remove_run_directory(run)
    os.mkdir(run, 0o700)
    os.mkdir(f"{run}/root", 0o755)
    os.mkdir(f"{run}/scratch", 0o700)
    if not tty:
        for name in _STREAMS.values():
            os.mkfifo(f"{run}/{name}", 0o600)
            # Reachable only through an inherited fd. Whoever holds it as stdout may open it again
            # as /dev/stdout, also after a change of user.
            os.chmod(f"{run}/{name}", 0o666)


def _remove_run_directory(run: str) -> None:
    try:
        shutil.rmtree(run)
    except FileNotFoundError:
        pass


def _payload(content: bytes) -> int:
    """A description in memory, to be handed to the shim's child."""
    fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:
        file.write(content)
    return fd


def _procs_files(group: Group) -> list[str]:
    if group.hierarchy.version == 2:
        return []  # clone3 puts the process there
    return [f"{directory}/cgroup.procs" for directory in group.directories()]


def _etc(etc: EtcFiles) -> dict[str, str]:
    files = {"hostname": f"{etc.hostname}\n", "hosts": etc.hosts, "resolv.conf": etc.resolv_conf}
    return {name: text for name, text in files.items() if text}
