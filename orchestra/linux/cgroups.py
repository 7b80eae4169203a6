"""Control groups v1, v2 and hybrid: create, limit, join, freeze, kill, read; one interface.

A `Hierarchy` says where the host has which controller; a `Group` is one container's place in all
of them. A host counts as v2 where /sys/fs/cgroup itself is cgroup2; a cgroup2 without controllers
beside v1 (hybrid) is left alone. Limits are mapped by pure functions (`settings_v1`,
`settings_v2`) to file contents. Sources: Documentation/admin-guide/cgroup-v1, cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping, Sequence

from attrs import frozen

from orchestra.linux.device_rules import ALLOWED_V1, attach_device_filter

ROOT = "/sys/fs/cgroup"
_V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
_V2 = ("cpuset", "cpu", "io", "memory", "pids")
_PERIOD = 100_000  # microseconds, the kernel's default


@frozen
class CgroupLimits:
    """What a group may use; None or "" leaves the kernel's default. Bytes, cores, microseconds."""

    memory: int | None = None
    memory_swap: int | None = None  # memory + swap; -1 unlimited
    memory_reservation: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpu_period: int | None = None
    cpu_quota: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None


@frozen
class Hierarchy:
    """Where this host has its controllers: v1 name -> mount point, or the one v2 mount point."""

    version: int
    mounts: Mapping[str, str]

    @property
    def controllers(self) -> tuple[str, ...]:
        return tuple(self.mounts)


@frozen
class CgroupStats:
    """One reading; nanoseconds and bytes. `memory_limit` 0 = none."""

    cpu_total: int = 0
    cpu_user: int = 0
    cpu_system: int = 0
    throttled_periods: int = 0
    memory_usage: int = 0
    memory_limit: int = 0
    memory_inactive_file: int = 0
    memory_details: Mapping[str, int] = {}
    pids: int = 0
    pids_limit: int = 0
    block_io: tuple[tuple[int, int, str, int], ...] = ()  # major, minor, "read"|"write", bytes


class LimitRefused(OSError):
    """The kernel did not take a limit; `filename` is the cgroup file."""


def find_hierarchy(root: str = ROOT) -> Hierarchy:
    """Look at what is mounted below `root`. Raises FileNotFoundError where there is nothing."""
    controllers = f"{root}/cgroup.controllers"
    if os.path.exists(controllers):
        return Hierarchy(2, {name: root for name in _read(controllers).split() if name in _V2})
    mounts = {n: f"{root}/{n}" for n in _V1 if os.path.isfile(f"{root}/{n}/cgroup.procs")}
    if not mounts:
        raise FileNotFoundError(errno.ENOENT, "no cgroup controllers are mounted", root)
    return Hierarchy(1, mounts)


# --- limits to file contents (pure) ----------------------------------------------------------


def settings_v1(limits: CgroupLimits) -> list[tuple[str, str, str]]:
    """(controller, file, content) in the order in which they must be written."""
    out: list[tuple[str, str, str]] = []

    def put(controller: str, file: str, value: int | str | None) -> None:
        if value not in (None, ""):
            out.append((controller, file, str(value)))

    put("memory", "memory.limit_in_bytes", limits.memory)
    if limits.memory is not None:
        put("memory", "memory.memsw.limit_in_bytes", _memory_and_swap(limits))
    put("memory", "memory.soft_limit_in_bytes", limits.memory_reservation)
    put("cpu", "cpu.shares", limits.cpu_shares)
    quota, period = _quota(limits)
    if quota is not None:
        put("cpu", "cpu.cfs_period_us", period)
        put("cpu", "cpu.cfs_quota_us", quota)
    put("cpuset", "cpuset.cpus", limits.cpuset_cpus)
    put("cpuset", "cpuset.mems", limits.cpuset_mems)
    put("pids", "pids.max", _unlimited(limits.pids))
    return out


def settings_v2(limits: CgroupLimits) -> list[tuple[str, str, str]]:
    """(controller, file, content) in the order in which they must be written."""
    out: list[tuple[str, str, str]] = []

    def put(controller: str, file: str, value: int | str | None) -> None:
        if value not in (None, ""):
            out.append((controller, file, str(value)))

    put("memory", "memory.max", limits.memory)
    if limits.memory is not None:
        both = _memory_and_swap(limits)
        put("memory", "memory.swap.max", "max" if both < 0 else both - limits.memory)
    put("memory", "memory.low", limits.memory_reservation)
    if limits.cpu_shares:
        put("cpu", "cpu.weight", weight_of_shares(limits.cpu_shares))
    quota, period = _quota(limits)
    if quota is not None:
        put("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period}")
    put("cpuset", "cpuset.cpus", limits.cpuset_cpus)
    put("cpuset", "cpuset.mems", limits.cpuset_mems)
    put("pids", "pids.max", _unlimited(limits.pids))
    return out


def weight_of_shares(shares: int) -> int:
    """cpu.shares (2..262144, 1024 = normal) as cpu.weight (1..10000, 100 = normal)."""
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def _memory_and_swap(limits: CgroupLimits) -> int:
    """Docker's rule: unsaid means twice the memory; ValueError where swap < 0 would follow."""
    memory = limits.memory or 0
    both = limits.memory_swap
    if both is None or both == 0:
        return memory * 2
    if 0 < both < memory:
        raise ValueError("memory_swap must not be less than memory")
    return both


def _quota(limits: CgroupLimits) -> tuple[int | None, int]:
    period = limits.cpu_period or _PERIOD
    if limits.cpus:
        return max(1000, round(limits.cpus * period)), period
    if limits.cpu_quota or limits.cpu_period:
        return limits.cpu_quota or -1, period
    return None, period


def _unlimited(pids: int | None) -> int | str | None:
    return None if not pids else "max" if pids < 0 else pids


# --- groups ----------------------------------------------------------------------------------


@frozen
class Group:
    """One place in the hierarchies: `path` below each mount point, without leading slash."""

    hierarchy: Hierarchy
    path: str

    def directories(self) -> list[str]:
        """Where it is in each distinct hierarchy."""
        return [f"{mount}/{self.path}" for mount in dict.fromkeys(self.hierarchy.mounts.values())]

    def create(self) -> None:
        """Make it and its parents, with controllers switched on for children (v2).

        cpuset of v1 starts empty and takes nobody: it inherits its parent's.
        """
        if self.hierarchy.version == 2:
            self._create_v2()
            return
        for controller, mount in self.hierarchy.mounts.items():
            directory = mount
            for part in self.path.split("/"):
                parent, directory = directory, f"{directory}/{part}"
                try:
                    os.mkdir(directory, 0o755)
                except FileExistsError:
                    continue
                if controller == "cpuset":
                    for name in ("cpuset.cpus", "cpuset.mems"):
                        _write(f"{directory}/{name}", _read(f"{parent}/{name}").strip())

    def _create_v2(self) -> None:
        (directory,) = set(self.hierarchy.mounts.values())
        for part in self.path.split("/"):
            wanted = set(self.hierarchy.controllers)
            on = set(_read(f"{directory}/cgroup.subtree_control").split())
            for controller in sorted(wanted - on):
                _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
            directory = f"{directory}/{part}"
            try:
                os.mkdir(directory, 0o755)
            except FileExistsError:
                pass

    def limit(self, limits: CgroupLimits) -> list[str]:
        """Write the limits. Swap accounting switched off in the kernel is told, not fatal.

        Returns warnings; raises LimitRefused naming the file.
        """
        warnings = []
        make = settings_v2 if self.hierarchy.version == 2 else settings_v1
        for controller, file, content in make(limits):
            mount = self.hierarchy.mounts.get(controller)
            if mount is None:
                raise LimitRefused(errno.ENOENT, f"no {controller} controller on this host", file)
            path = f"{mount}/{self.path}/{file}"
            if (".memsw." in file or ".swap." in file) and not os.path.exists(path):
                warnings.append("the kernel does not account swap: only memory is limited")
                continue
            try:
                _write(path, content)
            except OSError as error:
                raise LimitRefused(error.errno, f"{content!r}: {error.strerror}", file) from None
        return warnings

    def restrict_devices(self) -> None:
        """Allow the standard devices (and mknod of any), deny all others; LimitRefused."""
        if self.hierarchy.version == 2:
            attach_device_filter(self.directories()[0])
            return
        mount = self.hierarchy.mounts.get("devices")
        if mount is None:
            raise LimitRefused(errno.ENOENT, "no devices controller on this host", "devices.deny")
        _write(f"{mount}/{self.path}/devices.deny", "a")
        for rule in ALLOWED_V1:
            _write(f"{mount}/{self.path}/devices.allow", rule)

    def join(self, pid: int) -> None:
        for directory in self.directories():
            _write(f"{directory}/cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """Everything inside, by pid in our namespace; empty where the group is gone."""
        mounts = self.hierarchy.mounts
        mount = mounts.get("pids") or mounts.get("memory") or next(iter(mounts.values()))
        try:
            return [int(line) for line in _read(f"{mount}/{self.path}/cgroup.procs").split()]
        except FileNotFoundError:
            return []

    def freeze(self, frozen: bool) -> None:
        """Ask for the state; `is_frozen` tells when it is reached."""
        if self.hierarchy.version == 2:
            _write(f"{self.directories()[0]}/cgroup.freeze", "1" if frozen else "0")
        else:
            state = "FROZEN" if frozen else "THAWED"
            _write(f"{self.hierarchy.mounts['freezer']}/{self.path}/freezer.state", state)

    def is_frozen(self) -> bool:
        if self.hierarchy.version == 2:
            return "frozen 1" in _read(f"{self.directories()[0]}/cgroup.events")
        return _read(f"{self.hierarchy.mounts['freezer']}/{self.path}/freezer.state") == "FROZEN\n"

    def kill(self) -> None:
        """SIGKILL to everything inside (cgroup.kill, kernel >= 5.14; on v1 one by one)."""
        if self.hierarchy.version == 2:
            _write(f"{self.directories()[0]}/cgroup.kill", "1")
            return
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass

    def oom_kills(self) -> int:
        """How many processes inside the kernel killed for memory."""
        mount = self.hierarchy.mounts.get("memory")
        if mount is None:
            return 0
        name = "memory.events" if self.hierarchy.version == 2 else "memory.oom_control"
        try:
            return _pairs(_read(f"{mount}/{self.path}/{name}")).get("oom_kill", 0)
        except FileNotFoundError:
            return 0

    def remove(self) -> None:
        """Remove it (it must be empty); its parents stay. Gone already is fine."""
        for directory in self.directories():
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass

    def stats(self) -> CgroupStats:
        """Read usage now; zeros where the group is gone."""
        try:
            return self._stats_v2() if self.hierarchy.version == 2 else self._stats_v1()
        except FileNotFoundError:
            return CgroupStats()

    def _file(self, controller: str, name: str) -> str:
        mount = self.hierarchy.mounts.get(controller)
        return "" if mount is None else _read(f"{mount}/{self.path}/{name}")

    def _stats_v1(self) -> CgroupStats:
        details = _pairs(self._file("memory", "memory.stat"))
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        split = _pairs(self._file("cpuacct", "cpuacct.stat"))
        limit = int(self._file("memory", "memory.limit_in_bytes") or 0)
        return CgroupStats(
            cpu_total=int(self._file("cpuacct", "cpuacct.usage") or 0),
            cpu_user=split.get("user", 0) * tick,
            cpu_system=split.get("system", 0) * tick,
            throttled_periods=_pairs(self._file("cpu", "cpu.stat")).get("nr_throttled", 0),
            memory_usage=int(self._file("memory", "memory.usage_in_bytes") or 0),
            memory_limit=0 if limit >= 1 << 62 else limit,
            memory_inactive_file=details.get("total_inactive_file", 0),
            memory_details=details,
            pids=int(self._file("pids", "pids.current") or 0),
            pids_limit=_maximum(self._file("pids", "pids.max")),
            block_io=_block_io_v1(self._file("blkio", "blkio.throttle.io_service_bytes")),
        )

    def _stats_v2(self) -> CgroupStats:
        cpu = _pairs(self._file("cpu", "cpu.stat"))
        details = _pairs(self._file("memory", "memory.stat"))
        return CgroupStats(
            cpu_total=cpu.get("usage_usec", 0) * 1000,
            cpu_user=cpu.get("user_usec", 0) * 1000,
            cpu_system=cpu.get("system_usec", 0) * 1000,
            throttled_periods=cpu.get("nr_throttled", 0),
            memory_usage=int(self._file("memory", "memory.current") or 0),
            memory_limit=_maximum(self._file("memory", "memory.max")),
            memory_inactive_file=details.get("inactive_file", 0),
            memory_details=details,
            pids=int(self._file("pids", "pids.current") or 0),
            pids_limit=_maximum(self._file("pids", "pids.max")),
            block_io=_block_io_v2(self._file("io", "io.stat")),
        )


def group_of(hierarchy: Hierarchy, parent: str, name: str) -> Group:
    return Group(hierarchy, f"{parent.strip('/')}/{name}")


def remove_tree(hierarchy: Hierarchy, path: str) -> None:
    """Remove an empty group and its empty descendants; for scratch parents and node removal."""
    for mount in dict.fromkeys(hierarchy.mounts.values()):
        for directory, _, _ in os.walk(f"{mount}/{path}", topdown=False):
            os.rmdir(directory)


def _block_io_v1(text: str) -> tuple[tuple[int, int, str, int], ...]:
    rows = []
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1] in ("Read", "Write"):
            major, minor = parts[0].split(":")
            rows.append((int(major), int(minor), parts[1].lower(), int(parts[2])))
    return tuple(rows)


def _block_io_v2(text: str) -> tuple[tuple[int, int, str, int], ...]:
    rows = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, minor = device.split(":")
        values = dict(pair.split("=") for pair in pairs)
        rows.append((int(major), int(minor), "read", int(values.get("rbytes", 0))))
        rows.append((int(major), int(minor), "write", int(values.get("wbytes", 0))))
    return tuple(rows)


def _maximum(text: str) -> int:
    return 0 if text.strip() in ("", "max") else int(text)


def _pairs(text: str) -> dict[str, int]:
    """Lines of "key number"."""
    lines: Sequence[list[str]] = [line.split() for line in text.splitlines()]
    return {p[0]: int(p[1]) for p in lines if len(p) == 2 and p[1].isdigit()}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)
