"""Execs: further processes in running containers. They are kept in memory only.

Law: an exec's exit code is shown before its output stream ends, because clients look at it the
moment the stream closes. Finished execs are kept for some minutes for clients that look late.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator

import trio
from attrs import evolve

from orchestra.agent.containers import Containers, Live
from orchestra.agent.lifecycle import Lifecycle
from orchestra.api.engine import Attachment
from orchestra.model.container import ContainerStatus, Exec, ExecSpec
from orchestra.model.errors import Conflict, Invalid, NotFound, StartFailed
from orchestra.runtime.runtime import ExecProcess, Runtime

KEPT = 300.0  # seconds after the end


class _Run:
    """One exec: its record, and its process while there is one."""

    def __init__(self, record: Exec) -> None:
        self.record = record
        self.process: ExecProcess | None = None
        self.started = False
        self.done = trio.Event()
        self.finished = 0.0


class Execs:
    def __init__(self, containers: Containers, runtime: Runtime, lifecycle: Lifecycle) -> None:
        self._containers = containers
        self._runtime = runtime
        self._lifecycle = lifecycle
        self._runs: dict[str, _Run] = {}

    def create(self, ref: str, spec: ExecSpec) -> str:
        """Return the new exec's id. Conflict where the container does not run or is paused."""
        live = self._containers.find(ref)
        self._need_running(live)
        if not spec.args:
            raise Invalid("No exec command specified")
        self._forget_old()
        exec_id = secrets.token_hex(32)
        self._runs[exec_id] = _Run(Exec(exec_id, live.id, spec))
        self._tell(live, f"exec_create: {' '.join(spec.args)}", exec_id)
        return exec_id

    def inspect(self, exec_id: str) -> Exec:
        return self._find(exec_id).record

    async def start(self, exec_id: str, detach: bool) -> Attachment | None:
        """Start it; None when detached. A program that cannot be run is told on the stream."""
        run = self._find(exec_id)
        live = self._containers.find(run.record.container)
        self._need_running(live)
        if run.started:
            raise Conflict(f"Error: Exec command {exec_id} has already run")
        run.started = True
        self._tell(live, f"exec_start: {' '.join(run.record.spec.args)}", exec_id)
        try:
            with trio.CancelScope(shield=True):
                process = await self._runtime.exec(live.id, exec_id, run.record.spec)
        except StartFailed as error:
            self._finish(run, live, error.exit_code)
            if detach:
                raise
            return Refusal(str(error))
        run.process = process
        run.record = evolve(run.record, running=True, pid=process.pid)
        self._lifecycle.spawn(live, self._wait, run, live, process)
        if detach:
            await process.attachment.aclose()
            return None
        return Stream(process.attachment, run.done)

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        run = self._find(exec_id)
        if run.process is None or not run.record.running:
            raise Conflict(f"exec {exec_id} is not running")
        await run.process.resize(rows, columns)

    def of(self, container_id: str) -> list[str]:
        """Return the ids of a container's running execs."""
        return [
            i
            for i, run in self._runs.items()
            if run.record.container == container_id and run.record.running
        ]

    async def _wait(self, run: _Run, live: Live, process: ExecProcess) -> None:
        self._finish(run, live, await process.wait())

    def _finish(self, run: _Run, live: Live, exit_code: int) -> None:
        run.record = evolve(run.record, running=False, exit_code=exit_code)
        run.finished = time.monotonic()
        run.done.set()
        self._tell(live, "exec_die", run.record.id, exitCode=str(exit_code))

    def _find(self, exec_id: str) -> _Run:
        if run := self._runs.get(exec_id):
            return run
        raise NotFound(f"No such exec instance: {exec_id}")

    def _need_running(self, live: Live) -> None:
        self._lifecycle.need_running(live)
        if live.container.status is ContainerStatus.PAUSED:
            raise Conflict(f"Container {live.id} is paused, unpause the container before exec")

    def _tell(self, live: Live, action: str, exec_id: str, **attributes: str) -> None:
        self._lifecycle.tell(live, action, execID=exec_id, **attributes)

    def _forget_old(self) -> None:
        limit = time.monotonic() - KEPT
        self._runs = {
            i: run for i, run in self._runs.items() if not run.finished or run.finished > limit
        }


class Stream:
    """An exec's attachment whose output ends only after the exit code is known."""

    def __init__(self, attachment: Attachment, done: trio.Event) -> None:
        self._attachment = attachment
        self._done = done

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for chunk in self._attachment.output():
            yield chunk
        await self._done.wait()

    async def write(self, data: bytes) -> None:
        await self._attachment.write(data)

    async def close_stdin(self) -> None:
        await self._attachment.close_stdin()

    async def aclose(self) -> None:
        await self._attachment.aclose()


class Refusal:
    """The attachment of an exec whose program could not be run: the reason, then the end."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, f"{self._text}\r\n".encode()

    async def write(self, data: bytes) -> None:
        """Nobody reads it."""

    async def close_stdin(self) -> None:
        """There is none."""

    async def aclose(self) -> None:
        """There is nothing to let go of."""
