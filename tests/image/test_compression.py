"""Streams are unpacked by what they are; damage, cuts and bombs are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator

import pytest
from backports import zstd

from orchestra.image import compression
from orchestra.image.compression import Compression, decompress, sniff
from orchestra.image.layer import Limits
from orchestra.model.errors import Invalid, Unavailable

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}
DATA = os.urandom(300_000) + b"text " * 200_000


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def plain(data: bytes, size: int = 10_000, **more: object) -> bytes:
    return b"".join(decompress(pieces(data, size), **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("size", [1, 7, 10_000, 10_000_000])
def test_a_stream_is_unpacked_however_it_arrives(kind: str, size: int) -> None:
    data = DATA if size > 100 else DATA[:2000]
    packed = PACKERS[kind](data)
    assert sniff(packed[:6]) is Compression(kind)
    assert plain(packed, size) == data


def test_what_is_not_compressed_stays_as_it_is() -> None:
    assert plain(b"abc") == b"abc" and plain(b"") == b""


@pytest.mark.parametrize("kind", PACKERS)
def test_concatenated_streams_are_one(kind: str) -> None:
    pack = PACKERS[kind]
    assert plain(pack(b"one") + pack(b"") + pack(b"two")) == b"onetwo"


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_padding_after_a_stream_is_ignored(kind: str) -> None:
    assert plain(PACKERS[kind](b"one") + bytes(5000)) == b"one"


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_stream_is_refused(kind: str) -> None:
    packed = PACKERS[kind](DATA)
    for cut in (10, len(packed) // 2, len(packed) - 1):
        with pytest.raises(Invalid, match=kind):
            plain(packed[:cut])


@pytest.mark.parametrize("kind", PACKERS)
def test_a_damaged_stream_is_refused(kind: str) -> None:
    packed = bytearray(PACKERS[kind](DATA))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(Invalid, match=r"damaged|ends early"):
        plain(bytes(packed))


@pytest.mark.parametrize("kind", PACKERS)
def test_a_bomb_is_refused_in_little_memory(kind: str) -> None:
    bomb = PACKERS[kind](bytes(30 << 20))
    size = largest = 0
    with pytest.raises(Invalid, match="decompression bomb"):
        for piece in decompress(pieces(bomb, 512), limits=Limits(ratio=100, ratio_from=4 << 20)):
            size += len(piece)
            largest = max(largest, len(piece))
    assert size <= 8 << 20 and largest <= compression.PIECE


def test_an_honest_stream_that_begins_with_much_of_nothing_is_no_bomb() -> None:
    data = bytes(8 << 20) + os.urandom(1 << 20)
    packed = gzip.compress(data)
    limits = Limits(ratio=10, ratio_from=1 << 20)
    assert plain(packed, packed=len(packed), limits=limits) == data


def test_an_xz_stream_that_wants_a_gigabyte_of_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    encoder = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{**filters[0], "mode": lzma.MODE_FAST}])
    packed = encoder.compress(b"x") + encoder.flush()
    with pytest.raises(Invalid, match="xz"):
        plain(packed)


@pytest.mark.parametrize("isal", [True, False])
def test_our_gzip_is_always_the_same_and_others_read_it(
    isal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "ISAL", isal)
    packed = b"".join(compression.gzip(pieces(DATA, 10_000)))
    assert packed == b"".join(compression.gzip(pieces(DATA, 77_777)))
    assert gzip.decompress(packed) == DATA and plain(packed) == DATA
    assert packed[4:8] == bytes(4)  # no time


def test_without_its_helper_zstd_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compression, "ZSTD", False)
    with pytest.raises(Unavailable, match=r"pip install backports\.zstd"):
        plain(PACKERS["zstd"](b"x"))


def test_without_its_helper_gzip_is_read_by_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "ISAL", False)
    assert plain(gzip.compress(DATA) + gzip.compress(b"more")) == DATA + b"more"
    raw = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = raw.compress(bytes(64 << 20)) + raw.flush()
    assert max(map(len, decompress(pieces(bomb, 1 << 20)))) <= compression.PIECE
