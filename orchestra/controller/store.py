"""Where the desired state is kept: SQLite beside the controller, one transaction per step.

A `Store` loads the whole `State` once and then takes each next one; only what differs is written.
Nothing acknowledged is lost by a crash (WAL, synchronous=FULL). Several controllers over one etcd
would implement the same three methods, with the generation as the compare of compare-and-swap.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from orchestra.model.cluster import StackRecord
from orchestra.model.codec import CodecError, from_json, to_json
from orchestra.model.errors import Failed, Unavailable
from orchestra.plan.state import ClusterIdentity, State

FORMAT = 1
KEPT_REVISIONS = 10  # of each stack

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revision (
    stack TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (stack, revision)
) WITHOUT ROWID;
"""

# The parts of a State that are mappings; each entry is a row.
_PARTS = ("nodes", "stacks", "tasks", "networks", "volumes", "ports", "images")


class Store(Protocol):
    def load(self) -> State | None:
        """The last committed state; None of a new store."""

    def commit(self, state: State) -> None:
        """Make `state` the stored one, durably and whole, or raise Unavailable with the reason."""

    def close(self) -> None: ...


class SqliteStore:
    """The store in one file, used by one process at a time."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.path = path
        self._last: State | None = None
        with self._translated("open"):
            self._db = sqlite3.connect(path, isolation_level=None)
            os.chmod(path, 0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)

    def load(self) -> State | None:
        with self._translated("read"):
            rows = self._db.execute("SELECT kind, key, body FROM record").fetchall()
        bodies: dict[str, dict[str, Any]] = {}
        for kind, key, body in rows:
            bodies.setdefault(kind, {})[key] = json.loads(body)
        cluster = bodies.pop("cluster", None)
        if not cluster:
            return None
        if cluster["format"] > FORMAT:
            raise Failed(
                f"{self.path} was written by a newer orchestra (format {cluster['format']}, this "
                f"one reads {FORMAT}); upgrade this one"
            )
        try:
            self._last = from_json(State, {**bodies, **cluster})
        except CodecError as error:
            raise Failed(f"{self.path} is damaged: {error}") from None
        return self._last

    def commit(self, state: State) -> None:
        last = self._last
        if state is last:
            return
        with self._translated("write to"), self._transaction():
            self._put("cluster", "format", FORMAT)
            self._put("cluster", "generation", state.generation)
            self._put("cluster", "identity", to_json(state.identity))
            for name in _PARTS:
                self._write_part(name, getattr(last, name) if last else {}, getattr(state, name))
        self._last = state

    def close(self) -> None:
        self._db.close()

    def _write_part(self, kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        if old is new:
            return
        for key, value in new.items():
            before = old.get(key)
            if before is value or before == value:
                continue
            body = to_json(value)
            self._put(kind, key, body)
            if kind == "stacks" and (before is None or before.revision != value.revision):
                self._keep_revision(value, body)
        gone = [(kind, key) for key in old if key not in new]
        self._db.executemany("DELETE FROM record WHERE kind = ? AND key = ?", gone)

    def _keep_revision(self, record: StackRecord, body: Any) -> None:
        name = record.stack.name
        self._db.execute(
            "INSERT OR REPLACE INTO revision VALUES (?, ?, ?)",
            (name, record.revision, json.dumps(body)),
        )
        self._db.execute(
            "DELETE FROM revision WHERE stack = ? AND revision <= ?",
            (name, record.revision - KEPT_REVISIONS),
        )

    def _put(self, kind: str, key: str, body: Any) -> None:
        text = json.dumps(body, separators=(",", ":"))
        self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (kind, key, text))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(
                f"cannot {verb} the controller's store {self.path}: {error}"
            ) from error


def new_state(name: str, cluster_id: str) -> State:
    """The state of a cluster that has nothing yet. `cluster_id` is 32 hex digits."""
    return State(ClusterIdentity(name, cluster_id, vni=vni_of(cluster_id)))


def vni_of(cluster_id: str) -> int:
    """The tunnel's VXLAN network identifier (24 bits, RFC 7348), never 0."""
    return int(cluster_id[:6], 16) or 1
