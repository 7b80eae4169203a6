"""The mount API by file descriptors: make, clone, change and attach mounts without path walks.

Stdlib only (the shim's children run it). A mount made with `new_filesystem` or `clone` hangs
nowhere until `attach` puts it onto a target, which is itself an fd: nothing can be swapped in
between. Kernel >= 5.12. See fsopen(2), open_tree(2), move_mount(2), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from orchestra.linux.syscalls import (
    AT_EMPTY_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    mount,
    openat2,
    syscall,
)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_RECURSIVE = 1, os.O_CLOEXEC, 0x8000
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40

PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
}


def new_filesystem(kind: str, options: Mapping[str, str | None], attributes: int = 0) -> int:
    """Make a file system of `kind` as a detached mount; its fd. An option of None is a flag.

    OSError carries the kernel's own message where it left one in the context.
    """
    context = syscall("fsopen", kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else value.encode()
            syscall("fsconfig", context, command, key.encode(), text, 0)
        syscall("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall("fsmount", context, _FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        try:
            told = os.read(context, 1024).decode(errors="replace").strip()
        except OSError:  # ENODATA: the kernel has nothing to add
            told = os.strerror(error.errno or 0)
        raise OSError(error.errno, told, f"mount {kind}") from None
    finally:
        os.close(context)


def clone(directory: int, path: str = "", recursive: bool = False) -> int:
    """A detached bind mount of `path` under the fd `directory` ("" = the fd itself); its fd."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall("open_tree", directory, os.fsencode(path), flags)


def attach(tree: int, target: int) -> None:
    """Put the detached mount `tree` onto what the fd `target` refers to."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    syscall("move_mount", tree, b"", target, b"", flags)


def set_attributes(tree: int, set_: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* and propagation of the mount `tree` (and of all below it)."""
    attributes = struct.pack("=QQQQ", set_, 0, propagation, 0)
    flags = AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", tree, b"", flags, attributes, 32)


def overlay(target: str, lowers: list[int], upper: int, work: int) -> None:
    """Mount an overlay of directory fds onto the path `target`; `lowers` topmost first.

    The fds are named as /proc/self/fd/N: 127 layers fit mount(2)'s page of options whatever their
    paths look like, no character needs escaping, host paths do not show in the container's
    /proc/mounts, and kernels without `lowerdir+` (before 6.5) need no second way. The options make
    the upper directory exactly the layer (Documentation/filesystems/overlayfs.rst).
    """
    below = ":".join(f"/proc/self/fd/{fd}" for fd in lowers)
    options = (
        f"lowerdir={below},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work},"
        "redirect_dir=off,metacopy=off,index=off"
    )
    mount("overlay", target, "overlay", 0, options)


def make_directory(root: int, path: str, mode: int = 0o755) -> int:
    """Open the directory `path` inside `root`, making missing parts; an O_PATH fd.

    Links are followed as a process chrooted to `root` would follow them and never out of it;
    /proc's magic links are refused. ENOTDIR where a part is no directory.
    """
    current = os.dup(root)
    try:
        for depth in range(1, len(parts := components(path)) + 1):
            prefix = "/".join(parts[:depth])
            try:
                following = _open_path(root, prefix)
            except FileNotFoundError:
                _make_missing(current, parts[depth - 1], prefix, mode)
                following = _open_path(root, prefix)
            os.close(current)
            current = following
        if not _is_directory(current):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return current
    except BaseException:
        os.close(current)
        raise


def make_file(root: int, path: str, mode: int = 0o644) -> int:
    """Open `path` inside `root` as a place to mount a file on, making it empty if missing."""
    parts = components(path)
    try:
        return _open_path(root, "/".join(parts))
    except FileNotFoundError:
        pass
    parent = make_directory(root, "/".join(parts[:-1]))
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY
        os.close(os.open(parts[-1], flags, mode, dir_fd=parent))
        return _open_path(root, "/".join(parts))
    finally:
        os.close(parent)


def open_plain(root: int, name: str) -> int:
    """Open the directory `name` of `root` as O_PATH, making it; refuse a symbolic link (ELOOP)."""
    rules = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return openat2(root, name, flags, rules)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=root)
        return openat2(root, name, flags, rules)


def components(path: str) -> list[str]:
    """The parts of a path without "." and empty ones; ".." is kept for the kernel to confine."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _open_path(root: int, path: str) -> int:
    return openat2(root, path or ".", os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def _make_missing(parent: int, name: str, prefix: str, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        # A link that points to nothing: where it leads is not ours to make.
        raise FileNotFoundError(errno.ENOENT, "a dangling symbolic link", prefix) from None


def _is_directory(fd: int) -> bool:
    return os.fstat(fd).st_mode & 0o170000 == 0o040000
