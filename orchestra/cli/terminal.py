"""This terminal joined to a process far away: raw mode, window size, both directions.

Used by `exec`, `attach` and `container run`. Threads, not trio: the CLI must start quickly.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from orchestra.api.blocking import RawStream
from orchestra.model.errors import OrchestraError


def size() -> tuple[int, int]:
    """(rows, columns) of this terminal."""
    columns, rows = shutil.get_terminal_size()
    return rows, columns


@contextmanager
def raw_mode() -> Iterator[None]:
    """Hand every key to the other side, and put the terminal back whatever happens."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def following_size(resize: Callable[[int, int], None]) -> Iterator[None]:
    """Call `resize` whenever the window changes; that the process ended meanwhile is no error."""

    def changed(_signal: int, _frame: FrameType | None) -> None:
        with suppress(OrchestraError):
            resize(*size())

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def pump(stream: RawStream, *, stdin: bool) -> None:
    """Copy until the other side ends; our stdin's end is passed on as a half-close."""

    def send() -> None:
        descriptor = sys.stdin.fileno()
        try:
            while data := os.read(descriptor, 32 << 10):
                stream.send(data)
            stream.send_eof()
        except Exception:  # the other side ended first; its output says all there is to say
            return

    if stdin:
        threading.Thread(target=send, daemon=True).start()
    for number, data in stream.output():
        sink = sys.stderr.buffer if number == 2 else sys.stdout.buffer
        sink.write(data)
        sink.flush()
