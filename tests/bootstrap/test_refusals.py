"""A host that cannot become a node says why and what to do, and stays the plain host it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab_user import LabUser

PYTHONS = ("/usr/bin/python3*", "/usr/local/bin/python3*")


@pytest.fixture
def plain(user: LabUser) -> Iterator[LabUser]:
    """The user before the first node; after the test nothing must have come of it."""
    yield user
    for node in ("node1", "node2", "node3"):
        assert user.traces(node) == []
    assert user.json("cluster", "ls") == []


def add(user: LabUser, name: str = "node1", *words: str, address: str = "") -> tuple[str, ...]:
    """The words of `node add` for a host of the lab."""
    return ("node", "add", name, f"root@{address or user.address(name)}", *words)


def trusted(user: LabUser) -> tuple[str, ...]:
    return ("--identity", user.key, "--accept-new")


def test_a_host_that_is_not_there(plain: LabUser) -> None:
    said = plain.refused_inside(*add(plain, "node1", *trusted(plain), address="10.77.0.99"))
    assert "cannot reach node1: cannot reach root@10.77.0.99 over SSH" in said


def test_a_host_where_no_sshd_listens(plain: LabUser) -> None:
    address = plain.address("node1") + ":2222"
    said = plain.refused_inside(*add(plain, "node1", *trusted(plain), address=address))
    assert "connection refused: is sshd running there, on that port?" in said


def test_a_key_that_the_host_does_not_let_in(plain: LabUser) -> None:
    stranger = plain.scratch / "stranger"
    if not stranger.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    said = plain.refused_inside(*add(plain, "node1", "--identity", str(stranger), "--accept-new"))
    assert f"does not let root in with the key {stranger}" in said
    assert "~root/.ssh/authorized_keys" in said


def test_an_unknown_key_without_a_terminal(plain: LabUser) -> None:
    said = plain.refused_inside(*add(plain, "node1", "--identity", plain.key))
    address = plain.address("node1")
    assert f"cannot add node1: the host key of {address} is not known" in said
    assert "--host-key SHA256:" in said and "--accept-new" in said


def test_a_key_with_another_fingerprint(plain: LabUser) -> None:
    said = plain.refused_inside(
        *add(plain, "node1", "--identity", plain.key, "--host-key", "SHA256:somethingelse")
    )
    assert "not SHA256:somethingelse as --host-key says: it is another machine" in said


def test_a_key_that_the_operator_does_not_know(plain: LabUser) -> None:
    said, code = on_a_terminal(plain, "no\n", *add(plain, "node1", "--identity", plain.key))
    assert code == 1
    assert "The host shows the key ssh-ed25519 SHA256:" in said
    assert "cannot add node1" in said


def test_a_host_without_python(plain: LabUser) -> None:
    with plain.hidden("node1", *PYTHONS):
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain)))
        assert f"no Python 3.11 or newer on node1 ({plain.address('node1')})" in said
        assert "apt-get install python3" in said and "node add --install" in said
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain), "--install"))
        assert "cannot install Python on node1" in said


def test_a_user_who_is_neither_root_nor_may_become_it(plain: LabUser) -> None:
    plain.on("node1", "useradd -m guest && usermod -p '*' guest")
    plain.on("node1", "cp -r /root/.ssh /home/guest/ && chown -R guest /home/guest/.ssh")
    target = f"guest@{plain.address('node1')}"
    said = plain.refused_inside("node", "add", "node1", target, *trusted(plain))
    assert f"{target} is not root on node1 and may not use sudo without a password" in said
    assert "/etc/sudoers.d" in said


def test_a_host_without_nftables(plain: LabUser) -> None:
    libraries = ("/usr/lib/*/libnftables.so.1*", "/usr/sbin/nft")
    with plain.hidden("node1", *libraries):
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain)))
        assert "node1 lacks what a node needs" in said
        assert "libnftables.so.1 or the nft program: apt-get install libnftables1" in said
        assert "`--install` fetches the packages" in said
        # There is no package index within reach of a lab's host.
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain), "--install"))
        assert "cannot install libnftables1" in said


def test_a_kernel_without_what_a_node_needs(plain: LabUser) -> None:
    plain.on(
        "node1", "grep -v overlay /proc/filesystems >/tmp/f; mount --bind /tmp/f /proc/filesystems"
    )
    try:
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain)))
    finally:
        plain.on("node1", "umount /proc/filesystems")
    assert "the overlay file system: modprobe overlay, or a kernel with CONFIG_OVERLAY_FS" in said


def test_an_underlay_that_the_host_does_not_have(plain: LabUser) -> None:
    said = plain.refused_inside(*add(plain, "node1", *trusted(plain), "--underlay", "eth7"), code=2)
    assert f"node1 has no interface 'eth7'; it has eth0 {plain.address('node1')}" in said


def test_an_agent_that_does_not_start(plain: LabUser) -> None:
    lock = "mkdir -p /run/orchestra; exec flock /run/orchestra/agent.lock sleep 1000"
    holder = subprocess.Popen(
        plain.command("lab", "exec", "--name", plain.name, "node1", "sh", "-c", lock),
        env=plain.environment,
    )
    try:
        plain.wait(
            "the lock",
            lambda: "FLOCK" in plain.on("node1", "cat /proc/locks"),
        )
        said = plain.refused_inside(*add(plain, "node1", *trusted(plain)))
    finally:
        plain.on("node1", "pkill -x sleep")
        holder.wait()
    assert "the agent keeps ending" in said
    assert "another agent serves /run/orchestra already" in said


def test_an_addition_that_is_interrupted(plain: LabUser) -> None:
    words = plain.command(*plain.wired(*add(plain, "node1", *trusted(plain))))
    process = subprocess.Popen(words, env=plain.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("installing agent" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    with process.stderr:
        process.stderr.read()
    assert process.wait(100) == 130


def on_a_terminal(user: LabUser, answer: str, *words: str) -> tuple[str, int]:
    """Run a command that talks to a terminal; what it shows there, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        user.command(*user.wired(*words)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=user.environment,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # EIO: the last process closed the terminal
        pass
    finally:
        os.close(ours)
    return shown.decode(), process.wait(100)
