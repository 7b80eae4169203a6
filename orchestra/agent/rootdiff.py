"""What a container changed in its image: its upper layer, read against the layers below.

Sources: the kernel's overlayfs.rst: a whiteout is a character device 0:0, an opaque directory has
the attribute trusted.overlay.opaque. What we made ourselves to mount something on is no change.
Runs in a thread: a container may have written a great many files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence

from orchestra.api.engine import Change

OWN = frozenset(
    ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev", "/proc", "/sys", "/dev/console")
)


def changes(
    upper: str, lowers: Sequence[str], mounted: Collection[str]
) -> list[tuple[str, Change]]:
    """Return the changed paths in order, each directory before what is in it."""
    return list(_below(upper, lowers, "", OWN | {m.rstrip("/") for m in mounted}))


def _below(
    upper: str, lowers: Sequence[str], at: str, own: Collection[str]
) -> Iterator[tuple[str, Change]]:
    for name in sorted(os.listdir(f"{upper}{at}")):
        path = f"{at}/{name}"
        info = os.lstat(f"{upper}{path}")
        known = any(os.path.lexists(f"{lower}{path}") for lower in lowers)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if known:
                yield path, Change.DELETED
            continue
        inner: list[tuple[str, Change]] = []
        if stat.S_ISDIR(info.st_mode):
            is_opaque = _is_opaque(f"{upper}{path}")
            inner = list(_below(upper, () if is_opaque else lowers, path, own))
            if is_opaque and known:
                there = set(os.listdir(f"{upper}{path}"))
                inner += [(f"{path}/{n}", Change.DELETED) for n in _names(lowers, path) - there]
            if not inner and os.listdir(f"{upper}{path}"):
                continue  # it is there for what is mounted in it
        if path in own and not inner:
            continue
        yield path, Change.MODIFIED if known else Change.ADDED
        yield from inner


def _is_opaque(directory: str) -> bool:
    try:
        return os.getxattr(directory, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def _names(lowers: Sequence[str], path: str) -> set[str]:
    found: set[str] = set()
    for lower in lowers:
        if os.path.isdir(f"{lower}{path}"):
            found |= set(os.listdir(f"{lower}{path}"))
    return found


def size_of(directory: str) -> int:
    """Return the bytes of the files below a directory, each counted once however often linked."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                info = os.lstat(f"{parent}/{name}")
            except FileNotFoundError:
                continue  # it is being written to
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_size
    return total
