"""Fill an empty volume from what the image has at its target, by file descriptors only.

Runs in the container's child before the volume is mounted: nothing is followed, nothing leaves the
image's directory, and owner, mode, times, extended attributes and hard links are kept. A lock on
the volume makes two first starts take turns. Stdlib only.
"""

from __future__ import annotations

import fcntl
import os
import stat

_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


def copy_up(source: int, volume: int) -> None:
    """Copy the contents of the directory `source` (O_PATH fd) into `volume` if that is empty."""
    origin = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    target = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=volume)
    try:
        fcntl.flock(target, fcntl.LOCK_EX)
        if not os.listdir(target):
            _copy_tree(origin, target, {})
            _copy_attributes(origin, target, os.fstat(origin))
    finally:
        os.close(origin)
        os.close(target)


def _copy_tree(origin: int, target: int, links: dict[int, tuple[int, str]]) -> None:
    for name in os.listdir(origin):
        info = os.stat(name, dir_fd=origin, follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=origin)
            there = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=target)
            try:
                _copy_tree(below, there, {})
                _copy_attributes(below, there, info)
            finally:
                os.close(below)
                os.close(there)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif info.st_nlink > 1 and info.st_ino in links:
            os.link(links[info.st_ino][1], name, src_dir_fd=target, dst_dir_fd=target)
        elif kind == stat.S_IFREG:
            _copy_file(origin, target, name, info)
            links[info.st_ino] = (target, name)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)


def _copy_file(origin: int, target: int, name: str, info: os.stat_result) -> None:
    reader = os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=origin)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
        writer = os.open(name, flags, 0o600, dir_fd=target)
        try:
            while os.copy_file_range(reader, writer, 1 << 30):
                pass
            _copy_attributes(reader, writer, info)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_attributes(origin: int, target: int, info: os.stat_result) -> None:
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(origin):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(origin, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
