"""A layer's tar into a directory that overlayfs can use, whatever the tar says.

The law: nothing outside the directory is ever touched. Every path is walked component by component
from a descriptor of the root with O_NOFOLLOW, for names, hard-link targets and whiteouts alike; a
path that goes through a symbolic link, up, or over the root itself is refused (these are how tar
extractors of others were escaped from; no filter of tarfile is relied on). Attributes are set on
descriptors of what was just made. Rules of what replaces what: image-spec layer.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence

from orchestra.image.layer import (
    AUFS,
    HOST_XATTRS,
    OPAQUE,
    OPAQUE_XATTR,
    OVERLAY_XATTRS,
    WHITEOUT,
    Limits,
)
from orchestra.image.tar import Entry, Kind, TarReader
from orchestra.model.errors import Invalid, Unavailable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


def unpack(
    chunks: Iterator[bytes],
    directory: str,
    *,
    lowers: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> int:
    """Unpack an uncompressed tar into the empty `directory`; the bytes of file content written.

    `lowers` are the directories of the layers below, topmost first: a directory that the tar uses
    but does not describe takes its attributes from there. Raises Invalid for a tar that is damaged,
    hostile or beyond `limits`, Unavailable where the file system cannot hold what it describes, and
    lets OSError ENOSPC and EDQUOT through. Then `directory` is left for the caller to remove.
    """
    reader = TarReader(chunks)
    with _Tree(directory, lowers, limits) as tree:
        written = 0
        for count, entry in enumerate(reader, 1):
            if count > limits.entries:
                raise Invalid(f"the layer has more than {limits.entries} entries")
            written += entry.size
            if written > limits.bytes:
                raise Invalid(f"the layer holds more than {limits.bytes} bytes")
            try:
                tree.add(entry, reader)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise _translated(entry, error) from None
    return written


def _translated(entry: Entry, error: OSError) -> Exception:
    what = f"cannot unpack {entry.name!r:.300}"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return Invalid(f"{what}: its path goes through something that is no directory")
    if error.errno == errno.ENOENT and entry.kind is Kind.HARDLINK:
        return Invalid(f"{what}: it links to {entry.linkname!r:.300}, which is not in this layer")
    if error.errno == errno.ENAMETOOLONG:
        return Invalid(f"{what}: the name is too long")
    if error.errno == errno.ENOTSUP and entry.xattrs:
        return Unavailable(
            f"{what}: the file system takes none of {', '.join(entry.xattrs)}; "
            "move the image store to ext4, xfs or btrfs"
        )
    return Unavailable(f"{what}: {error.strerror}")


class _Tree:
    """The directory being filled. Holds descriptors of the directories on the way to the last
    entry: consecutive entries mostly share them."""

    def __init__(self, directory: str, lowers: Sequence[str], limits: Limits) -> None:
        self._root = directory
        self._lowers = lowers
        self._limits = limits
        self._path: list[str] = []
        self._fds: list[int] = []
        self._mtimes: dict[tuple[str, ...], int] = {}  # of directories, set when they are left
        self._whiteouts: set[tuple[str, ...]] = set()  # names deleted from lower layers

    def __enter__(self) -> _Tree:
        self._fds = [os.open(self._root, _DIRECTORY)]
        os.fchmod(self._fds[0], 0o755)
        return self

    def __exit__(self, *failure: object) -> None:
        while self._fds:
            self._leave()

    def _leave(self) -> None:
        fd = self._fds.pop()
        try:
            mtime = self._mtimes.get(tuple(self._path))
            if mtime is not None:
                os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)
        if self._path:
            self._path.pop()

    def _enter(self, parents: list[str]) -> int:
        """A descriptor of the directory `parents`, made where it is missing."""
        if parents == self._path:
            return self._fds[-1]
        shared = 0
        for ours, theirs in zip(self._path, parents):
            if ours != theirs:
                break
            shared += 1
        while len(self._path) > shared:
            self._leave()
        for name in parents[shared:]:
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=self._fds[-1])
            except FileNotFoundError:
                fd = self._imply(name)
            except NotADirectoryError:
                if not self._is_white(name):
                    raise
                os.unlink(name, dir_fd=self._fds[-1])
                fd = self._imply(name)
                os.setxattr(fd, OPAQUE_XATTR, b"y")
            self._path.append(name)
            self._fds.append(fd)
        return self._fds[-1]

    def _is_white(self, name: str) -> bool:
        """Whether `name` is here only as a whiteout of this layer."""
        there = os.stat(name, dir_fd=self._fds[-1], follow_symlinks=False)
        return (*self._path, name) in self._whiteouts and stat.S_ISCHR(there.st_mode)

    def _imply(self, name: str) -> int:
        """Make a directory that the tar uses but has not described."""
        os.mkdir(name, 0o755, dir_fd=self._fds[-1])
        fd = os.open(name, _DIRECTORY, dir_fd=self._fds[-1])
        path = (*self._path, name)
        below = None if path in self._whiteouts else _directory_below(self._lowers, path)
        if below is None:
            os.fchmod(fd, 0o755)
            self._mtimes[path] = 0
        else:
            os.fchown(fd, below.st_uid, below.st_gid)
            os.fchmod(fd, stat.S_IMODE(below.st_mode))
            self._mtimes[path] = below.st_mtime_ns
        return fd

    def add(self, entry: Entry, reader: TarReader) -> None:
        path = _components(entry.name, self._limits.depth)
        if not path:
            if entry.kind is not Kind.DIRECTORY:
                raise Invalid(f"entry {entry.name!r:.300} would replace the root directory")
            _attributes(self._fds[0], entry)
            self._mtimes[()] = entry.mtime
            return
        *parents, name = path
        parent = self._enter(parents)
        if name.startswith(WHITEOUT):
            self._white_out(parent, path, entry)
            return
        match entry.kind:
            case Kind.DIRECTORY:
                self._directory(parent, path, entry)
            case Kind.FILE:
                self._file(parent, path, entry, reader)
            case Kind.HARDLINK:
                self._hardlink(parent, path, entry)
            case Kind.SYMLINK:
                _replace(parent, name)
                os.symlink(entry.linkname, name, dir_fd=parent)
                _attributes_of_link(parent, name, entry)
            case Kind.CHAR | Kind.BLOCK | Kind.FIFO:
                _replace(parent, name)
                mode = _NODES[entry.kind] | 0o600
                os.mknod(name, mode, os.makedev(*entry.device), dir_fd=parent)
                _attributes_of_node(parent, name, entry)

    def _white_out(self, parent: int, path: tuple[str, ...], entry: Entry) -> None:
        name = path[-1]
        if name == OPAQUE:
            os.setxattr(parent, OPAQUE_XATTR, b"y")
            return
        if name.startswith(AUFS):
            return  # aufs' own files, in layers of old Docker engines; they mean nothing
        target = name[len(WHITEOUT) :]
        if target in ("", ".", ".."):
            raise Invalid(f"entry {entry.name!r:.300} is a whiteout of nothing")
        gone = (*path[:-1], target)
        self._whiteouts.add(gone)
        try:
            there = os.stat(target, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)
            os.utime(target, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
            return
        # Whiteouts hit lower layers only: what this layer itself brings stays, alone.
        if stat.S_ISDIR(there.st_mode):
            with _closing(os.open(target, _DIRECTORY, dir_fd=parent)) as kept:
                os.setxattr(kept, OPAQUE_XATTR, b"y")

    def _directory(self, parent: int, path: tuple[str, ...], entry: Entry) -> None:
        name = path[-1]
        hides = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                _replace(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
                hides = path in self._whiteouts
        with _closing(os.open(name, _DIRECTORY, dir_fd=parent)) as made:
            _attributes(made, entry)
            if hides:
                os.setxattr(made, OPAQUE_XATTR, b"y")
            os.utime(made, ns=(entry.mtime, entry.mtime))
        self._mtimes[path] = entry.mtime

    def _file(self, parent: int, path: tuple[str, ...], entry: Entry, reader: TarReader) -> None:
        name = path[-1]
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            _replace(parent, name)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.extents is not None:
                _write_sparse(fd, entry, reader)
            else:
                for piece in reader.data():
                    while piece:
                        piece = piece[os.write(fd, piece) :]
            _attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _hardlink(self, parent: int, path: tuple[str, ...], entry: Entry) -> None:
        target = _components(entry.linkname, self._limits.depth)
        if target == path:
            return
        if not target:
            raise Invalid(f"entry {entry.name!r:.300} is a hard link to the root directory")
        with _closing(_walk(self._fds[0], target[:-1])) as there:
            _replace(parent, path[-1])
            try:
                os.link(
                    target[-1],
                    path[-1],
                    src_dir_fd=there,
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
            except PermissionError:
                raise Invalid(
                    f"entry {entry.name!r:.300} is a hard link to {entry.linkname!r:.300}, "
                    "which cannot be linked to"
                ) from None


def _replace(parent: int, name: str) -> None:
    """Remove what an earlier entry of this layer, or a whiteout, put there."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=parent)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _components(name: str, depth: int) -> tuple[str, ...]:
    """The path's parts beneath the root; a leading slash means the root. Refuses to go up."""
    parts = tuple([part for part in name.split("/") if part and part != "."])
    if ".." in parts:
        raise Invalid(f"entry {name!r:.300} leaves the layer with '..'; refused")
    if len(parts) > depth:
        raise Invalid(f"entry {name!r:.80}... is deeper than {depth} directories")
    return parts


def _walk(root: int, parts: Sequence[str]) -> int:
    """A descriptor of an existing directory below `root`, through no symbolic link."""
    fd = os.dup(root)
    for part in parts:
        try:
            deeper = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _directory_below(lowers: Sequence[str], path: Sequence[str]) -> os.stat_result | None:
    """The attributes of the directory that shows at `path` in the layers below, if one does."""
    for lower in lowers:
        with _closing(os.open(lower, _DIRECTORY)) as root:
            try:
                fd = _walk(root, path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    return None
                raise
            with _closing(fd):
                return os.fstat(fd)
    return None


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    content = reader.data()
    piece = memoryview(b"")
    for offset, length in entry.extents or ():
        os.lseek(fd, offset, os.SEEK_SET)
        while length:
            piece = piece or next(content)
            done = os.write(fd, piece[:length])
            piece = piece[done:]
            length -= done
    os.ftruncate(fd, entry.size)


def _checked_xattrs(entry: Entry) -> Iterator[tuple[str, bytes]]:
    for name, value in entry.xattrs.items():
        if name.startswith(OVERLAY_XATTRS):
            raise Invalid(f"entry {entry.name!r:.300} carries {name}, which steers overlayfs")
        if name not in HOST_XATTRS:
            yield name, value


def _attributes(fd: int, entry: Entry) -> None:
    """Owner, xattrs, mode: in this order, since chown clears capabilities and set-id bits."""
    os.fchown(fd, entry.uid, entry.gid)
    for name, value in _checked_xattrs(entry):
        os.setxattr(fd, name, value)
    os.fchmod(fd, entry.mode)


def _attributes_of_link(parent: int, name: str, entry: Entry) -> None:
    os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    for key, value in _checked_xattrs(entry):
        os.setxattr(f"/proc/self/fd/{parent}/{name}", key, value, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _attributes_of_node(parent: int, name: str, entry: Entry) -> None:
    """Of a device or FIFO just made: a path is safe here, since nobody else can write below."""
    _attributes_of_link(parent, name, entry)
    os.chmod(name, entry.mode, dir_fd=parent)
