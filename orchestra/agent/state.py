"""The node's records on disk: one SQLite database, `agent.db`.

Law: a change is committed when `save` returns, so the agent's death loses nothing from then on;
it is on the disk when `persist` returns, which every request that changes something waits for
before it is answered, so a power cut loses nothing that was acknowledged. The two are apart because
a commit takes some 50 us and is made directly from the event loop, where changes cannot overtake
each other, while a disk at work takes milliseconds to write its log out: that is done in a thread,
once for all the changes that wait, and no container's start or output waits for it. (SQLite's
synchronous=FULL is the same two steps in one: its commit ends with the fsync of the log.)
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import trio
from attrs import field, frozen

from orchestra.model.codec import from_json, to_json
from orchestra.model.container import Container
from orchestra.model.errors import Failed
from orchestra.model.local_network import LocalNetwork
from orchestra.plan.restart import Restarts

_NETWORKS = "local-networks"

SCHEMA = """
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@frozen
class Record:
    """A container as it is kept: what everybody sees, and what supervision remembers of it."""

    container: Container
    restarts: Restarts = field(factory=Restarts)
    restart_token: int = 0  # of its assigned task, as last obeyed


class State:
    """The open database. Every method that changes it has committed when it returns.

    Failed is raised, with the reason, where the disk refuses; nothing was changed then.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=32)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        self._log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._committed = self._persistent = 0  # counts of commits
        self._persisting = trio.Lock()
        _sync(os.path.dirname(path) or ".")

    def close(self) -> None:
        os.close(self._log)
        self._db.close()

    async def persist(self) -> None:
        """Return when everything committed so far would outlive a power cut. Failed else."""
        wanted = self._committed
        async with self._persisting:
            if self._persistent >= wanted:
                return  # whoever came before wrote ours out too
            committed = self._committed
            try:
                await trio.to_thread.run_sync(os.fdatasync, self._log)
            except OSError as error:
                raise Failed(f"cannot write {self._path}: {error.strerror}") from error
            self._persistent = committed

    def records(self) -> list[Record]:
        rows = self._db.execute("SELECT record FROM containers").fetchall()
        return [from_json(Record, json.loads(text), "record") for (text,) in rows]

    def save(self, *records: Record) -> None:
        rows = [(r.container.id, json.dumps(to_json(r), separators=(",", ":"))) for r in records]
        self._commit("INSERT OR REPLACE INTO containers VALUES (?, ?)", rows)

    def delete(self, ids: Iterable[str]) -> None:
        self._commit("DELETE FROM containers WHERE id = ?", [(i,) for i in ids])

    def networks(self) -> list[LocalNetwork]:
        """The networks that were made by hand."""
        text = self.setting(_NETWORKS) or "[]"
        return [from_json(LocalNetwork, item, "network") for item in json.loads(text)]

    def save_networks(self, networks: Iterable[LocalNetwork]) -> None:
        self.set_setting(_NETWORKS, json.dumps([to_json(network) for network in networks]))

    def setting(self, key: str) -> str:
        """Return a setting's text, "" where it was never set."""
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def set_setting(self, key: str, value: str) -> None:
        self._commit("INSERT OR REPLACE INTO settings VALUES (?, ?)", [(key, value)])

    def _commit(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(statement, rows)
                self._db.execute("COMMIT")
                self._committed += 1
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise Failed(f"cannot write {self._path}: {error}") from error


def _sync(directory: str) -> None:
    """Make the names in a directory outlive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
