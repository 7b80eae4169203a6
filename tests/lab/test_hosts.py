"""The lab's hosts: machines of namespaces with a real sshd, a wire and a switch each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestra.testing.lab.cgroups import Hierarchy, hierarchies
from tests.lab_user import LabUser


def test_ls_lists_the_hosts_and_how_they_are(bare: LabUser) -> None:
    rows = [row for row in bare.json("lab", "ls") if row["lab"] == bare.name]
    assert rows == [
        {"lab": bare.name, "node": "node1", "address": "10.77.0.1", "state": "on"},
        {"lab": bare.name, "node": "node2", "address": "10.77.0.2", "state": "on"},
    ]
    assert bare.name in bare("lab", "ls", "-q").stdout.split()
    lines = [line.split() for line in bare("lab", "ls").stdout.splitlines()]
    assert lines[0] == ["LAB", "NODE", "ADDRESS", "STATE"]
    assert [bare.name, "node1", "10.77.0.1", "on"] in lines


def test_a_host_is_a_machine_of_its_own(bare: LabUser) -> None:
    assert bare.lab("exec", "node1", "hostname") == "node1\n"
    assert bare.lab("exec", "node2", "cat", "/proc/1/comm").startswith("python")
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid", "uts")}
    there = bare.on("node1", "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid")
    assert not set(own.values()) & set(there.split())
    bare.on("node1", "echo mine >/var/lib/orchestra/only-here")
    assert bare.on("node2", "ls /var/lib/orchestra") == ""
    assert not Path("/var/lib/orchestra/only-here").exists()
    bare.on("node1", "rm /var/lib/orchestra/only-here")
    with pytest.raises(subprocess.CalledProcessError):
        bare.on("node1", "touch /usr/lib/written")


def test_a_command_on_a_host_passes_on_its_exit_code(bare: LabUser) -> None:
    bare.lab("exec", "node1", "sh", "-c", "exit 7", code=7)
    said = bare.refused("lab", "exec", "--name", bare.name, "node9", "true")
    assert f"lab {bare.name} has no node 'node9'; it has node1, node2" in said
    said = bare.refused("lab", "exec", "--name", bare.name, "node1", code=2)
    assert "say what to run: orchestra lab exec NODE CMD..." in said


def test_the_client_reaches_the_hosts_by_name_and_sshd_answers(bare: LabUser) -> None:
    ssh = ("ssh", "-i", bare.key, "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes")
    ssh = (*ssh, "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
    assert bare.lab("client", *ssh, "root@node2", "hostname") == "node2\n"
    bare.lab("client", "sh", "-c", "exit 5", code=5)
    assert "say what to run" in bare.refused("lab", "client", "--name", bare.name, code=2)
    assert "no such program" in bare.refused("lab", "client", "--name", bare.name, "nonesuch")


def test_a_cut_host_is_on_but_out_of_reach_until_it_is_healed(bare: LabUser) -> None:
    ping = ("ping", "-c", "1", "-W", "2", "10.77.0.2")
    bare.lab("client", *ping)
    assert bare.lab("cut", "node2") == "node2\n"
    assert [r["state"] for r in bare.json("lab", "ls") if r["lab"] == bare.name] == ["on", "cut"]
    bare.lab("client", *ping, code=1)
    assert bare.lab("exec", "node2", "hostname") == "node2\n"
    bare.lab("heal", "node2")
    bare.lab("client", *ping)


def test_a_killed_host_loses_what_ran_and_keeps_its_disk(bare: LabUser) -> None:
    bare.on("node2", "echo kept >/root/kept; echo lost >/run/lost; sleep 1000 >/dev/null 2>&1 &")
    boot_id = bare.on("node2", "readlink /proc/1/ns/pid")
    bare.lab("kill", "node2")
    assert [r["state"] for r in bare.json("lab", "ls") if r["lab"] == bare.name] == ["on", "off"]
    said = bare.refused("lab", "kill", "--name", bare.name, "node2")
    assert f"node2 of lab {bare.name} is off already" in said
    said = bare.refused("lab", "cut", "--name", bare.name, "node2")
    assert "is off; `orchestra lab boot node2`" in said
    bare.lab("boot", "node2")
    assert bare.on("node2", "cat /root/kept; ls /run/lost 2>&1 || true").splitlines()[0] == "kept"
    assert "/run/lost" in bare.on("node2", "ls /run/lost 2>&1; true")
    assert bare.on("node2", "readlink /proc/1/ns/pid") != boot_id
    assert "sleep" not in bare.on("node2", "cat /proc/[0-9]*/comm 2>/dev/null; true")
    bare.lab("client", "ping", "-c", "1", "-W", "5", "10.77.0.2")
    said = bare.refused("lab", "boot", "--name", bare.name, "node2")
    assert f"node2 of lab {bare.name} is on already" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--name", "Bad_Name"), 2, "cannot name a lab 'Bad_Name': use up to 31 of a-z, 0-9 and -"),
        (("--name", "x1", "--nodes", "0"), 2, "cannot make a lab of 0 nodes: 1 to 99"),
        (("--name", "x1", "--nodes", "100"), 2, "cannot make a lab of 100 nodes: 1 to 99"),
    ],
)
def test_a_lab_that_cannot_be(bare: LabUser, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in bare.refused("lab", "up", *words, code=code)


def test_a_lab_that_is_there_already_or_not_at_all(bare: LabUser) -> None:
    said = bare.refused("lab", "up", "--bare", "--name", bare.name)
    assert f"`orchestra lab down --name {bare.name}` removes it" in said
    said = bare.refused("lab", "kill", "--name", "nonesuch", "node1")
    assert "there is no lab 'nonesuch'; `orchestra lab up --name nonesuch` makes it" in said
    assert "was not there" in bare("lab", "down", "--name", "nonesuch").stderr


def test_cgroup_hierarchies_are_read_from_mountinfo() -> None:
    v1 = "35 30 0:30 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    systemd = "36 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    v2 = "31 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    other = "25 1 0:5 / /proc rw - proc proc rw\n"
    assert hierarchies(v1 + systemd + other) == (
        Hierarchy("cpu", "cgroup", "cpu,cpuacct"),
        Hierarchy("systemd", "cgroup", "none,name=systemd"),
    )
    assert hierarchies(v2 + other) == (Hierarchy("", "cgroup2", ""),)
