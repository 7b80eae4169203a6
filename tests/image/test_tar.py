"""The tar format: what others write is read, what is written others read, damage is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.box import file, folder, tar
from orchestra.image.tar import BLOCK, END, Entry, Kind, TarReader, header, padding
from orchestra.model.errors import Invalid

NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1)
TEXT = NAMES.map(lambda name: name.strip("/") or "x").filter(lambda name: len(name) < 1000)


def entries(data: bytes, piece: int = 100) -> list[tuple[Entry, bytes]]:
    reader = TarReader(iter([data[at : at + piece] for at in range(0, len(data), piece)]))
    return [(entry, b"".join(reader.data())) for entry in reader]


def refused(data: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        entries(data)


@st.composite
def any_entry(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(Kind))
    link = kind in (Kind.SYMLINK, Kind.HARDLINK)
    device = kind in (Kind.CHAR, Kind.BLOCK)
    number = st.integers(0, 1 << 40)
    return Entry(
        name=draw(TEXT),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(number),
        gid=draw(number),
        size=draw(st.integers(0, 2000)) if kind is Kind.FILE else 0,
        mtime=draw(st.integers(-(1 << 33), 1 << 40)) * 1_000_000_000,
        linkname=draw(TEXT) if link else "",
        device=(draw(st.integers(0, 999)), draw(st.integers(0, 999))) if device else (0, 0),
        xattrs=draw(st.dictionaries(st.text("abc.", min_size=1), st.binary(max_size=30))),
    )


@given(any_entry())
def test_what_is_written_is_read_again(entry: Entry) -> None:
    content = b"x" * entry.size
    data = header(entry) + content + padding(entry.size) + END
    assert entries(data) == [(entry, content)]


@given(any_entry())
def test_the_stdlib_reads_what_is_written(entry: Entry) -> None:
    data = header(entry) + b"x" * entry.size + padding(entry.size) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        [found] = archive.getmembers()
    assert (found.name, found.linkname) == (entry.name, entry.linkname)
    assert (found.uid, found.gid, found.mode) == (entry.uid, entry.gid, entry.mode)
    assert found.type == entry.kind.value and found.size == entry.size
    assert int(found.mtime) == entry.mtime // 1_000_000_000


@given(any_entry(), st.binary(max_size=200), st.integers(0, 3000))
def test_damage_is_refused_and_never_anything_else(entry: Entry, damage: bytes, at: int) -> None:
    data = header(entry) + b"x" * entry.size + padding(entry.size) + END
    data = data[:at] + damage + data[at + len(damage) :]
    try:
        entries(data)
    except Invalid:
        pass


@given(st.binary(max_size=2000))
def test_noise_is_refused(noise: bytes) -> None:
    try:
        assert all(not entry.name for entry, _ in entries(noise))
    except Invalid:
        pass


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_the_stdlib_is_read(form: int) -> None:
    long = "d" * 60 + "/" + "f" * 60
    large = 5_000_000 if form != tarfile.USTAR_FORMAT else 5  # beyond ustar's octal digits
    found = entries(tar(folder("d/"), file(long, b"x" * 600, uid=large), form=form))
    assert [(e.name.rstrip("/"), e.kind, e.uid) for e, _ in found] == [
        ("d", Kind.DIRECTORY, 0),
        (long, Kind.FILE, large),
    ]
    assert found[1][1] == b"x" * 600


def test_global_headers_hold_for_all_entries_after_them() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"uid": "77"}) as archive:
        for one in (file("a"), file("b")):
            one.info.uid = 5
            archive.addfile(one.info, io.BytesIO(one.data))
    assert [entry.uid for entry, _ in entries(buffer.getvalue())] == [77, 77]


def test_bytes_after_the_end_stay_in_the_stream() -> None:
    chunks = iter([tar(file("a")), b"more"])
    assert [entry.name for entry in TarReader(chunks)] == ["a"]
    assert next(chunks) == b"more"


def test_an_archive_without_its_end_marker_is_whole() -> None:
    data = tar(file("a", b"x" * BLOCK))[: 2 * BLOCK]
    assert [entry.name for entry, _ in entries(data)] == ["a"]


# damage and malice


def raw_header(flag: bytes, size: bytes, name: bytes = b"f", tail: bytes = b"") -> bytes:
    """A header with any type and size field, its checksum right."""
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    block += size.ljust(12, b"\0") + b"00000000000\0" + b" " * 8 + flag + bytes(100)
    block += b"ustar\x0000"
    block = (block + tail).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def binary(number: int) -> bytes:
    return bytes([0xFF if number < 0 else 0x80]) + number.to_bytes(11, "big", signed=True)


def pax(records: dict[str, str]) -> bytes:
    body = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text) + len(str(len(text)))
        length = len(text) + len(str(length))
        body += str(length).encode() + text
    return raw_header(b"x", octal(len(body))) + body + padding(len(body))


def test_sizes_beyond_octal_are_read() -> None:
    reader = TarReader(iter([raw_header(b"0", binary(1 << 40))]))
    assert next(iter(reader)).size == 1 << 40


DAMAGED = {
    "a negative size": (raw_header(b"0", binary(-512)), "negative owner or size"),
    "a negative header": (raw_header(b"x", binary(-512)), "headers have more than"),
    "a negative long name": (raw_header(b"L", binary(-5)), "headers have more than"),
    "no number": (raw_header(b"0", b"12x4"), "is no octal number"),
    "a huge header": (raw_header(b"x", octal(1 << 30)), "headers have more than"),
    "a huge long name": (raw_header(b"L", octal(1 << 30)), "headers have more than"),
    "an unknown type": (raw_header(b"V", octal(0)), "unknown type"),
    "a wrong checksum": (b"x" + raw_header(b"0", octal(0))[1:], "checksum is wrong"),
    "a checksum in the middle": (
        raw_header(b"0", octal(0)) + b"x" + raw_header(b"0", octal(0))[1:],
        "checksum is wrong",
    ),
    "a header at the end": (pax({"path": "x"}) + END, "checksum is wrong"),
    "text": (b"this is no archive at all".ljust(1024), "is no tar archive"),
    "a bad PAX number": (pax({"uid": "x"}) + raw_header(b"0", octal(0)), "is no number"),
    "a bad PAX length": (
        raw_header(b"x", octal(9)) + b"99 path=x".ljust(BLOCK, b"\0"),
        "PAX header is damaged",
    ),
    "a zero byte in a name": (
        pax({"path": "a\0b"}) + raw_header(b"0", octal(0)),
        "zero byte in its name",
    ),
    "sparse without a size": (
        pax({"GNU.sparse.major": "0", "GNU.sparse.map": "0,0"}) + raw_header(b"0", octal(0)),
        "is no number",
    ),
    "sparse beyond its size": (
        pax({"GNU.sparse.size": "10", "GNU.sparse.map": "8,5"})
        + raw_header(b"0", octal(5))
        + bytes(BLOCK),
        "does not fit its data",
    ),
    "sparse with less data": (
        pax({"GNU.sparse.size": "10", "GNU.sparse.map": "0,5"})
        + raw_header(b"0", octal(4))
        + bytes(BLOCK),
        "does not fit its data",
    ),
    "sparse backwards": (
        raw_header(
            b"S",
            octal(0),
            tail=bytes(386 - 265) + binary(0) + binary(-8) + binary(0) + binary(8) + bytes(48),
        ),
        "does not fit its data",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_archive_is_refused(case: str) -> None:
    data, message = DAMAGED[case]
    refused(data, message)


def test_extents_without_end_are_refused() -> None:
    def blocks() -> Iterator[bytes]:
        full = (octal(0) + octal(0)) * 21
        yield raw_header(b"S", octal(0), tail=bytes(386 - 265) + full[:96] + b"\x01")
        while True:
            yield full + b"\x01" + bytes(7)

    with pytest.raises(Invalid, match="extents"):
        list(TarReader(blocks()))


def test_headers_without_end_are_refused() -> None:
    def one_entry() -> Iterator[bytes]:
        for number in range(1 << 30):
            yield pax({f"key{number}": "x" * 1000})

    with pytest.raises(Invalid, match="headers have more than"):
        list(TarReader(one_entry()))


def test_global_headers_without_end_are_refused() -> None:
    def many_entries() -> Iterator[bytes]:
        for number in range(1 << 30):
            record = pax({f"key{number}": "x" * 100_000})
            yield raw_header(b"g", record[124:136]) + record[BLOCK:] + raw_header(b"0", octal(0))

    with pytest.raises(Invalid, match="global headers have more than"):
        for _ in TarReader(many_entries()):
            pass
