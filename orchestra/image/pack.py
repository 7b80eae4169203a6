"""A directory into a layer's tar, the same bytes for the same content.

The law: what the tar holds depends on the files alone, never on the order the file system lists
them, on names of users or on the clock. Entries are sorted, whiteouts before their siblings, owners
numeric, times in whole seconds; overlay's whiteouts and opaque directories become the tar's.
`WRITER` names this form: a change of it changes every digest we make.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from orchestra.image.layer import HOST_XATTRS, OPAQUE, OPAQUE_XATTR, OVERLAY_XATTRS, WHITEOUT
from orchestra.image.tar import END, Entry, Kind, header, padding
from orchestra.model.errors import Failed

WRITER = 1
_PIECE = 1 << 20
_SECOND = 1_000_000_000
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def pack(directory: str, *, root: bool = False, clamp: int | None = None) -> Iterator[bytes]:
    """Yield the tar of everything below `directory`.

    `root` adds an entry for the directory itself; `clamp` (Unix seconds) is the latest time any
    entry may have (SOURCE_DATE_EPOCH). Sockets cannot be in a tar and are left out, as tar(1) does.
    Raises Failed where a file changes its length while it is read.
    """
    walk = _Walk(clamp)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if root:
            yield header(walk.entry("./", os.fstat(fd), f"/proc/self/fd/{fd}/."))
        yield from walk.directory(fd, "")
    finally:
        os.close(fd)
    yield END


def pack_named(parent: int, name: str) -> Iterator[bytes]:
    """Yield the tar of what the directory descriptor `parent` holds as `name`, and all below it."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    yield from _Walk(None)._node(parent, "", name, status)
    yield END


def pack_content(directory: int, prefix: str = "./") -> Iterator[bytes]:
    """Yield the tar of a directory descriptor's content, its names after `prefix`."""
    walk = _Walk(None)
    if prefix:
        yield header(walk.entry(prefix, os.fstat(directory), f"/proc/self/fd/{directory}/."))
    yield from walk.directory(directory, prefix)
    yield END


class _Walk:
    def __init__(self, clamp: int | None) -> None:
        self._clamp = clamp
        self._first: dict[tuple[int, int], str] = {}  # inode -> the name it came by first

    def directory(self, fd: int, prefix: str) -> Iterator[bytes]:
        if _is_opaque(fd):
            yield header(Entry(prefix + OPAQUE))
        nodes = []
        with os.scandir(fd) as listing:
            for item in listing:
                status = item.stat(follow_symlinks=False)
                nodes.append((not _is_whiteout(status), os.fsencode(item.name), item.name, status))
        for _, _, name, status in sorted(nodes, key=lambda node: node[:2]):
            yield from self._node(fd, prefix, name, status)

    def _node(self, parent: int, prefix: str, name: str, status: os.stat_result) -> Iterator[bytes]:
        path = prefix + name
        if _is_whiteout(status):
            yield header(Entry(prefix + WHITEOUT + name, mtime=self._mtime(status)))
            return
        if stat.S_ISSOCK(status.st_mode):
            return
        handle = f"/proc/self/fd/{parent}/{name}"
        if stat.S_ISDIR(status.st_mode):
            yield header(self.entry(path + "/", status, handle))
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=parent)
            try:
                yield from self.directory(fd, path + "/")
            finally:
                os.close(fd)
            return
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                yield header(self.entry(path, status, handle, hardlink=first))
                return
        entry = self.entry(path, status, handle)
        yield header(entry)
        if entry.kind is Kind.FILE:
            yield from _content(parent, name, entry)

    def entry(self, path: str, status: os.stat_result, handle: str, hardlink: str = "") -> Entry:
        """The entry of one file; `handle` is a path to it that no one can redirect."""
        kind = Kind.HARDLINK if hardlink else _KINDS[stat.S_IFMT(status.st_mode)]
        device = (0, 0)
        if kind in (Kind.CHAR, Kind.BLOCK):
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
        return Entry(
            name=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if kind is Kind.FILE else 0,
            mtime=self._mtime(status),
            linkname=hardlink or (os.readlink(handle) if kind is Kind.SYMLINK else ""),
            device=device,
            xattrs={} if hardlink else _xattrs(handle),
        )

    def _mtime(self, status: os.stat_result) -> int:
        seconds = status.st_mtime_ns // _SECOND
        return (seconds if self._clamp is None else min(seconds, self._clamp)) * _SECOND


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    return OPAQUE_XATTR in os.listxattr(fd) and os.getxattr(fd, OPAQUE_XATTR) == b"y"


def _xattrs(handle: str) -> dict[str, bytes]:
    names = os.listxattr(handle, follow_symlinks=False)
    return {
        name: os.getxattr(handle, name, follow_symlinks=False)
        for name in names
        if not name.startswith(OVERLAY_XATTRS) and name not in HOST_XATTRS
    }


def _content(parent: int, name: str, entry: Entry) -> Iterator[bytes]:
    # O_NONBLOCK: what was a file may be a FIFO by now, where a container still writes.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=parent)
    try:
        left = entry.size
        while left:
            piece = os.read(fd, min(left, _PIECE))
            if not piece:
                raise Failed(f"cannot pack {entry.name!r}: it became shorter while it was read")
            left -= len(piece)
            yield piece
    finally:
        os.close(fd)
    if entry.size % 512:
        yield padding(entry.size)
