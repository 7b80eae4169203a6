"""Copying files out of a container and into it, as tar streams (`docker cp`).

Works on running and on resting containers: both are a descriptor of the root (`runtime.files`),
beneath which every path is opened. Where a resting container mounts a volume or a host directory,
paths below that target lead there. Everything here blocks and runs in a thread.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence

from attrs import frozen

from orchestra.api.engine import PathStat
from orchestra.image.pack import pack_content, pack_named
from orchestra.image.tar import Entry, Kind, TarReader
from orchestra.model.errors import Forbidden, Invalid, NotFound
from orchestra.runtime.files import make_directory, open_beneath
from orchestra.runtime.users import UnknownUser, resolve

_NODES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_HANDLE = os.O_PATH | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_STEERING = "trusted.overlay."  # attributes that would change what the overlay shows


@frozen
class Part:
    """A directory of the host that a resting container mounts at `target`."""

    target: str
    root: int
    read_only: bool


@frozen
class View:
    """A container's files: its root, and what else is mounted in it (longest target first)."""

    name: str  # the container's, for errors
    root: int
    parts: Sequence[Part] = ()
    read_only: bool = False

    def place(self, path: str) -> tuple[int, str, bool]:
        """(root, path in it, whether it is read-only) of a normalised absolute path."""
        for part in self.parts:
            if path == part.target or path.startswith(part.target + "/"):
                return part.root, path.removeprefix(part.target) or "/", part.read_only
        return self.root, path, self.read_only

    def close(self) -> None:
        for fd in (self.root, *(part.root for part in self.parts)):
            os.close(fd)


def _normal(path: str) -> str:
    """An absolute path without empty parts and "."; ".." is left to the kernel to confine."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _missing(view: View, path: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {view.name}")


def _open(view: View, path: str, flags: int) -> int:
    root, inner, _ = view.place(_normal(path))
    try:
        return open_beneath(root, inner, flags)
    except FileNotFoundError:
        raise _missing(view, path) from None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise Invalid(
                f"cannot open {path} in container {view.name}: {error.strerror}"
            ) from None
        raise


def path_stat(view: View, path: str) -> PathStat:
    """What `path` is, without following it at its end. NotFound, Invalid."""
    fd = _open(view, path, _HANDLE)
    try:
        info = os.fstat(fd)
        is_directory = stat.S_ISDIR(info.st_mode)
        if path.rstrip(".").endswith("/") and not is_directory and _normal(path) != "/":
            raise Invalid(f"extraction point is not a directory: {path}")
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
    finally:
        os.close(fd)
    if target:
        target = _normal(target if target.startswith("/") else f"{_parent(path)}/{target}")
        target = os.path.normpath(target)
    name = _normal(path).rpartition("/")[2] or "/"
    return PathStat(name, info.st_size, info.st_mode, info.st_mtime, target)


def _parent(path: str) -> str:
    return _normal(path).rpartition("/")[0]


def read_archive(view: View, path: str) -> Iterator[bytes]:
    """The tar of a file, or of a directory with its content; of "dir/." only the content."""
    name = _normal(path).rpartition("/")[2]
    content = not name or path.endswith("/.")
    fd = _open(view, path if content else _parent(path), _DIRECTORY)
    try:
        yield from pack_content(fd) if content else pack_named(fd, name)
    finally:
        os.close(fd)


def write_archive(
    view: View,
    path: str,
    chunks: Iterator[bytes],
    *,
    keep_kinds: bool,
    owner: tuple[int, int] | None,
) -> None:
    """Unpack a tar at the directory `path`. `keep_kinds`: no directory becomes a file nor the
    reverse; `owner`: of everything, else the tar's own. Raises NotFound, Invalid, Forbidden."""
    fd = _open(view, path, os.O_PATH)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise Invalid(f"extraction point is not a directory: {path}")
    finally:
        os.close(fd)
    late: list[tuple[int, str, int]] = []  # directories get their times when they are full
    reader = TarReader(chunks)
    try:
        for entry in reader:
            _write(view, f"{path}/{entry.name}", entry, reader, keep_kinds, owner, late)
        for root, inner, mtime in late:
            made = open_beneath(root, inner, _DIRECTORY)
            os.utime(made, ns=(mtime, mtime))
            os.close(made)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise Forbidden(f"{path} in container {view.name} is read-only") from None
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST):
            raise Invalid(f"cannot write {error.filename or path}: {error.strerror}") from None
        raise


def user_of(view: View, user: str) -> tuple[int, int]:
    """Numbers of "user" or "user:group" by the container's own files. Invalid where unknown."""
    try:
        found = resolve(view.root, user, [])
    except UnknownUser as error:
        raise Invalid(str(error)) from None
    return found.uid, found.gid


def _write(
    view: View,
    path: str,
    entry: Entry,
    reader: TarReader,
    keep_kinds: bool,
    owner: tuple[int, int] | None,
    late: list[tuple[int, str, int]],
) -> None:
    full = _normal(path)
    if ".." in full.split("/"):
        raise Invalid(f"entry {entry.name!r:.300} leads up: it is refused")
    root, inner, read_only = view.place(full)
    if read_only:
        raise Forbidden(f"{full} in container {view.name} is read-only")
    above, _, name = inner.rpartition("/")
    if not name:
        return  # the extraction point itself, or a mount's own top
    parent = make_directory(root, above)
    try:
        _make_room(parent, name, entry, keep_kinds)
        uid, gid = owner or (entry.uid, entry.gid)
        if entry.kind is Kind.DIRECTORY:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                pass
            fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                _dress(fd, entry, uid, gid)
            finally:
                os.close(fd)
            late.append((root, inner, entry.mtime))
        elif entry.kind is Kind.FILE:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                _fill(fd, entry, reader)
                _dress(fd, entry, uid, gid)
                os.utime(fd, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(fd)
        elif entry.kind is Kind.HARDLINK:
            _hardlink(view, full, entry, parent, name)
        else:
            if entry.kind is Kind.SYMLINK:
                os.symlink(entry.linkname, name, dir_fd=parent)
            else:
                os.mknod(
                    name, entry.mode | _NODES[entry.kind], os.makedev(*entry.device), dir_fd=parent
                )
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def _make_room(parent: int, name: str, entry: Entry, keep_kinds: bool) -> None:
    """Remove what has the name, unless both are directories."""
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    is_directory = stat.S_ISDIR(there.st_mode)
    if is_directory and entry.kind is Kind.DIRECTORY:
        return
    if keep_kinds and is_directory != (entry.kind is Kind.DIRECTORY):
        kinds = ("directory", "non-directory")
        old, new = kinds if is_directory else kinds[::-1]
        raise Invalid(f"cannot overwrite {old} {name!r} with {new} {entry.name!r:.300}")
    if is_directory:
        shutil.rmtree(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def _fill(fd: int, entry: Entry, reader: TarReader) -> None:
    if entry.extents is not None:
        raise Invalid(f"entry {entry.name!r:.300} is sparse: make the tar without -S")
    for piece in reader.data():
        while piece:
            piece = piece[os.write(fd, piece) :]


def _dress(fd: int, entry: Entry, uid: int, gid: int) -> None:
    os.fchown(fd, uid, gid)
    for key, value in entry.xattrs.items():
        if key.startswith(_STEERING):
            raise Invalid(f"entry {entry.name!r:.300} carries {key}, which steers overlayfs")
        os.setxattr(fd, key, value)
    os.fchmod(fd, entry.mode)  # after chown, which clears set-id bits


def _hardlink(view: View, full: str, entry: Entry, parent: int, name: str) -> None:
    """To a file of the same root; its name in the tar is relative to where the tar is unpacked."""
    base = full[: len(full) - len(_normal(entry.name))]
    root, inner, _ = view.place(_normal(f"{base}/{entry.linkname}"))
    target = open_beneath(root, inner, _HANDLE)
    try:
        os.link(f"/proc/self/fd/{target}", name, dst_dir_fd=parent, follow_symlinks=True)
    finally:
        os.close(target)
