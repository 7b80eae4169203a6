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
            _Copy(target).tree(origin, target, "")
            _attributes(origin, target, os.fstat(origin))
    finally:
        os.close(origin)
        os.close(target)


class _Copy:
    """One copy; remembers by inode where it put files that have several names."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.names: dict[int, str] = {}

    def tree(self, origin: int, target: int, prefix: str) -> None:
        for name in os.listdir(origin):
            self.entry(origin, target, name, f"{prefix}{name}")

    def entry(self, origin: int, target: int, name: str, path: str) -> None:
        info = os.stat(name, dir_fd=origin, follow_symlinks=False)
        if info.st_ino in self.names:
            os.link(self.names[info.st_ino], name, src_dir_fd=self.top, dst_dir_fd=target)
            return
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=origin)
            there = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=target)
            try:
                self.tree(below, there, f"{path}/")
                _attributes(below, there, info)
            finally:
                os.close(below)
                os.close(there)
            return
        if stat.S_ISREG(info.st_mode):
            _file(origin, target, name, info)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
        if info.st_nlink > 1:
            self.names[info.st_ino] = path


def _file(origin: int, target: int, name: str, info: os.stat_result) -> None:
    reader = os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=origin)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
        writer = os.open(name, flags, 0o600, dir_fd=target)
        try:
            while os.sendfile(writer, reader, None, 1 << 30):
                pass
            _attributes(reader, writer, info)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _attributes(origin: int, target: int, info: os.stat_result) -> None:
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(origin):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(origin, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
