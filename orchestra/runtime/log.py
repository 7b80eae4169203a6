"""A container's log on disk: one data file per stream and one index; everything else reads it.

Law: bytes move from the container's FIFO into the data file by splice, at an explicit offset,
before the index says so; whatever the files hold beyond the index (our death in between, a full
disk) is indexed at the next move or opening. So no byte is lost or told twice. The index is fixed
records of (offset, length, stream, time in ns) in the order of arrival, times never falling: lines,
merging, tail and since are made by the reader (`lines`), and attached clients are readers too: a
slow one lags behind in a file and neither costs memory nor stops the container.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

import trio
from attrs import frozen

STDOUT, STDERR = 1, 2
_NAMES = {STDOUT: "stdout.log", STDERR: "stderr.log"}
_RECORD = struct.Struct("<QIIq")
_SPLICE = 1 << 20
_READ = 64 << 10
LINE_LIMIT = 16 << 10  # longer lines come in pieces, as Docker's do


@frozen
class Chunk:
    """One index record: `length` bytes of `stream` at `offset` arrived at `time_ns`."""

    offset: int
    length: int
    stream: int
    time_ns: int


@frozen
class LogRecord:
    """A line with its newline, or a piece of one: the unfinished end, or of a very long line."""

    stream: int  # 1 stdout, 2 stderr
    time_ns: int  # when its end arrived
    data: bytes


class Log:
    """The open log of one container. `users` counts who needs it open."""

    def __init__(self, directory: str) -> None:
        self.users = 0
        self.running = False
        self.ends = 0  # runs that ended since it was opened
        self.changed = trio.lowlevel.ParkingLot()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = {s: os.open(f"{directory}/{name}", flags, 0o600) for s, name in _NAMES.items()}
        self._index = os.open(f"{directory}/log.index", flags, 0o600)
        self.index_size = os.fstat(self._index).st_size // _RECORD.size * _RECORD.size
        self._sizes = {STDOUT: 0, STDERR: 0}  # of the data files
        self._indexed = {STDOUT: 0, STDERR: 0}
        self._last = 0
        self._recover()

    def _recover(self) -> None:
        """Index what arrived just before we died last time, stamped with the file's own time."""
        known: set[int] = set()
        position = self.index_size
        while position and known != set(self._data):
            position -= _RECORD.size
            chunk = self.chunk(position)
            self._last = max(self._last, chunk.time_ns)
            if chunk.stream not in known:
                known.add(chunk.stream)
                self._indexed[chunk.stream] = chunk.offset + chunk.length
        for stream, fd in self._data.items():
            info = os.fstat(fd)
            self._sizes[stream] = max(info.st_size, self._indexed[stream])
            try:
                self._index_rest(stream, info.st_mtime_ns)
            except OSError:  # a full disk: the next move tries again
                pass

    def take(self, stream: int, source: int, buffer: int | None = None) -> int:
        """Move what the non-blocking pipe `source` holds to the log; its byte count.

        A terminal cannot be spliced into a file: it goes through `buffer`, a FIFO that others hold
        open too, so that our death in between loses nothing. 0 at the end of the source;
        BlockingIOError where it is empty for now; OSError of a full disk leaves everything in
        place; EIO of a terminal that nobody has open.
        """
        if buffer is None:
            self._index_rest(stream, time.time_ns())
            count = os.splice(source, self._data[stream], _SPLICE, offset_dst=self._sizes[stream])
            self._sizes[stream] += count
            self._index_rest(stream, time.time_ns())
            return count
        failed: OSError | None = None
        try:
            os.splice(source, buffer, _SPLICE)
        except OSError as error:
            failed = error
        try:
            return self.take(stream, buffer)
        except BlockingIOError:  # all that came out of the terminal is in the log
            if failed is not None:
                raise failed from None
            return 0

    def _index_rest(self, stream: int, now: int) -> None:
        """Index what the data file has beyond the index; OSError where that finds no room."""
        start, end = self._indexed[stream], self._sizes[stream]
        if start == end:
            return
        self._last = max(self._last, now)
        record = _RECORD.pack(start, end - start, stream, self._last)
        if os.pwrite(self._index, record, self.index_size) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.index")
        self.index_size += _RECORD.size
        self._indexed[stream] = end
        self.changed.unpark_all()

    def begin(self) -> None:
        self.running = True
        self.changed.unpark_all()

    def end(self) -> None:
        """The run is over and its output complete (or it never came to run): followers end."""
        self.running = False
        self.ends += 1
        self.changed.unpark_all()

    def chunk(self, position: int) -> Chunk:
        return Chunk(*_RECORD.unpack(os.pread(self._index, _RECORD.size, position)))

    def read(self, stream: int, offset: int, length: int) -> bytes:
        return os.pread(self._data[stream], length, offset)

    def position_at(self, time_ns: int) -> int:
        """Index position of the first chunk that is not older than `time_ns`."""
        low, high = 0, self.index_size // _RECORD.size
        while low < high:
            middle = (low + high) // 2
            if self.chunk(middle * _RECORD.size).time_ns < time_ns:
                low = middle + 1
            else:
                high = middle
        return low * _RECORD.size

    def chunks(self, position: int) -> Iterator[tuple[int, Chunk]]:
        """(next position, chunk) from `position` to the end as it is at each step."""
        while position < self.index_size:
            chunk = self.chunk(position)
            position += _RECORD.size
            yield position, chunk

    def pieces(self, chunk: Chunk) -> Iterator[bytes]:
        """A chunk's bytes, at most 64 KiB at a time."""
        done = 0
        while done < chunk.length:
            data = self.read(chunk.stream, chunk.offset + done, min(_READ, chunk.length - done))
            if not data:
                return
            done += len(data)
            yield data

    def close(self) -> None:
        for fd in (*self._data.values(), self._index):
            os.close(fd)


class OpenLog:
    """A use of a log: closes the files with the last user."""

    def __init__(self, logs: dict[str, Log], container_id: str, directory: str) -> None:
        self._logs, self._id = logs, container_id
        self.log = logs.get(container_id) or Log(directory)
        logs[container_id] = self.log
        self.log.users += 1
        self._open = True

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self.log.users -= 1
        if not self.log.users:
            del self._logs[self._id]
            self.log.close()

    def __enter__(self) -> Log:
        return self.log

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def follow(
    log: Log, position: int, streams: frozenset[int], finished: Callable[[], bool]
) -> AsyncIterator[tuple[int, bytes]]:
    """Bytes from index `position` on until `finished`, which is asked at every change."""
    while True:
        for following, chunk in log.chunks(position):
            position = following
            if chunk.stream in streams:
                for data in log.pieces(chunk):
                    yield chunk.stream, data
        if position >= log.index_size:
            if finished():
                return
            await log.changed.park()


class _Lines:
    """Cuts one stream's chunks into lines, keeping the unfinished end."""

    def __init__(self, stream: int, carry: bytes) -> None:
        self.stream, self.rest, self.time = stream, bytearray(carry), 0

    def feed(self, data: bytes, time_ns: int) -> Iterator[LogRecord]:
        self.rest += data
        self.time = time_ns
        start = 0
        while (end := self.rest.find(b"\n", start)) >= 0 or len(self.rest) - start >= LINE_LIMIT:
            stop = end + 1 if 0 <= end - start < LINE_LIMIT else start + LINE_LIMIT
            yield LogRecord(self.stream, time_ns, bytes(self.rest[start:stop]))
            start = stop
        del self.rest[:start]

    def finish(self) -> Iterator[LogRecord]:
        if self.rest:
            yield LogRecord(self.stream, self.time, bytes(self.rest))
            self.rest.clear()


def _line_start(log: Log, stream: int, offset: int) -> bytes:
    """The beginning of the line that `offset` lies in, at most LINE_LIMIT bytes back."""
    back = min(offset, LINE_LIMIT)
    return log.read(stream, offset - back, back).rpartition(b"\n")[2]


def _cutters(log: Log, position: int, streams: frozenset[int]) -> dict[int, _Lines]:
    """A cutter per stream, knowing the start of the line it begins within."""
    first: dict[int, int] = {}
    for _, chunk in log.chunks(position):
        if chunk.stream in streams and chunk.stream not in first:
            first[chunk.stream] = chunk.offset
            if len(first) == len(streams):
                break
    return {s: _Lines(s, _line_start(log, s, first[s]) if s in first else b"") for s in streams}


def _tail_position(log: Log, count: int, streams: frozenset[int], earliest: int, end: int) -> int:
    """An index position behind which at least `count` lines of `streams` begin."""
    seen, position = 0, end
    while position > earliest and seen <= count:
        position -= _RECORD.size
        chunk = log.chunk(position)
        if chunk.stream in streams:
            seen += sum(data.count(b"\n") for data in log.pieces(chunk))
            # A line's pieces count as lines too; more than needed is cut off by the reader.
    return position


async def lines(
    log: Log,
    *,
    streams: frozenset[int],
    follow: bool,
    since: float = 0.0,
    until: float = 0.0,
    tail: int | None = None,
) -> AsyncIterator[LogRecord]:
    """One record per line, merged in the order of arrival; times are Unix seconds, 0 = open.

    With `follow` it goes on until the container stops (or `until` passes).
    """
    ends, running = log.ends, log.running
    start = log.position_at(int(since * 1e9)) if since else 0
    end = log.position_at(int(until * 1e9) + 1) if until else log.index_size
    position = start if tail is None else _tail_position(log, tail, streams, start, end)
    cutters = _cutters(log, position, streams)
    following = follow and running
    held: list[LogRecord] = []
    keep = tail if tail is not None else None
    while position < end:
        position, chunk = next(log.chunks(position))
        if chunk.stream not in streams:
            continue
        for data in log.pieces(chunk):
            for record in cutters[chunk.stream].feed(data, chunk.time_ns):
                if keep is None:
                    yield record
                else:
                    held.append(record)
                    if len(held) > 2 * keep + 64:
                        del held[: len(held) - keep]
        await trio.lowlevel.checkpoint()
    if keep is not None:
        if not following:
            held += [r for cutter in cutters.values() for r in cutter.finish()]
        for record in held[len(held) - keep :] if keep else []:
            yield record
    elif not following:
        for cutter in cutters.values():
            for record in cutter.finish():
                yield record
    if not following:
        return
    limit = until * 1e9 if until else float("inf")
    deadline = trio.current_time() + until - time.time() if until else float("inf")
    while True:
        with trio.move_on_at(deadline) as scope:
            while position >= log.index_size and log.ends == ends:
                await log.changed.park()
        for following_position, chunk in log.chunks(position):
            position = following_position
            if chunk.time_ns > limit:
                return
            if chunk.stream in streams:
                for data in log.pieces(chunk):
                    for record in cutters[chunk.stream].feed(data, chunk.time_ns):
                        yield record
        if scope.cancelled_caught or (log.ends != ends and position >= log.index_size):
            break
    for cutter in cutters.values():
        for record in cutter.finish():
            yield record
