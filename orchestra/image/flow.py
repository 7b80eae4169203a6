"""Where async byte streams meet the threads that do blocking work.

The law: a thread never waits without the trio side being able to cancel it, and no side runs ahead
by more than a few pieces, so memory stays flat whatever a stream's length.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

import trio

from orchestra.image.digest import Digest

PIECE = 1 << 20  # bytes handed from one side to the other at once
_AHEAD = 4  # pieces


def pull(chunks: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Read an async stream from a trio worker thread, in pieces of about PIECE bytes.

    Cancelling the task that waits for the thread raises Cancelled here.
    """
    stream = aiter(chunks)

    async def gather() -> bytes:
        parts, size = [], 0
        async for chunk in stream:
            parts.append(chunk)
            size += len(chunk)
            if size >= PIECE:
                break
        return b"".join(parts)

    while piece := trio.from_thread.run(gather):
        yield piece


async def push(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Run a blocking iterator in worker threads and yield what it gives, gathered to PIECE."""

    def gather() -> bytes:
        parts, size = [], 0
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= PIECE:
                break
        return b"".join(parts)

    while piece := await trio.to_thread.run_sync(gather):
        yield piece


def ahead(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Run a blocking iterator in a thread of its own, a few pieces ahead of who reads this.

    Decompressing and hashing free the interpreter lock: they overlap with the reader's work.
    """
    done: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def run() -> None:
        try:
            for piece in pieces:
                done.put(piece)
                if stopped.is_set():
                    return
            done.put(None)
        except BaseException as error:  # the reader's to raise
            done.put(error)

    thread = threading.Thread(target=run, name="image-ahead", daemon=True)
    thread.start()
    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        with contextlib.suppress(queue.Empty):
            while True:
                done.get_nowait()  # room for the one put that may be waiting
        thread.join()


def interruptible(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass a stream on in a trio worker thread; raises Cancelled where its task is cancelled.

    In other threads (a store that is being opened) there is no task, and nothing to look for.
    """
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        yield from pieces
        return
    for piece in pieces:
        trio.from_thread.check_cancelled()
        yield piece


class Measured:
    """Passes a stream on and keeps its digest and length."""

    def __init__(self, pieces: Iterator[bytes], algorithm: str = "sha256") -> None:
        self._pieces = pieces
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._hasher.update(piece)
        self.size += len(piece)
        return piece

    def digest(self) -> Digest:
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")


def read_file(path: str, size: int = PIECE) -> Iterator[bytes]:
    """A file's content; nothing is buffered twice."""
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(size):
            yield piece
