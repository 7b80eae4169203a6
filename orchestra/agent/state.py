"""The node's records on disk: one SQLite database, `agent.db`.

Law: a change is committed with synchronous=FULL before anybody is told of it, so nothing that was
acknowledged is lost by the agent's death or a power cut. A commit takes about 0.2 ms (one fsync
of the log), which is why the calls are made directly from the event loop: a hop to a thread and
back costs as much and would let two changes of one container overtake each other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import field, frozen

from orchestra.model.codec import from_json, to_json
from orchestra.model.container import Container
from orchestra.model.errors import Failed
from orchestra.plan.restart import Restarts

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
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def records(self) -> list[Record]:
        rows = self._db.execute("SELECT record FROM containers").fetchall()
        return [from_json(Record, json.loads(text), "record") for (text,) in rows]

    def save(self, *records: Record) -> None:
        rows = [(r.container.id, json.dumps(to_json(r), separators=(",", ":"))) for r in records]
        self._commit("INSERT OR REPLACE INTO containers VALUES (?, ?)", rows)

    def delete(self, ids: Iterable[str]) -> None:
        self._commit("DELETE FROM containers WHERE id = ?", [(i,) for i in ids])

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
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise Failed(f"cannot write {self._path}: {error}") from error
