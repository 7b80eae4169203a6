"""The lab's own cgroups: `orchestra-lab-<lab>/<host>` in every hierarchy the machine has.

A hierarchy is one mounted v1 controller set or the v2 tree; a machine may have both. Everything a
host runs is in its cgroup of each hierarchy, so the lab can always be found and ended there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from attrs import frozen

TOP = "/sys/fs/cgroup"


@frozen
class Hierarchy:
    """`directory` is relative to /sys/fs/cgroup, "" on a machine with v2 only."""

    directory: str
    kind: str  # "cgroup" or "cgroup2"
    options: str  # the mount's data: "cpu,cpuacct", "name=systemd", "" for v2

    @property
    def path(self) -> str:
        return os.path.join(TOP, self.directory).rstrip("/")


def hierarchies(mountinfo: str) -> tuple[Hierarchy, ...]:
    """Read the text of /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        target = left.split(" ")[4]
        if kind not in ("cgroup", "cgroup2") or not (target + "/").startswith(TOP + "/"):
            continue
        words = [w for w in options.split(",") if kind == "cgroup" and w not in ("rw", "ro")]
        words = [w for w in words if not w.startswith("release_agent=")]
        words = [w for w in words if w not in ("xattr", "clone_children", "noprefix")]
        if "name=systemd" in words:
            words = ["none", *words]
        directory = target[len(TOP) :].strip("/")
        found[directory] = Hierarchy(directory, kind, ",".join(words))
    return tuple(found.values())


def of_this_machine() -> tuple[Hierarchy, ...]:
    with open("/proc/self/mountinfo") as file:
        return hierarchies(file.read())


def links() -> dict[str, str]:
    """Names that lead to a hierarchy, as in `cpu -> cpu,cpuacct`."""
    found = {}
    for entry in os.scandir(TOP):
        if entry.is_symlink():
            found[entry.name] = os.readlink(entry.path)
    return found


def make(hierarchy: Hierarchy, lab: str, host: str) -> str:
    """Make the host's cgroup and return its directory."""
    path = hierarchy.path
    for name in (f"orchestra-lab-{lab}", host):
        parent, path = path, f"{path}/{name}"
        if hierarchy.kind == "cgroup2":
            pass_on_controllers(parent)
        os.makedirs(path, exist_ok=True)
        if "cpuset" in hierarchy.options.split(","):
            # A v1 cpuset starts empty and takes no process until it has both (cpuset(7)).
            for file in ("cpuset.cpus", "cpuset.mems"):
                copy(f"{parent}/{file}", f"{path}/{file}")
    return path


def copy(source: str, target: str) -> None:
    with open(source) as read, open(target, "w") as write:
        write.write(read.read())


def pass_on_controllers(parent: str) -> None:
    with open(f"{parent}/cgroup.controllers") as file:
        wanted = file.read().split()
    with open(f"{parent}/cgroup.subtree_control", "r+") as file:
        lacking = set(wanted) - set(file.read().split())
        if lacking:
            file.write(" ".join(f"+{c}" for c in sorted(lacking)))


def top_directories(lab: str) -> list[str]:
    paths = [f"{h.path}/orchestra-lab-{lab}" for h in of_this_machine()]
    return [p for p in paths if os.path.isdir(p)]


def pids(directory: str) -> Iterator[int]:
    """Processes in a cgroup and below it, in the caller's pid namespace."""
    for path, _, _ in os.walk(directory):
        try:
            with open(f"{path}/cgroup.procs") as file:
                lines = file.read().split()
        except FileNotFoundError:
            continue  # removed while we walked
        yield from (int(line) for line in lines if line != "0")


def remove(directory: str, patience: float = 5.0) -> None:
    """Remove a cgroup and everything below it; an exiting process may keep it busy a moment.

    OSError (EBUSY) where it is still busy after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while os.path.isdir(directory):
        try:
            for path, _, _ in os.walk(directory, topdown=False):
                os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
