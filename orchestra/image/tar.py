"""The tar format: headers to values and back, over streams that cannot seek.

Reading takes what Docker, Go, GNU tar, libarchive and Python write: v7, ustar, PAX (local and
global), GNU long names, base-256 numbers, GNU and PAX sparse files. Writing is one canonical form:
ustar, with a PAX header only for what ustar cannot say; the same entry always gives the same bytes.
(The stdlib's tarfile costs five times as much per entry, and takes a damaged header in the middle
for the end.) Sources: POSIX pax(1), GNU tar's manual ("Basic Tar Format", "Sparse Formats").
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping

from attrs import field, frozen

from orchestra.model.errors import Invalid

BLOCK = 512
END = bytes(2 * BLOCK)
_ZERO = bytes(BLOCK)
_META_LIMIT = 1 << 20  # bytes of one entry's PAX headers: names and xattrs are smaller
_PATH_LIMIT = 4096  # bytes: Linux takes no longer path (PATH_MAX)
_EXTENT_LIMIT = 1 << 16  # of a sparse file
_SECOND = 1_000_000_000
_XATTR = "SCHILY.xattr."


class Kind(enum.Enum):
    """An entry's type flag."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_META = (b"x", b"g", b"L", b"K")  # headers that say more about the entry after them
_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE}


@frozen
class Entry:
    """One member. Text is what os.fsdecode makes of the archive's bytes; `mtime` in nanoseconds.

    `size` is a file's length; of a sparse file only the `extents` (offset, length) are stored, one
    after the other.
    """

    name: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(factory=dict)
    extents: tuple[tuple[int, int], ...] | None = None


class TarReader:
    """Iterates over an archive's entries; `data` gives the content of the current one.

    Raises Invalid for a damaged or cut archive. Bytes after the end marker stay in `chunks`.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = memoryview(b"")
        self._left = 0  # of the current member's stored bytes
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        defaults: dict[str, str] = {}
        while True:
            pax = dict(defaults)
            entry, meta = None, 0
            while entry is None:
                self._skip(self._left + self._padding)
                self._left = self._padding = 0
                header = self._block(end=not meta)
                if header is None:
                    return
                flag, size = header[156:157], _number(header[124:136])
                if flag in _META:
                    meta += BLOCK + size
                    if size < 0 or meta > _META_LIMIT:
                        raise Invalid(f"an entry's headers have more than {_META_LIMIT} bytes")
                if flag == b"x":
                    pax.update(_pax_records(self._meta(size)))
                elif flag == b"g":
                    defaults.update(_pax_records(self._meta(size)))
                    if sum(map(len, (*defaults, *defaults.values()))) > _META_LIMIT:
                        raise Invalid(f"global headers have more than {_META_LIMIT} bytes")
                    pax = defaults | pax
                elif flag == b"L":
                    pax["path"] = os.fsdecode(self._meta(size).rstrip(b"\0"))
                elif flag == b"K":
                    pax["linkpath"] = os.fsdecode(self._meta(size).rstrip(b"\0"))
                else:
                    entry = self._entry(header, flag, size, pax)
            yield entry

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the current entry, as the stream brings them. To be used up, or
        left, before the next entry is asked for."""
        while self._left:
            if not self._buffer:
                self._fill()
            piece = self._buffer[: self._left]
            self._buffer = self._buffer[len(piece) :]
            self._left -= len(piece)
            yield piece

    # the stream

    def _fill(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise Invalid("the archive ends early")
        self._buffer = memoryview(chunk)

    def _exactly(self, size: int, count: bool = False) -> bytes:
        if count:
            self._left -= size
        if len(self._buffer) >= size:
            piece = bytes(self._buffer[:size])
            self._buffer = self._buffer[size:]
            return piece
        parts = []
        while size:
            if not self._buffer:
                self._fill()
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        while size:
            if not self._buffer:
                self._fill()
            step = min(size, len(self._buffer))
            self._buffer = self._buffer[step:]
            size -= step

    def _block(self, end: bool) -> bytes | None:
        """The next header, its checksum tested; None at the archive's end, if it may end here."""
        if not self._buffer and end:
            chunk = next(self._chunks, b"")
            if not chunk:
                return None  # writers that leave out the end marker exist
            self._buffer = memoryview(chunk)
        block = self._exactly(BLOCK)
        if block == _ZERO and end:
            return None
        _verify_checksum(block)
        return block

    def _meta(self, size: int) -> bytes:
        data = self._exactly(size)
        self._skip(-size % BLOCK)
        return data

    # one entry

    def _entry(self, header: bytes, flag: bytes, size: int, pax: Mapping[str, str]) -> Entry:
        name = pax.get("path")
        if name is None:
            name = os.fsdecode(header[:100].split(b"\0", 1)[0])
            if header[257:263] == b"ustar\0" and header[345]:
                name = os.fsdecode(header[345:500].split(b"\0", 1)[0]) + "/" + name
        kind = _KINDS.get(flag)
        if kind is None:
            raise Invalid(f"entry {name!r:.300} has the unknown type {flag!r}")
        if kind is Kind.FILE and flag == b"\0" and name.endswith("/"):
            kind = Kind.DIRECTORY  # v7
        linkname, xattrs = "", {}
        if kind in (Kind.HARDLINK, Kind.SYMLINK):
            linkname = pax.get("linkpath") or os.fsdecode(header[157:257].split(b"\0", 1)[0])
        mode, uid, gid = map(_number, (header[100:108], header[108:116], header[116:124]))
        mtime = _number(header[136:148]) * _SECOND
        if pax:
            size = _decimal(pax["size"]) if "size" in pax else size
            uid = _decimal(pax["uid"]) if "uid" in pax else uid
            gid = _decimal(pax["gid"]) if "gid" in pax else gid
            mtime = _nanoseconds(pax["mtime"]) if "mtime" in pax else mtime
            xattrs = {
                key[len(_XATTR) :]: os.fsencode(value)
                for key, value in pax.items()
                if key.startswith(_XATTR)
            }
        if uid < 0 or gid < 0 or size < 0:
            raise Invalid(f"entry {name!r:.300} has a negative owner or size")
        extents = None
        if kind is Kind.FILE:
            self._left, self._padding = size, -size % BLOCK
            if flag == b"S":
                size, extents = self._gnu_sparse(header)
            elif "GNU.sparse.major" in pax or "GNU.sparse.size" in pax:
                name = pax.get("GNU.sparse.name", name)
                size, extents = self._pax_sparse(pax)
            _verify_extents(name, size, extents, self._left)
        device = (0, 0)
        if kind in (Kind.CHAR, Kind.BLOCK):
            device = (_number(header[329:337]), _number(header[337:345]))
        if "\0" in name or "\0" in linkname:
            raise Invalid(f"entry {name!r:.300} has a zero byte in its name")
        if max(len(name), len(linkname)) > _PATH_LIMIT:
            raise Invalid(f"entry {name!r:.80}... has a path of more than {_PATH_LIMIT} bytes")
        return Entry(
            name=name,
            kind=kind,
            mode=mode & 0o7777,
            uid=uid,
            gid=gid,
            size=size if kind is Kind.FILE else 0,
            mtime=mtime,
            linkname=linkname,
            device=device,
            xattrs=xattrs,
            extents=extents,
        )

    def _gnu_sparse(self, header: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Old GNU format: four extents in the header, 21 in each further block."""
        extents = _gnu_extents(header[386:482])
        more = header[482]
        while more:
            block = self._exactly(BLOCK)
            extents += _gnu_extents(block[:504])
            if len(extents) > _EXTENT_LIMIT:
                raise Invalid(f"a sparse file has more than {_EXTENT_LIMIT} extents")
            more = block[504]
        return _number(header[483:495]), tuple(extents)

    def _pax_sparse(self, pax: Mapping[str, str]) -> tuple[int, tuple[tuple[int, int], ...]]:
        """PAX formats 0.0 and 0.1 (the map in the header), 1.0 (before the data)."""
        if pax.get("GNU.sparse.major") == "1":
            text = b""
            want = 1
            while text.count(b"\n") < want:
                if len(text) > _META_LIMIT:
                    raise Invalid("a sparse file's map is too long")
                text += self._exactly(BLOCK, count=True)
                if want == 1 and b"\n" in text:
                    want += 2 * _decimal(text.split(b"\n", 1)[0].decode("ascii", "replace"))
            numbers = [_decimal(n.decode("ascii", "replace")) for n in text.split(b"\n")[1:want]]
            size = _decimal(pax.get("GNU.sparse.realsize", ""))
        else:
            numbers = [_decimal(n) for n in pax.get("GNU.sparse.map", "").split(",") if n]
            size = _decimal(pax.get("GNU.sparse.size", ""))
        return size, tuple(zip(numbers[::2], numbers[1::2]))


def _gnu_extents(field: bytes) -> list[tuple[int, int]]:
    pairs = (field[at : at + 24] for at in range(0, len(field), 24))
    return [(_number(p[:12]), _number(p[12:])) for p in pairs if p[0]]


def _verify_extents(
    name: str, size: int, extents: tuple[tuple[int, int], ...] | None, stored: int
) -> None:
    if extents is None:
        return
    fits = all(offset >= 0 and 0 <= length <= size - offset for offset, length in extents)
    if not fits or sum(length for _, length in extents) != stored:
        raise Invalid(f"sparse entry {name!r:.300} has a map that does not fit its data")


def _verify_checksum(block: bytes) -> None:
    try:
        said = _number(block[148:156])
    except Invalid:
        said = -1
    if said == sum(block) - sum(block[148:156]) + 256:
        return
    rest = block[:148] + block[156:]
    if said == sum(byte - 256 if byte > 127 else byte for byte in rest) + 256:
        return  # signed bytes, as some old writers summed
    raise Invalid("a tar header's checksum is wrong: the archive is damaged or is no tar archive")


def _number(text: bytes) -> int:
    """An octal number, or GNU's base-256 for what octal cannot hold."""
    try:
        return int(text.rstrip(b" \0"), 8)
    except ValueError:
        pass
    if text[0] & 0x80:
        value = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        return value - (1 << (8 * len(text) - 1)) if text[0] & 0x40 else value
    if not text.strip(b" \0"):
        return 0
    raise Invalid(f"{text!r} in a tar header is no octal number")


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise Invalid(f"{text!r} in a PAX header is no number")
    return int(text)


def _nanoseconds(text: str) -> int:
    """PAX time: decimal seconds, maybe negative, maybe with a fraction."""
    whole, _, fraction = text.partition(".")
    negative = whole.startswith("-")
    value = _decimal(whole.lstrip("-") or "0") * _SECOND + _decimal((fraction + "0" * 9)[:9])
    return -value if negative else value


def _pax_records(data: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n"; the sparse 0.0 pairs, which repeat, become one map."""
    records: dict[str, str] = {}
    pairs: list[str] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 21)
        if space < 0:
            if not data[at:].strip(b"\0"):
                break
            raise Invalid("a PAX header is damaged")
        length = _decimal(data[at:space].decode("ascii", "replace"))
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or at + length > len(data):
            raise Invalid("a PAX header is damaged")
        at += length
        text = os.fsdecode(value[:-1])
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(text)
        else:
            records[os.fsdecode(key)] = text
    if pairs:
        records["GNU.sparse.map"] = ",".join(pairs)
    return records


def header(entry: Entry) -> bytes:
    """The header of `entry` in canonical form, PAX header before it where ustar is too small.

    Whole seconds only; owners numeric, without names. The content follows, then `padding`.
    """
    records: dict[str, bytes] = {}
    name, link = os.fsencode(entry.name), os.fsencode(entry.linkname)
    split = _split(name)
    if split is None:
        records["path"] = name
        split = b"", name[:100]
    if len(link) > 100 or not link.isascii():
        records["linkpath"] = link
    numbers = {"uid": entry.uid, "gid": entry.gid, "size": entry.size}
    for key, limit in (("uid", 8**7), ("gid", 8**7), ("size", 8**11)):
        if numbers[key] >= limit:
            records[key] = b"%d" % numbers[key]
            numbers[key] = 0
    seconds = entry.mtime // _SECOND
    if not 0 <= seconds < 8**11:
        records["mtime"] = b"%d" % seconds
        seconds = 0
    for key, value in entry.xattrs.items():
        records[_XATTR + key] = value
    pax = b""
    if records:
        body = b"".join(_record(os.fsencode(key), records[key]) for key in sorted(records))
        pax = _ustar(b"", b"PaxHeaders/0", b"x", 0o644, {"size": len(body)}, 0, b"", (0, 0))
        pax += body + padding(len(body))
    prefix, short = split
    flag = entry.kind.value
    return pax + _ustar(prefix, short, flag, entry.mode, numbers, seconds, link[:100], entry.device)


def padding(size: int) -> bytes:
    """What follows `size` bytes of content up to the next block."""
    return bytes(-size % BLOCK)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """`name` as ustar's prefix and name; None where they cannot hold it."""
    if not name.isascii():
        return None
    if len(name) <= 100:
        return b"", name
    at = name.rfind(b"/", 0, 156)
    if at <= 0 or not 0 < len(name) - at - 1 <= 100:
        return None
    return name[:at], name[at + 1 :]


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # blank, equals, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(
    prefix: bytes,
    name: bytes,
    flag: bytes,
    mode: int,
    numbers: Mapping[str, int],
    seconds: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, numbers.get("uid", 0), numbers.get("gid", 0)),
            b"%011o\0%011o\0" % (numbers.get("size", 0), seconds),
            b" " * 8,
            flag,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % device,
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
