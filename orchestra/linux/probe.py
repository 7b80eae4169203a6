"""What a host lacks to run containers, each with its remedy; empty where it has everything.

Features are looked at by using them or by what the kernel says of itself, not by distribution.
Cheap (some ms, nothing is left behind): the agent puts the answer into its facts at every start.
"""

from __future__ import annotations

import os

from orchestra.linux.capabilities import bounding, mask
from orchestra.linux.cgroups import ROOT, Hierarchy, find_hierarchy
from orchestra.linux.seccomp import running_kernel
from orchestra.linux.syscall_numbers import ARCHITECTURES

OLDEST_KERNEL = (5, 14)  # mount_setattr 5.12, cgroup.kill 5.14
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_NEEDED_CAPS = ("SYS_ADMIN", "NET_ADMIN", "MKNOD", "CHOWN", "DAC_OVERRIDE", "SETUID", "SETGID")
_OVERLAYFS = "overlay"


def missing(state: str = "/") -> list[str]:
    """Sentences "what: remedy". `state` is where layers will lie: an upper directory must work."""
    found = []
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        found.append(f"machine {machine} is not supported: use x86_64 or aarch64")
    if running_kernel() < OLDEST_KERNEL:
        wanted = ".".join(map(str, OLDEST_KERNEL))
        found.append(f"kernel {os.uname().release} is too old: boot {wanted} or newer")
    if lacking := [c for c in _NEEDED_CAPS if not bounding() & mask([c])]:
        found.append(f"capability {', '.join(lacking)} is missing: run as root of the host itself")
    for name in _NAMESPACES:
        if not os.path.exists(f"/proc/self/ns/{name}"):
            found.append(
                f"the kernel has no {name} namespaces: use one built with CONFIG_NAMESPACES"
            )
    if _OVERLAYFS not in _file_systems():
        found.append("the overlay file system is missing: run `modprobe overlay`")
    elif _kind_of(state) in ("overlay", "nfs", "nfs4"):
        found.append(f"{state} lies on {_kind_of(state)}: put the state directory on a local disk")
    if not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        found.append("the kernel has no seccomp filters: use one built with CONFIG_SECCOMP_FILTER")
    return found + _missing_controllers()


def _missing_controllers() -> list[str]:
    try:
        hierarchy = find_hierarchy()
    except FileNotFoundError:
        return [f"no cgroups are mounted: run `mount -t cgroup2 none {ROOT}`"]
    return [
        f"the {name} cgroup controller is missing: {_remedy(name, hierarchy)}"
        for name in _wanted(hierarchy)
        if name not in hierarchy.controllers
    ]


def _wanted(hierarchy: Hierarchy) -> tuple[str, ...]:
    if hierarchy.version == 2:
        return "cpu", "memory", "pids"
    return "cpu", "cpuacct", "memory", "pids", "devices", "freezer"


def _remedy(name: str, hierarchy: Hierarchy) -> str:
    if name == "memory":
        return "boot with cgroup_enable=memory"
    if hierarchy.version == 1:
        return f"run `mount -t cgroup -o {name} {name} {ROOT}/{name}`"
    return f"boot a kernel that has it, without cgroup_disable={name}"


def _file_systems() -> set[str]:
    with open("/proc/filesystems") as file:
        return {line.split()[-1] for line in file}


def _kind_of(path: str) -> str:
    """Type of the file system that `path`, or its nearest existing parent, lies on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return ""
