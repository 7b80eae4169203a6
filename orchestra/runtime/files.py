"""A container's files from outside: its root as a descriptor, and what is opened beneath it.

Law: nothing of the container is run and no path of it is walked by name alone. Every path is
resolved by openat2(2) inside the root as a process of the container would see it, links
included, never out of it and never through /proc's magic links. A running container's root is
seen through its first process; one that does not run is put together for the moment, by a thread
in a mount namespace of its own: the host sees nothing of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from orchestra.linux import mounts
from orchestra.linux.syscalls import (
    CLONE_NEWNS,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount,
    openat2,
    unshare,
)

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def running_root(pid: int) -> int:
    """The root of a container whose first process is `pid`, its mounts included.

    Raises FileNotFoundError or ProcessLookupError where that process is gone.
    """
    return os.open(f"/proc/{pid}/root", _PLACE)


def resting_root(lowers: Sequence[str], directory: str, scratch: str) -> int:
    """The root of a container that does not run: its layers and what it wrote itself.

    `lowers` topmost first, `directory` its state, `scratch` an empty directory to mount on. The
    file system lives as long as the descriptor. Raises OSError.
    """
    found: list[int] = []
    failed: list[OSError] = []

    def assemble() -> None:
        opened: list[int] = []
        try:
            unshare(CLONE_NEWNS)  # of this thread alone, which ends right after
            mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
            for path in (*lowers, f"{directory}/upper", f"{directory}/work"):
                opened.append(os.open(path, _PLACE))
            *below, upper, work = opened
            mounts.overlay(scratch, below, upper, work)
            found.append(os.open(scratch, _PLACE))
        except OSError as error:
            failed.append(error)
        finally:
            for fd in opened:
                os.close(fd)

    thread = threading.Thread(target=assemble, name="resting-root")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def open_beneath(root: int, path: str, flags: int) -> int:
    """Open `path` inside `root`; links are followed inside it. Raises OSError."""
    return openat2(root, path.strip("/") or ".", flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


make_directory = mounts.make_directory
