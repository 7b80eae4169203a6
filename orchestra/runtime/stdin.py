"""The writing end of a process's stdin: a pipe made before the start, or a terminal's master.

Bytes written before the start wait in the pipe, so that `attach`, write, `start` loses nothing. A
reader that is gone drops what is written, as the protocol wants.
"""

from __future__ import annotations

import os

import trio


class Stdin:
    """`reader` is handed to the process; `writer` is non-blocking and ours (None: closed)."""

    def __init__(self) -> None:
        self.reader: int | None
        self.writer: int | None
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.writer, False)

    @classmethod
    def of_writer(cls, writer: int) -> Stdin:
        """The stdin of a process that runs already."""
        stdin = cls.__new__(cls)
        stdin.reader, stdin.writer = None, writer
        return stdin

    async def write(self, data: bytes) -> None:
        if self.writer is not None and not await write_all(self.writer, data):
            self.close()

    def close(self) -> None:
        """End of stdin for the process (once the shim has let go of its copy too)."""
        if self.writer is not None:
            close_watched(self.writer)
            self.writer = None

    def close_reader(self) -> None:
        if self.reader is not None:
            os.close(self.reader)
            self.reader = None

    def close_all(self) -> None:
        self.close()
        self.close_reader()


async def write_all(fd: int, data: bytes) -> bool:
    """Write to a non-blocking fd; False where nobody will ever read it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_writable(fd)
            except trio.ClosedResourceError:
                return False
        except OSError:  # EPIPE: the reader is gone; EIO: the terminal is
            return False
    return True


def close_watched(fd: int) -> None:
    """Close an fd that tasks may be waiting on: they wake with ClosedResourceError."""
    trio.lowlevel.notify_closing(fd)
    os.close(fd)
