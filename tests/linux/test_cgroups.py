"""Control groups: limits as file contents (pure), and groups of the hierarchies that are here."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestra.linux.cgroups import (
    CgroupLimits,
    Group,
    Hierarchy,
    LimitRefused,
    find_hierarchy,
    group_of,
    remove_tree,
    settings_v1,
    settings_v2,
    weight_of_shares,
)
from orchestra.linux.device_rules import ALLOWED

MIB = 1 << 20

# --- limits to file contents ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "v1", "v2"),
    [
        (CgroupLimits(), "", ""),
        (
            CgroupLimits(memory=8 * MIB),
            "memory.limit_in_bytes=8388608 memory.memsw.limit_in_bytes=16777216",
            "memory.max=8388608 memory.swap.max=8388608",
        ),
        (
            CgroupLimits(memory=8 * MIB, memory_swap=8 * MIB, memory_reservation=4 * MIB),
            "memory.limit_in_bytes=8388608 memory.memsw.limit_in_bytes=8388608 "
            "memory.soft_limit_in_bytes=4194304",
            "memory.max=8388608 memory.swap.max=0 memory.low=4194304",
        ),
        (
            CgroupLimits(memory=8 * MIB, memory_swap=-1),
            "memory.limit_in_bytes=8388608 memory.memsw.limit_in_bytes=-1",
            "memory.max=8388608 memory.swap.max=max",
        ),
        (
            CgroupLimits(cpus=0.5, cpu_shares=1024),
            "cpu.shares=1024 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000",
            "cpu.weight=100 cpu.max=50000_100000",
        ),
        (
            CgroupLimits(cpus=1.5, cpu_period=20_000),
            "cpu.cfs_period_us=20000 cpu.cfs_quota_us=30000",
            "cpu.max=30000_20000",
        ),
        (
            CgroupLimits(cpu_period=20_000),
            "cpu.cfs_period_us=20000 cpu.cfs_quota_us=-1",
            "cpu.max=max_20000",
        ),
        (
            CgroupLimits(cpu_quota=30_000),
            "cpu.cfs_period_us=100000 cpu.cfs_quota_us=30000",
            "cpu.max=30000_100000",
        ),
        (
            CgroupLimits(cpus=0.001),
            "cpu.cfs_period_us=100000 cpu.cfs_quota_us=1000",
            "cpu.max=1000_100000",
        ),
        (
            CgroupLimits(cpuset_cpus="0-1", cpuset_mems="0", pids=20),
            "cpuset.cpus=0-1 cpuset.mems=0 pids.max=20",
            "cpuset.cpus=0-1 cpuset.mems=0 pids.max=20",
        ),
        (CgroupLimits(pids=-1), "pids.max=max", "pids.max=max"),
        (CgroupLimits(pids=0), "", ""),
    ],
)
def test_limits_are_these_file_contents(limits: CgroupLimits, v1: str, v2: str) -> None:
    def text(rows: list[tuple[str, str, str]]) -> str:
        assert all(file.startswith(f"{controller}.") for controller, file, _ in rows)
        return " ".join(f"{file}={content.replace(' ', '_')}" for _, file, content in rows)

    assert text(settings_v1(limits)) == v1
    assert text(settings_v2(limits)) == v2


def test_less_memory_and_swap_than_memory_is_no_limit() -> None:
    for make in (settings_v1, settings_v2):
        with pytest.raises(ValueError, match="must not be less than memory"):
            make(CgroupLimits(memory=8 * MIB, memory_swap=4 * MIB))


def test_shares_keep_their_order_and_their_middle_as_weights() -> None:
    shares = [2, 3, 10, 102, 512, 1024, 2048, 10_000, 262_144, 300_000]
    weights = [weight_of_shares(each) for each in shares]
    assert weights == sorted(weights)
    assert (weights[0], weight_of_shares(1024), weights[-1]) == (1, 100, 10_000)


# --- what a host has --------------------------------------------------------------------------


def test_the_hierarchy_of_a_host_is_what_is_mounted_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no cgroup controllers are mounted"):
        find_hierarchy(str(tmp_path))
    for name in ("memory", "pids", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "cpu").mkdir()  # a mount point without its mount
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")  # hybrid: left alone
    found = find_hierarchy(str(tmp_path))
    assert (found.version, found.controllers) == (1, ("memory", "pids"))
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma misc\n")
    found = find_hierarchy(str(tmp_path))
    assert (found.version, found.controllers) == (2, ("cpuset", "cpu", "io", "memory", "pids"))


def test_a_v2_group_switches_its_controllers_on_along_the_way(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory pids")
        (directory / "cgroup.subtree_control").write_text("memory" if directory == tmp_path else "")
    hierarchy = find_hierarchy(str(tmp_path))
    group = Group(hierarchy, "a/b")
    group.create()
    # A plain file keeps the last write over the first bytes; the kernel adds what each one names.
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pidsy"  # memory was on
    assert (tmp_path / "a/cgroup.subtree_control").read_text() == "+pidsry"
    assert (tmp_path / "a/b/cgroup.subtree_control").read_text() == ""  # a leaf
    assert group.directories() == [f"{tmp_path}/a/b"]


def test_limits_of_v2_are_written_and_swap_that_is_not_accounted_is_told(tmp_path: Path) -> None:
    for name in ("memory.max", "memory.low", "cpu.weight", "cpu.max", "pids.max"):
        (tmp_path / name).touch()
    group = Group(Hierarchy(2, dict.fromkeys(("cpu", "memory", "pids"), str(tmp_path))), ".")
    limits = CgroupLimits(memory=8 * MIB, memory_reservation=4 * MIB, cpus=2, cpu_shares=2, pids=9)
    warnings = group.limit(limits)
    assert warnings == ["the kernel does not account swap: only memory is limited"]
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {
        "memory.max": "8388608",
        "memory.low": "4194304",
        "cpu.weight": "1",
        "cpu.max": "200000 100000",
        "pids.max": "9",
    }


def test_usage_is_read_from_a_v2_groups_files(tmp_path: Path) -> None:
    for name, text in {
        "cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 9\nnr_throttled 2\n",
        "memory.stat": "anon 100\ninactive_file 50\n",
        "memory.current": "150\n",
        "memory.max": "max\n",
        "memory.events": "low 0\noom 2\noom_kill 3\n",
        "pids.current": "5\n",
        "pids.max": "9\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
    }.items():
        (tmp_path / name).write_text(text)
    names = ("cpu", "io", "memory", "pids")
    group = Group(Hierarchy(2, dict.fromkeys(names, str(tmp_path))), ".")
    stats = group.stats()
    assert (stats.cpu_total, stats.cpu_user, stats.cpu_system) == (7000, 4000, 3000)
    assert stats.throttled_periods == 2
    assert (stats.memory_usage, stats.memory_limit, stats.memory_inactive_file) == (150, 0, 50)
    assert (stats.pids, stats.pids_limit) == (5, 9)
    assert stats.block_io == ((8, 0, "read", 10), (8, 0, "write", 20))
    assert group.oom_kills() == 3


# --- real groups ------------------------------------------------------------------------------

V1, V2 = "v1", "v2"


def here(version: str) -> Hierarchy | None:
    """A real hierarchy of this machine; of a hybrid one its cgroup2, with what that has."""
    found = find_hierarchy()
    if found.version == int(version[1]):
        return found
    unified = "/sys/fs/cgroup/unified"
    if version == V2 and os.path.exists(f"{unified}/cgroup.controllers"):
        return Hierarchy(
            2, dict.fromkeys(Path(f"{unified}/cgroup.controllers").read_text().split(), unified)
        )
    return None


@pytest.fixture(params=[V1, V2])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    hierarchy = here(request.param)
    if hierarchy is None or not hierarchy.mounts:
        pytest.skip(f"this machine has no cgroup {request.param}")
    parent = f"orchestra-test-{secrets.token_hex(4)}"
    made = group_of(hierarchy, f"/{parent}/", "one")
    made.create()
    try:
        yield made
    finally:
        for pid in made.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not made.pids())
        remove_tree(hierarchy, parent)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def inside(group: Group, program: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that joins the group before it runs `program`."""
    script = f"""
import os, sys, time
for directory in {group.directories()!r}:
    with open(directory + "/cgroup.procs", "w") as file:
        file.write("0")
print("in", flush=True)
{program}
"""
    command = [sys.executable, "-S", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


def needs(group: Group, controller: str) -> None:
    if controller not in group.hierarchy.mounts:
        pytest.skip(f"this cgroup{group.hierarchy.version} has no {controller} controller")


@pytest.mark.root
def test_a_group_is_made_joined_listed_killed_and_removed(group: Group) -> None:
    assert all(os.path.isdir(directory) for directory in group.directories())
    group.create()  # again: fine
    assert group.pids() == []
    with inside(group, "time.sleep(100)") as process, inside(group, "time.sleep(100)") as other:
        assert set(group.pids()) == {process.pid, other.pid}
        with pytest.raises(OSError, match="busy"):
            group.remove()
        group.kill()
        assert (process.wait(20), other.wait(20)) == (-9, -9)
    until(lambda: not group.pids())
    group.remove()
    group.remove()  # gone already: fine
    assert not any(os.path.exists(directory) for directory in group.directories())
    assert group.pids() == []
    assert group.stats().memory_usage == 0
    assert group.oom_kills() == 0


@pytest.mark.root
def test_a_process_of_ours_can_be_put_into_a_group(group: Group) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        group.join(process.pid)
        assert group.pids() == [process.pid]
        process.kill()


@pytest.mark.root
def test_a_frozen_group_does_not_move(group: Group) -> None:
    if group.hierarchy.version == 1:
        needs(group, "freezer")
    with inside(group, "while True: print('x', flush=True); time.sleep(0.001)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        group.freeze(True)
        until(group.is_frozen)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state in "DS"
        before = Path(f"/proc/{process.pid}/schedstat").read_text()
        time.sleep(0.05)
        assert Path(f"/proc/{process.pid}/schedstat").read_text() == before
        group.freeze(False)
        until(lambda: not group.is_frozen())
        until(lambda: Path(f"/proc/{process.pid}/schedstat").read_text() != before)


@pytest.mark.root
def test_too_many_processes_are_refused(group: Group) -> None:
    needs(group, "pids")
    group.limit(CgroupLimits(pids=4))
    program = """
made = 0
for _ in range(20):
    try:
        if os.fork() == 0:
            time.sleep(100)
        made += 1
    except OSError as error:
        print(made, error.errno, flush=True)
        time.sleep(100)
"""
    with inside(group, program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"3 11\\n".decode("unicode_escape")
        stats = group.stats()
        assert (stats.pids, stats.pids_limit) == (4, 4)
        group.kill()


@pytest.mark.root
def test_too_much_memory_is_the_end_and_counted(group: Group) -> None:
    needs(group, "memory")
    group.limit(CgroupLimits(memory=24 * MIB, memory_swap=24 * MIB))
    assert group.stats().memory_limit == 24 * MIB
    assert group.oom_kills() == 0
    with inside(group, "x = bytearray(200 << 20); time.sleep(100)") as process:
        assert process.wait(60) == -9
    assert group.oom_kills() == 1


@pytest.mark.root
def test_a_cpu_limit_throttles(group: Group) -> None:
    needs(group, "cpu")
    group.limit(CgroupLimits(cpus=0.05, cpu_shares=512))
    with inside(group, "while True: pass"):
        until(lambda: group.stats().throttled_periods >= 3)
        stats = group.stats()
        assert stats.cpu_total > 0
        assert stats.memory_usage > 0


@pytest.mark.root
def test_a_limit_that_the_kernel_refuses_is_named(group: Group) -> None:
    controllers = group.hierarchy.mounts
    if "cpuset" in controllers:
        with pytest.raises(LimitRefused) as caught:
            group.limit(CgroupLimits(cpuset_cpus="7000"))
        assert caught.value.filename == "cpuset.cpus"
        assert "'7000'" in str(caught.value.strerror)
    bare = Group(Hierarchy(group.hierarchy.version, {"none": "/nowhere"}), group.path)
    with pytest.raises(LimitRefused, match="no pids controller on this host"):
        bare.limit(CgroupLimits(pids=1))


@pytest.mark.root
def test_only_the_standard_devices_can_be_opened(group: Group, tmp_path: Path) -> None:
    if group.hierarchy.version == 1:
        needs(group, "devices")
    group.restrict_devices()
    others = [("c", 1, 11), ("c", 1, 1), ("b", 7, 0), ("b", 1, 3), ("c", 10, 229), ("c", 144, 0)]
    program = f"""
def attempt(kind, major, minor):
    path = f"{tmp_path}/{{kind}}-{{major}}-{{minor}}"
    os.mknod(path, 0o666 | (0o20000 if kind == "c" else 0o60000), os.makedev(major, minor))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
        return 0
    except OSError as error:
        return error.errno
for kind, major, minor in {ALLOWED!r}:
    print(attempt(kind, major, 0 if minor is None else minor) == 1, end=" ")
for other in {others!r}:
    print(attempt(*other), end=" ")
print(flush=True)
"""
    with inside(group, program) as process:
        assert process.stdout is not None
        told = process.stdout.readline().split()
    assert told == ["False"] * len(ALLOWED) + ["1"] * len(others)  # EPERM
