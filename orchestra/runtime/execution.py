"""An exec: a further process of a container, its streams and its end.

Its output goes by pipes straight to its one client, who sets the pace; once the client is gone the
output is read and dropped, so that the process lives on. The end is told when the output is
drained, or two seconds after the process ended where a grandchild keeps the pipe open.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Mapping

import trio

from orchestra.runtime.stdin import Stdin, close_watched, write_all

GRACE = 2.0  # seconds that a grandchild may hold the output open
_CHUNK = 32 << 10
_LATE_LIMIT = 1 << 20


class ExecProcess:
    """A running exec; `pid` is the host's."""

    def __init__(
        self,
        pid: int,
        readers: Mapping[int, int],
        stdin: Stdin | None,
        master: int | None,
        nursery: trio.Nursery,
    ) -> None:
        self.pid = pid
        self.attachment = ExecAttachment(stdin, master)
        self._readers, self._master, self._stdin = dict(readers), master, stdin
        self._code: int | None = None
        self._exited = trio.Event()
        self._drained = trio.Event()
        self._scopes: list[trio.CancelScope] = []
        self._deadline = float("inf")
        nursery.start_soon(self._pump_all)

    async def wait(self) -> int:
        """The exit code (128 + signal where one ended it), once its output was read."""
        await self._exited.wait()
        with trio.move_on_after(GRACE):
            await self._drained.wait()
        assert self._code is not None
        return self._code

    async def resize(self, rows: int, columns: int) -> None:
        if self._master is not None:
            set_window_size(self._master, rows, columns)

    def ended(self, code: int) -> None:
        """Told by the runtime: the process is reaped."""
        self._code = code
        self._deadline = trio.current_time() + GRACE
        for scope in self._scopes:
            scope.deadline = self._deadline
        self._exited.set()

    async def _pump_all(self) -> None:
        try:
            # The sender outside: it closes when every pump has ended.
            async with self.attachment.sender, trio.open_nursery() as nursery:
                for stream, fd in self._readers.items():
                    nursery.start_soon(self._pump, stream, fd)
            self._drained.set()
            await self._exited.wait()
        finally:
            for fd in self._readers.values():
                close_watched(fd)
            if self._stdin is not None:
                self._stdin.close_all()
            self._master = self.attachment.master = None

    async def _pump(self, stream: int, fd: int) -> None:
        late = 0  # bytes read after the grace; a grandchild could go on for ever
        while late < _LATE_LIMIT:
            with trio.CancelScope(deadline=self._deadline) as scope:
                self._scopes.append(scope)
                try:
                    await trio.lowlevel.wait_readable(fd)
                finally:
                    self._scopes.remove(scope)
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                if scope.cancelled_caught:
                    return
                continue
            except OSError:  # EIO: the last holder of the terminal is gone
                return
            if not data:
                return
            late += len(data) if scope.cancelled_caught else 0
            try:
                await self.attachment.sender.send((stream, data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client is gone: read on and drop it


class ExecAttachment:
    """The client's side of an exec's streams."""

    def __init__(self, stdin: Stdin | None, master: int | None) -> None:
        self.sender, self._receiver = trio.open_memory_channel[tuple[int, bytes]](0)
        self._stdin, self.master = stdin, master

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1 stdout | 2 stderr, bytes); of a terminal everything is 1. Ends at the end."""
        async for item in self._receiver:
            yield item

    async def write(self, data: bytes) -> None:
        if self.master is not None:
            await write_all(self.master, data)
        elif self._stdin is not None:
            await self._stdin.write(data)

    async def close_stdin(self) -> None:
        if self._stdin is not None:
            self._stdin.close()

    async def aclose(self) -> None:
        """The client is gone; the process lives on."""
        await self.close_stdin()
        self._receiver.close()


def set_window_size(master: int, rows: int, columns: int) -> None:
    """Resize a terminal; the kernel tells its foreground processes with SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
