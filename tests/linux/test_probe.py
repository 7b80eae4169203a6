"""What a host lacks is told with its remedy; a host that runs these tests lacks nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestra.linux import probe
from orchestra.linux.cgroups import Hierarchy

pytestmark = pytest.mark.root


def test_this_host_lacks_nothing(tmp_path: Path) -> None:
    assert probe.missing("/var/lib/not/there/yet") == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("running_kernel", lambda: (5, 10), "is too old: boot 5.14 or newer"),
        ("ARCHITECTURES", {}, "is not supported: use x86_64 or aarch64"),
        ("bounding", lambda: 0, "capability SYS_ADMIN, NET_ADMIN, MKNOD, CHOWN"),
        ("_file_systems", set, "the overlay file system is missing: run `modprobe overlay`"),
        ("_kind_of", lambda path: "nfs4", "lies on nfs4: put the state directory on a local disk"),
        ("_NAMESPACES", ("net", "dream"), "the kernel has no dream namespaces"),
        (
            "find_hierarchy",
            lambda: Hierarchy(2, {"cpu": "/x", "pids": "/x"}),
            "the memory cgroup controller is missing: boot with cgroup_enable=memory",
        ),
        (
            "find_hierarchy",
            lambda: Hierarchy(
                1, dict.fromkeys(("cpu", "cpuacct", "memory", "pids", "devices"), "/")
            ),
            "the freezer cgroup controller is missing: run `mount -t cgroup -o freezer",
        ),
    ],
)
def test_each_missing_piece_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, told: str
) -> None:
    """The host is what it is: the looks at it are replaced one by one."""
    monkeypatch.setattr(probe, name, value)
    (sentence,) = probe.missing("/")
    assert told in sentence


def test_no_cgroups_at_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Hierarchy:
        raise FileNotFoundError

    monkeypatch.setattr(probe, "find_hierarchy", nothing)
    assert probe.missing("/") == [
        "no cgroups are mounted: run `mount -t cgroup2 none /sys/fs/cgroup`"
    ]


def test_the_kind_of_a_file_system_is_that_of_the_nearest_parent() -> None:
    assert probe._kind_of("/proc/not/there") == "proc"
    assert probe._kind_of("/") == probe._kind_of("/no/such/path")
    assert os.path.exists("/proc/self/ns/net")
