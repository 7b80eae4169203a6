"""What a container uses: its cgroup, its interfaces, and the host beside which it is measured."""

from __future__ import annotations

import os
import time

from attrs import evolve

from orchestra.api.engine import Traffic, Usage
from orchestra.runtime.runtime import Runtime

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # nanoseconds
_DETAILS = ("inactive_file", "total_inactive_file", "cache", "rss", "anon", "file", "pgfault")


def read_usage(runtime: Runtime, container_id: str, pid: int) -> Usage:
    """Read it now; what is gone meanwhile counts as nothing."""
    stats = runtime.stats(container_id)
    host = Usage(time.time(), _host_cpu(), os.cpu_count() or 1, _host_memory())
    return evolve(
        host,
        cpu_total=stats.cpu_total,
        cpu_user=stats.cpu_user,
        cpu_system=stats.cpu_system,
        throttled_periods=stats.throttled_periods,
        memory=stats.memory_usage,
        memory_limit=stats.memory_limit,
        memory_details={k: stats.memory_details[k] for k in _DETAILS if k in stats.memory_details},
        pids=stats.pids,
        pids_limit=stats.pids_limit,
        block_io=stats.block_io,
        networks=_networks(pid),
    )


def _host_cpu() -> int:
    """Nanoseconds of all processors since boot, idle ones too (proc_stat(5), first line)."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()[1:9]  # guest time is in user time already
    return sum(map(int, fields)) * TICK


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _networks(pid: int) -> dict[str, Traffic]:
    """Counters of each interface but the loopback (/proc/PID/net/dev)."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            rows = [line.partition(":") for line in file if ":" in line]
    except OSError:
        return {}
    found = {}
    for name, _, counters in rows:
        n = list(map(int, counters.split()))
        if name.strip() != "lo":
            found[name.strip()] = Traffic(*n[:4], *n[8:12])
    return found
