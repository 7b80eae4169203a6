"""What a container uses, in the shape of Docker's stats. Pure.

Clients compute a share of the processors from two samples: the container's time over the host's,
which counts idle time, times the number of processors.
"""

from __future__ import annotations

from typing import Any

from attrs import asdict

from orchestra.api.engine import Usage
from orchestra.api.words import NEVER, rfc3339
from orchestra.model.container import Container


def stats_value(container: Container, now: Usage | None, before: Usage | None) -> dict[str, Any]:
    """One sample and the one before it; zeros where the container does not run."""
    limit = now.memory_limit if now else 0
    value: dict[str, Any] = {
        "read": rfc3339(now.time) if now else NEVER,
        "preread": rfc3339(before.time) if before else NEVER,
        "pids_stats": {},
        "blkio_stats": _block_io(now),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before),
        "memory_stats": {},
        "name": f"/{container.name}",
        "id": container.id,
    }
    if now is None:
        return value
    value["pids_stats"] = {"current": now.pids}
    if now.pids_limit:
        value["pids_stats"]["limit"] = now.pids_limit
    value["memory_stats"] = {
        "usage": now.memory,
        "limit": min(limit, now.host_memory) if limit else now.host_memory,
        "stats": dict(now.memory_details),
    }
    if now.networks:
        value["networks"] = {name: asdict(traffic) for name, traffic in now.networks.items()}
    return value


def _cpu(usage: Usage | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "cpu_usage": {
            "total_usage": usage.cpu_total if usage else 0,
            "usage_in_kernelmode": usage.cpu_system if usage else 0,
            "usage_in_usermode": usage.cpu_user if usage else 0,
        },
        "throttling_data": {
            "periods": 0,
            "throttled_periods": usage.throttled_periods if usage else 0,
            "throttled_time": 0,
        },
    }
    if usage:
        value |= {"system_cpu_usage": usage.host_cpu, "online_cpus": usage.host_cpus}
    return value


def _block_io(usage: Usage | None) -> dict[str, Any]:
    empty = (
        "io_serviced_recursive io_queue_recursive io_service_time_recursive "
        "io_wait_time_recursive io_merged_recursive io_time_recursive sectors_recursive"
    )
    rows = [
        {"major": major, "minor": minor, "op": op, "value": size}
        for major, minor, op, size in (usage.block_io if usage else ())
    ]
    return {"io_service_bytes_recursive": rows or None, **dict.fromkeys(empty.split())}
