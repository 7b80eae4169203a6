"""The store under kill -9, a full disk and damage: what was acknowledged is there, whole."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from plan.build import cluster, record, service, settle, stack, with_stack

from orchestra.controller.store import KEPT_REVISIONS, SqliteStore, new_state
from orchestra.model.errors import Failed, Unavailable
from orchestra.plan.state import State

WRITER = Path(__file__).parent / "writer.py"


def states(count: int) -> list[State]:
    """The same history for everybody who asks: each state differs from the one before."""
    state, view = cluster(record(stack(service("web", replicas=1))))
    out = []
    for number in range(1, count + 1):
        value = record(stack(service("web", replicas=number % 5, command=(str(number),))), number)
        state, _ = settle(with_stack(state, value), view)
        out.append(state)
    return out


def test_what_was_committed_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "store" / "controller.db")
    store = SqliteStore(path)
    assert store.load() is None
    for state in states(6):
        store.commit(state)
    store.close()
    assert SqliteStore(path).load() == state
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "store").st_mode & 0o777 == 0o700


def test_what_goes_from_the_state_goes_from_the_store(tmp_path: Path) -> None:
    path = str(tmp_path / "controller.db")
    store = SqliteStore(path)
    first, *_, last = states(4)
    store.commit(first)
    store.commit(evolve(last, tasks={}, stacks={}, networks={}))
    store.close()
    assert SqliteStore(path).load() == evolve(last, tasks={}, stacks={}, networks={})


def test_the_last_revisions_of_a_stack_are_kept(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "controller.db"))
    for state in states(KEPT_REVISIONS + 5):
        store.commit(state)
    store.close()
    db = sqlite3.connect(tmp_path / "controller.db")
    kept = [n for (n,) in db.execute("SELECT revision FROM revision ORDER BY revision")]
    assert kept == list(range(6, KEPT_REVISIONS + 6))


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_in_the_middle_of_writes_loses_nothing_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "controller.db"
    chance = random.Random(seed)
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        for _ in range(chance.randint(1, 60)):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = int((writer.stdout.read().split() or [acknowledged])[-1])
    found = SqliteStore(str(path)).load()
    assert found is not None
    number = found.stacks["app"].revision
    assert number >= acknowledged
    assert found == states(number)[-1]  # whole: nothing of the next one is in it


def test_a_full_disk_is_told_and_the_store_stays_as_it_was(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount], check=True)
    try:
        store = SqliteStore(str(mount / "controller.db"))
        first, second = states(2)
        store.commit(first)
        (mount / "ballast").write_bytes(b"\0" * _free(mount))
        big = {f"app/{i}": 30000 + i for i in range(4000)}
        with pytest.raises(Unavailable, match=r"cannot write to the controller's store .*: "):
            store.commit(evolve(second, ports=big))
        (mount / "ballast").unlink()
        assert reloaded(mount) == first
        store.commit(second)
        store.close()
        assert reloaded(mount) == second
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def reloaded(folder: Path) -> State | None:
    """What somebody else would find."""
    store = SqliteStore(str(folder / "controller.db"))
    try:
        return store.load()
    finally:
        store.close()


def _free(path: Path) -> int:
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize


def test_a_damaged_or_newer_store_is_not_guessed_at(tmp_path: Path) -> None:
    path = str(tmp_path / "controller.db")
    store = SqliteStore(path)
    store.commit(states(1)[0])
    store.close()
    db = sqlite3.connect(path)
    db.execute("""UPDATE record SET body = '{"nonsense": 1}' WHERE kind = 'nodes'""")
    db.commit()
    with pytest.raises(Failed, match=r"is damaged: .*nodes"):
        SqliteStore(path).load()
    db.execute("UPDATE record SET body = '99' WHERE key = 'format'")
    db.commit()
    with pytest.raises(Failed, match="written by a newer orchestra"):
        SqliteStore(path).load()
    Path(path).write_bytes(b"this is no database at all" * 100)
    with pytest.raises(Unavailable, match="cannot open the controller's store"):
        SqliteStore(path)


def test_a_new_clusters_tunnel_has_a_number() -> None:
    assert new_state("a", "000000" + "1" * 26).identity.vni == 1
    assert new_state("a", "0000ff" + "1" * 26).identity.vni == 255
