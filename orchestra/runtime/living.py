"""What runs on a node: every live container and exec, followed to its end across deaths.

The processes and what must outlive us are the shim's. A Living that attaches takes over what the
shim has, drains each container's output into its log, and reports every exit exactly once on
`exits`, those of our own absence too. When the shim dies it starts another, which goes on with what
the first one left. Law: a container's end is told after its output is in the log and its cgroup is
gone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import trio
from attrs import frozen

from orchestra.linux.cgroups import Group, Hierarchy, group_of
from orchestra.model.errors import Failed, Unavailable
from orchestra.model.paths import NodePaths
from orchestra.runtime.execution import ExecProcess
from orchestra.runtime.link import Link, LinkLost, NotSent, Reply, connect
from orchestra.runtime.log import STDERR, STDOUT, Log, OpenLog
from orchestra.runtime.spawn import start_shim
from orchestra.runtime.stdin import Stdin, close_watched

_log = logging.getLogger(__name__)
STREAMS = {STDOUT: "stdout", STDERR: "stderr"}
EXEC = "exec/"  # before an exec's id in the shim's names
_PIPE_SIZE = 256 << 10
_FULL_DISK_RETRY = 1.0  # seconds
_PAUSE = 0.005  # seconds without output after which a stream counts as quiet
_STEADY = 50  # moves without a pause after which output is let gather
_GATHER = 0.001
_SHIM_RETRY = 1.0
_SHIM_PATIENCE = 10.0
_LOST = 137  # the code of an exec whose end nobody can know


@frozen
class Exited:
    """A container ended. `code` None: nobody can know it (its shim died, kernel < 6.15)."""

    container: str
    code: int | None
    oom: bool
    time: float  # Unix seconds


@frozen
class End:
    """What the shim tells of a process that ended."""

    code: int | None
    time: float


class Live:
    """A running container, or one whose end is not settled yet."""

    def __init__(self, id_: str, pid: int, pidfd: int, log: OpenLog) -> None:
        self.id, self.pid, self.pidfd, self.open_log = id_, pid, pidfd, log
        self.master: int | None = None
        self.sources: dict[int, int] = {}  # stream -> fd to drain
        self.buffer: int | None = None  # the FIFO that a terminal's output goes through
        self.stdin: Stdin | None = None
        self.end: End | None = None
        self.ended = trio.Event()

    def settle(self, end: End) -> None:
        if self.end is None:
            self.end = end
            self.ended.set()


class Living:
    """One node's live processes. Its fields are read by `runtime.Runtime`, its only user."""

    def __init__(
        self, paths: NodePaths, hierarchy: Hierarchy, cgroup_parent: str, nursery: trio.Nursery
    ) -> None:
        self._paths, self._hierarchy, self._parent = paths, hierarchy, cgroup_parent
        self._nursery = nursery
        self._told, self.exits = trio.open_memory_channel[Exited](float("inf"))
        self.containers: dict[str, Live] = {}
        self.logs: dict[str, Log] = {}
        self._execs: dict[str, ExecProcess] = {}  # by the shim's name
        self._asked: dict[str, End | None] = {}  # being started; an end that overtook the reply
        self._link: Link | None = None
        self._attached = trio.lowlevel.ParkingLot()

    # --- the shim

    async def attach(self) -> None:
        """Connect to the shim, starting one if none answers, and take over what runs."""
        try:
            link = await connect(self._paths.shim_socket)
        except LinkLost:
            await start_shim(self._paths, self._hierarchy, self._parent)
            try:
                link = await connect(self._paths.shim_socket)
            except LinkLost as error:
                raise Unavailable(f"the shim does not answer: {error}") from None
        early: list[Mapping[str, object]] = []
        attached = False

        def on_event(event: Mapping[str, object]) -> None:
            if attached:
                self._on_event(event)
            else:  # of a process that we may not have taken over yet
                early.append(event)

        self._nursery.start_soon(self._serve, link, on_event)
        try:
            replies = await link.request_all("list")
        except LinkLost as error:
            raise Unavailable(str(error)) from None
        self._link = link
        found = {str(reply.body["id"]): reply for reply in replies if "id" in reply.body}
        for name, reply in found.items():
            self._take_over(name, reply)
        for container_id, live in self.containers.items():
            if container_id not in found:  # its cgroup's removal will make it true
                live.settle(End(None, time.time()))
        for name in self._execs.keys() - found.keys():
            self._execs.pop(name).ended(_LOST)
        attached = True
        for event in early:
            self._on_event(event)
        self._attached.unpark_all()

    async def _serve(self, link: Link, on_event: Callable[[Mapping[str, object]], None]) -> None:
        """Follow one shim to its end, then start another, which has what the first one left."""
        await link.serve(on_event)
        if self._link is not link:
            return  # whoever attached to it sees that it is lost
        while True:
            try:
                await self.attach()
                return
            except Unavailable as error:
                _log.error("%s; trying again", error)
                await trio.sleep(_SHIM_RETRY)

    def _take_over(self, name: str, reply: Reply) -> None:
        """A process that the shim holds: known, ours to follow, or asked for by nobody."""
        body, fds = reply.body, dict(reply.fds)
        live = self.containers.get(name)
        if live is None and self._is_ours(name):
            live = self._open(name, int(body["pid"]), fds.pop("pidfd", -1), fds.pop("master", None))
            if (writer := fds.pop("stdin_writer", None)) is not None:
                live.stdin = Stdin.of_writer(writer)
            self._nursery.start_soon(self._follow_to_end, live)
        elif live and live.stdin and live.stdin.writer is None and "stdin_writer" in fds:
            self._nursery.start_soon(self.release_stdin, name)  # lost when the last shim died
        for fd in fds.values():
            os.close(fd)
        if body["time"]:
            self._on_event(body)

    def _is_ours(self, name: str) -> bool:
        return (
            not name.startswith(EXEC)
            and name not in self._asked
            and os.path.isdir(self._paths.container(name))
        )

    def _on_event(self, event: Mapping[str, object]) -> None:
        """The end of a process; told again by every shim until it is forgotten."""
        name, code = str(event["id"]), event["code"]
        end = End(None if code is None else int(str(code)), float(str(event["time"])))
        if live := self.containers.get(name):
            live.settle(end)
        elif name in self._asked:
            self._asked[name] = end
        else:
            if process := self._execs.pop(name, None):
                process.ended(_LOST if end.code is None else end.code)
            self._nursery.start_soon(self._forget, name)

    async def _forget(self, name: str) -> None:
        await self._tell("forget", id=name)

    async def release_stdin(self, container_id: str) -> None:
        """Close the shim's copy of the writing end too: now the process sees the end."""
        await self._tell("release", id=container_id, name="stdin_writer")

    async def _tell(self, op: str, **body: str) -> None:
        """A request that matters no more where the shim is gone: the next one is told again."""
        if self._link is not None:
            try:
                await self._link.request(op, {}, **body)
            except LinkLost:
                pass

    def let_go(self) -> None:
        """Close our ends; containers, shim and their records stay."""
        for live in self.containers.values():
            self._close(live)
        self.containers.clear()
        if self._link is not None:
            self._link.close()

    # --- starting

    @contextmanager
    def asked(self, name: str) -> Iterator[None]:
        """While `name` is being started: an end that overtakes the reply is kept for it."""
        self._asked[name] = None
        try:
            yield
        finally:
            if self._asked.pop(name) is not None:  # nobody took it
                self._nursery.start_soon(self._forget, name)

    @property
    def gates(self) -> bool:
        """Whether the shim's children wait at a gate before they exec; an older one's do not."""
        return self._link is not None and self._link.gates

    def is_asked(self, name: str) -> bool:
        return name in self._asked

    async def request(self, op: str, name: str, fds: Mapping[str, int], **body: object) -> Reply:
        """Ask for `start` or `exec`; a shim that just died is waited for. Failed, Unavailable."""
        while True:
            link = await self._connected()
            try:
                return await link.request(op, fds, id=name, **body)
            except NotSent:
                link.close()  # we know before its reader does
            except LinkLost:
                raise Failed(f"the shim ended during {op}: try again") from None

    async def _connected(self) -> Link:
        with trio.move_on_after(_SHIM_PATIENCE):
            while self._link is None or self._link.closed.is_set():
                await self._attached.park()
            return self._link
        raise Unavailable(f"the shim does not answer: see {self._paths.run}/shim.log")

    def add(self, container_id: str, reply: Reply, stdin: Stdin | None) -> Live:
        """A container that started, from now on followed to its end."""
        fds = reply.fds
        live = self._open(container_id, int(reply.body["pid"]), fds["pidfd"], fds.get("master"))
        live.stdin = stdin
        if (end := self._asked[container_id]) is not None:
            self._asked[container_id] = None
            live.settle(end)
        self._nursery.start_soon(self._follow_to_end, live)
        return live

    def add_exec(self, name: str, process: ExecProcess) -> None:
        end = self._asked[name]
        if end is None:
            self._execs[name] = process
        else:
            process.ended(_LOST if end.code is None else end.code)

    def _open(self, container_id: str, pid: int, pidfd: int, master: int | None) -> Live:
        log = OpenLog(self.logs, container_id, self._paths.container(container_id))
        live = Live(container_id, pid, pidfd, log)
        run = self._paths.container_run(container_id)
        if master is not None:
            os.set_blocking(master, False)
            live.master = live.sources[STDOUT] = master
            live.buffer = _open_fifo(f"{run}/{STREAMS[STDOUT]}")
        else:
            for stream, name in STREAMS.items():
                if os.path.exists(f"{run}/{name}"):
                    live.sources[stream] = _open_fifo(f"{run}/{name}")
        self.containers[container_id] = live
        log.log.begin()
        return live

    # --- the end

    async def _follow_to_end(self, live: Live) -> None:
        """Drain its output until it ends; then settle the end."""
        log = live.open_log.log
        async with trio.open_nursery() as nursery:
            for stream, fd in live.sources.items():
                nursery.start_soon(_drain, log, stream, fd, live.buffer)
            await live.ended.wait()
            nursery.cancel_scope.cancel()
        assert live.end is not None
        # Every writer is gone with the container's first process: empty means complete. A full disk
        # may keep us here; if we go, the next one finds it as it is.
        for stream, fd in live.sources.items():
            await _drain_rest(log, stream, fd, live.buffer)
        with trio.CancelScope(shield=True):
            group = group_of(self._hierarchy, self._parent, live.id)
            oom = group.oom_kills() > 0
            await remove_group(group)
            self._close(live)
            del self.containers[live.id]
            # Told in the same step: whoever looks finds it among the living or among the told.
            self._told.send_nowait(Exited(live.id, live.end.code, oom, live.end.time))
            remove_run_directory(self._paths.container_run(live.id))
            await self._forget(live.id)

    def _close(self, live: Live) -> None:
        for fd in {*live.sources.values(), live.pidfd, live.buffer}:
            if fd is not None and fd >= 0:
                close_watched(fd)
        live.pidfd, live.master, live.buffer, live.sources = -1, None, None, {}
        if live.stdin is not None:
            live.stdin.close_all()
        if live.ended.is_set():
            live.open_log.log.end()
        live.open_log.close()


async def _drain(log: Log, stream: int, fd: int, buffer: int | None) -> None:
    """Move output to the log as it comes; a full disk only makes it wait.

    Output that comes in small pieces without a pause is let gather for a moment: each move costs
    us as much time as thirty lines cost the writer.
    """
    rounds, last = 0, 0.0
    while True:
        moved = 0
        try:
            for _ in range(8):  # then let others run
                count = log.take(stream, fd, buffer)
                if not count:
                    return
                moved += count
        except BlockingIOError:
            now = trio.current_time()
            since, last = now - last, now
            rounds = rounds + 1 if since < _PAUSE else 0
            if rounds > _STEADY and moved * _GATHER < since * _PIPE_SIZE / 2:
                await trio.sleep(_GATHER)
            await trio.lowlevel.wait_readable(fd)
        except OSError as error:
            if error.errno == errno.EIO:  # nobody has the terminal open (any more, or yet)
                return
            await trio.sleep(_FULL_DISK_RETRY)
        else:
            await trio.lowlevel.checkpoint()


async def _drain_rest(log: Log, stream: int, fd: int, buffer: int | None) -> None:
    while True:
        try:
            if not log.take(stream, fd, buffer):
                return
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.EIO:
                return
            await trio.sleep(_FULL_DISK_RETRY)


def _open_fifo(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return fd


async def remove_group(group: Group) -> None:
    """Remove a container's cgroup; the last exec may still be leaving it."""
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


def remove_run_directory(run: str) -> None:
    try:
        shutil.rmtree(run)
    except FileNotFoundError:
        pass
