"""Commits one state after the other and prints each one's number once it is acknowledged."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from controller.test_store import states
from orchestra.controller.store import SqliteStore

if __name__ == "__main__":
    history = states(80)
    store = SqliteStore(sys.argv[1])
    for number, state in enumerate(history, 1):
        store.commit(state)
        print(number, flush=True)
