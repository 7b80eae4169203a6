"""Streams in and out of compression, by content and never by name.

A stream is an iterator of byte strings. Output comes in bounded pieces whatever the input expands
to, so that a bomb costs time but no memory; damaged input is Invalid. isal and backports.zstd ride
along where they can: without the first zlib does the work, without the second zstd streams are
refused with the remedy. Magic numbers: RFC 1952, RFC 8878, xz-file-format.txt, bzip2's manual.
"""

from __future__ import annotations

import bz2
import enum
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from orchestra.image.layer import Limits
from orchestra.model.errors import Invalid, Unavailable

try:
    from isal import igzip_lib, isal_zlib

    ISAL = True
except ImportError:
    ISAL = False

try:
    from backports import zstd

    ZSTD = True
except ImportError:
    ZSTD = False

PIECE = 1 << 20  # bytes of output at most per step
HEAD = 6  # bytes that sniff() wants
_GZIP = 31  # zlib's wbits for a gzip header and trailer
_ZSTD_WINDOW = 27  # log2 of bytes: 128 MiB is what zstd itself takes without --long
_XZ_MEMORY = 256 << 20  # bytes; xz -9 needs 65 MiB

_DAMAGE: tuple[Any, ...] = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
if ISAL:
    _DAMAGE = (*_DAMAGE, igzip_lib.IsalError)
if ZSTD:
    _DAMAGE = (*_DAMAGE, zstd.ZstdError)


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


def decompress(
    chunks: Iterator[bytes],
    *,
    packed: int = 0,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> Iterator[bytes]:
    """The stream's content, whatever its compression, in pieces of at most PIECE bytes.

    `packed` is the stream's length in bytes where it is known. Raises Invalid for damaged or cut
    input and for more output than an honest stream gives, Unavailable for zstd without the
    backports.zstd.
    """
    seen = 0

    def counted() -> Iterator[bytes]:
        nonlocal seen
        for chunk in chunks:
            seen += len(chunk)
            yield chunk

    head, source = peek(counted())
    match sniff(head):
        case Compression.NONE:
            return source
        case Compression.GZIP:
            pieces = _members(_gunzip, source, "gzip")
        case Compression.BZIP2:
            pieces = _members(bz2.BZ2Decompressor, source, "bzip2")
        case Compression.XZ:
            pieces = _members(_unxz, source, "xz")
        case Compression.ZSTD:
            pieces = _members(_unzstd, source, "zstd")

    def bounded() -> Iterator[bytes]:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > max(limits.ratio_from, limits.ratio * max(packed, seen)):
                raise Invalid(
                    f"a stream of {max(packed, seen)} bytes unpacks to more than {size} bytes: "
                    "taken for a decompression bomb and refused"
                )
            yield piece

    return bounded()


class _Decoder(Protocol):
    """The shape that bz2, lzma, zstd and igzip_lib share."""

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


def _unxz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _unzstd() -> _Decoder:
    if not ZSTD:
        raise Unavailable(
            "this stream is zstd-compressed and the module backports.zstd is not here: "
            "`pip install backports.zstd`, or recompress with gzip"
        )
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW})


def _members(new: Callable[[], Any], chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Decode concatenated members (all of these formats allow that); zero padding may follow."""
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


def gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Compress at level 1 with no name and no time in the header: the same input gives the same
    output, however it arrives, as long as the library's version stays. (isal -1: 396 MB/s a core;
    zlib -1: 98.)"""
    module = isal_zlib if ISAL else zlib
    encoder = module.compressobj(1, zlib.DEFLATED, _GZIP)
    for piece in _even(chunks):
        if packed := encoder.compress(piece):
            yield packed
    yield encoder.flush()


def _even(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The stream in pieces of exactly PIECE bytes, the last one shorter: what isal makes of it
    depends on where the pieces end."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= PIECE:
            data = b"".join(parts)
            cut = len(data) - len(data) % PIECE
            for at in range(0, cut, PIECE):
                yield data[at : at + PIECE]
            parts, size = [data[cut:]], len(data) - cut
    if size:
        yield b"".join(parts)
