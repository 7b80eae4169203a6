"""The leak checker itself: each kind of thing that is left behind is found, and named."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import leaked, mentions, no_leaks, snapshot

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> Iterator[str]:
    """A word that only this test's things have; everything that mentions it is removed."""
    word = f"orchestra-leak-{secrets.token_hex(3)}"
    yield word
    quiet = {"capture_output": True, "check": False}
    subprocess.run(["ip", "netns", "delete", word], **quiet)
    subprocess.run(["ip", "link", "delete", short(word)], **quiet)
    subprocess.run(["nft", "delete", "table", "inet", word], **quiet)
    subprocess.run(["umount", f"/tmp/{word}"], **quiet)
    with contextlib.suppress(FileNotFoundError):
        Path(group_of(word)).rmdir()
    shutil.rmtree(f"/tmp/{word}", ignore_errors=True)


def short(word: str) -> str:
    return word.removeprefix("orchestra-")  # a link's name has 15 bytes


def group_of(word: str) -> str:
    v1 = [path.parent for path in Path("/sys/fs/cgroup").glob("*/tasks")]
    return f"{v1[0] if v1 else '/sys/fs/cgroup'}/{word}"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ip netns add {name}", {"name /run/netns/{name}", "namespace net:"}),
        ("mkdir /tmp/{name} && mount -t tmpfs {name} /tmp/{name}", {"mount tmpfs {name}/ on"}),
        ("mkdir {group}", {"cgroup {group}"}),
        ("ip link add {short} type bridge", {"link {short}"}),
        ("nft add table inet {name}", {"nft table inet {name}"}),
        ("mkdir -p /tmp/{name}/deep", {"file /tmp/{name}"}),
    ],
)
def test_a_thing_that_is_left_behind_is_named(name: str, command: str, expected: set[str]) -> None:
    words = {"name": name, "short": short(name), "group": group_of(name)}
    before = snapshot()
    with pytest.raises(AssertionError) as caught, no_leaks(mentions(short(name)), settle=0):
        subprocess.run(["sh", "-c", command.format(**words)], check=True)
    told = str(caught.value)
    assert all(text.format(**words) in told for text in expected), told
    assert f"/tmp/{name}/deep" not in told  # its top says it
    assert leaked(before, mentions("another word"), settle=0) == []


def test_a_process_and_its_namespaces_are_named_and_waited_for(name: str) -> None:
    script = "import time; time.sleep(100)"
    command = ["unshare", "--uts", "--net", "--mount", sys.executable, "-c", script, name]
    before = snapshot()
    process = subprocess.Popen(command)
    try:
        while "uts" not in {t.name[:3] for t in leaked(before, mentions(name), settle=0)}:
            assert process.poll() is None
        found = {(t.kind, t.name.split(":")[0]) for t in leaked(before, mentions(name), settle=0)}
        assert {("namespace", "uts"), ("namespace", "net"), ("namespace", "mnt")} <= found
        assert "process" in {kind for kind, _ in found}
    finally:
        process.kill()
        process.wait()
    assert leaked(before, mentions(name)) == []


def test_the_program_saves_and_checks(name: str, tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parents[1] / "leaks.py")]
    subprocess.run([*program, "save", f"{tmp_path}/before"], check=True)
    checked = [*program, "check", f"{tmp_path}/before", name]
    assert subprocess.run(checked, check=False).returncode == 0
    Path(f"/tmp/{name}").mkdir()
    done = subprocess.run(checked, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, f"file /tmp/{name}\n")
