"""Streams in and out of compression, by content and never by name.

A stream is an iterator of byte strings. Output comes in bounded pieces whatever the input expands
to, so that a bomb costs time but no memory; damaged input is Invalid. isal and zstandard ride along
where they can: without isal zlib does the work, without zstandard zstd streams are refused with
the remedy. Magic numbers: RFC 1952, RFC 8878, xz-file-format.txt, bzip2's manual.
"""

from __future__ import annotations

import bz2
import enum
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, cast

from orchestra.model.errors import Invalid, Unavailable

try:
    from isal import igzip_lib, isal_zlib

    ISAL = True
except ImportError:
    ISAL = False

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]

PIECE = 1 << 20  # bytes of output at most per step
HEAD = 6  # bytes that sniff() wants
_GZIP = 31  # zlib's wbits for a gzip header and trailer
_ZSTD_WINDOW = 128 << 20


_DAMAGE: tuple[Any, ...] = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
if ISAL:
    _DAMAGE = (*_DAMAGE, igzip_lib.IsalError)


class Compression(enum.Enum):
    NONE = ""
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


_MAGIC = (
    (b"\x1f\x8b\x08", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\x00", Compression.XZ),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)


def sniff(head: bytes) -> Compression:
    """The compression of a stream that begins with `head`."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), Compression.NONE)


def peek(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first HEAD bytes (fewer at the stream's end), and the stream still whole."""
    head = b""
    while len(head) < HEAD and (chunk := next(chunks, b"")):
        head += chunk

    def whole() -> Iterator[bytes]:
        if head:
            yield head
        yield from chunks

    return head[:HEAD], whole()


def decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The stream's content, whatever its compression, in pieces of at most PIECE bytes.

    Raises Invalid for damaged or cut input, Unavailable for zstd without the zstandard module.
    """
    head, chunks = peek(chunks)
    match sniff(head):
        case Compression.NONE:
            return chunks
        case Compression.GZIP:
            return _members(_gunzip, chunks, "gzip")
        case Compression.BZIP2:
            return _members(bz2.BZ2Decompressor, chunks, "bzip2")
        case Compression.XZ:
            return _members(lzma.LZMADecompressor, chunks, "xz")
        case Compression.ZSTD:
            return _unzstd(chunks)


class _Decoder(Protocol):
    """The shape that bz2, lzma and igzip_lib share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decompressor in that shape."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _gunzip() -> _Decoder:
    if ISAL:
        decoder: _Decoder = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        return decoder
    return _Zlib()


def _members(new: Callable[[], Any], chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Decode concatenated members (gzip, bzip2 and xz all allow that); zero padding may follow."""
    decoder: _Decoder = new()
    fresh = True  # nothing of the current member was seen yet
    for chunk in chunks:
        data = chunk
        while not (fresh and not data.lstrip(b"\0")):
            fresh = False
            try:
                piece = decoder.decompress(data, PIECE)
            except _DAMAGE as error:
                raise Invalid(f"the {what} stream is damaged: {error}") from None
            if piece:
                yield piece
            data = b""
            if decoder.eof:
                data, decoder, fresh = decoder.unused_data, new(), True
            elif decoder.needs_input and len(piece) < PIECE:
                break
    if not fresh:
        raise Invalid(f"the {what} stream ends early")


class _Reading:
    """An iterator of byte strings as the file that zstandard reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = PIECE) -> bytes:
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    if zstandard is None:
        raise Unavailable(
            "this stream is zstd-compressed and the zstandard module is not here: "
            "`pip install zstandard`, or recompress with gzip"
        )
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    source = cast(IO[bytes], _Reading(chunks))  # it asks for read() alone
    reader = decoder.stream_reader(source, read_size=PIECE, read_across_frames=True)
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise Invalid(f"the zstd stream is damaged: {error}") from None


def gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Compress at level 1 with no name and no time in the header: the same input gives the same
    output as long as the library's version stays. (isal -1: 396 MB/s a core; zlib -1: 98.)"""
    module = isal_zlib if ISAL else zlib
    encoder = module.compressobj(1, zlib.DEFLATED, _GZIP)
    for chunk in chunks:
        if piece := encoder.compress(chunk):
            yield piece
    yield encoder.flush()
