"""A log's files by themselves: no byte is lost or told twice, whatever the disk does."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from orchestra.runtime.log import STDERR, STDOUT, Log, lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of sixteen pages."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def said(log: Log) -> bytes:
    async def read() -> bytes:
        both = frozenset((STDOUT, STDERR))
        return b"".join([record.data async for record in lines(log, streams=both, follow=False)])

    return trio.run(read)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Log]:
    log = Log(str(directory))
    try:
        yield log
    finally:
        log.close()


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


@pytest.mark.root
@pytest.mark.parametrize("reopened", [False, True])
def test_what_the_index_has_no_room_for_is_indexed_later(
    small: Path, pipe: tuple[int, int], reopened: bool
) -> None:
    reader, writer = pipe
    with opened(small) as log:
        for number in range(170):  # records of 24 bytes: the next one needs a second page
            os.write(writer, b"%d\n" % (number % 10))
            assert log.take(STDOUT, reader) == 2
        filler = fill(small)
        os.write(writer, b"the last\n")
        with pytest.raises(OSError) as caught:
            log.take(STDOUT, reader)
        assert caught.value.errno == errno.ENOSPC
        os.write(writer, b"and the next\n")
        with pytest.raises(OSError):
            log.take(STDOUT, reader)
        wanted = b"".join(b"%d\n" % (number % 10) for number in range(170)) + b"the last\n"
        if not reopened:
            filler.unlink()
            log.take(STDOUT, reader)
            assert said(log) == wanted + b"and the next\n"
    if reopened:
        with opened(small) as full:
            assert full.index_size == 170 * 24
        filler.unlink()
        with opened(small) as log:
            log.take(STDOUT, reader)
            assert said(log) == wanted + b"and the next\n"
            assert log.index_size == 172 * 24


@pytest.mark.root
def test_a_terminals_bytes_go_through_the_fifo_and_stay_there_while_the_disk_is_full(
    small: Path, pipe: tuple[int, int]
) -> None:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    through = os.open(f"/proc/self/fd/{pipe[1]}", os.O_RDWR | os.O_NONBLOCK)
    with opened(small) as log:
        os.write(slave, b"one\n")
        while not log.index_size:
            with contextlib.suppress(BlockingIOError):
                log.take(STDOUT, master, through)
        filler = fill(small)
        os.write(slave, b"x" * 3000 + b"\n" + b"y" * 2000 + b"\n")
        with pytest.raises(OSError) as caught:
            while True:
                with contextlib.suppress(BlockingIOError):
                    log.take(STDOUT, master, through)
        assert caught.value.errno == errno.ENOSPC
        os.close(slave)
        filler.unlink()
        with pytest.raises(OSError) as caught:  # the end of a terminal, once all is told
            while True:
                with contextlib.suppress(BlockingIOError):
                    log.take(STDOUT, master, through)
        assert caught.value.errno == errno.EIO
        told = b"one\r\n" + b"x" * 3000 + b"\r\n" + b"y" * 2000 + b"\r\n"
        assert said(log) == told
    os.close(master)
    os.close(through)


def test_streams_are_merged_in_the_order_of_arrival_by_files_that_are_read_again(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    with opened(tmp_path) as log:
        for stream, data in (
            (STDOUT, b"a\nhal"),
            (STDERR, b"b\n"),
            (STDOUT, b"f\n"),
            (STDERR, b"c"),
        ):
            os.write(writer, data)
            log.take(stream, reader)
        assert said(log) == b"a\nb\nhalf\nc"
    with opened(tmp_path) as log:
        assert said(log) == b"a\nb\nhalf\nc"
        with pytest.raises(BlockingIOError):
            log.take(STDOUT, reader)
