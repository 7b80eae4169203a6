"""Whole commands as a user waits for them: `--help`, and `ps` over a cluster that is up.

The cluster is a lab of one node with a controller on it, made here and taken down again. Time is
that of the whole process, from fork to exit; the peer for `--help` is the bare interpreter that
both need to start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.agent.host import busybox_archive

ORCHESTRA = str(Path(sys.executable).parent / "orchestra")
FILE = (
    "services:\n  app:\n    image: busybox\n    command: sleep 100000\n    stop_grace_period: 0s\n"
)


def measure(rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-commands") as text:
        folder = Path(text)
        (folder / "run").mkdir(mode=0o700)
        (folder / "compose.yaml").write_text(FILE)
        (folder / "busybox.tar").write_bytes(busybox_archive())
        user = _User(folder, f"bench{os.getpid()}")
        helps, bare = _alternate(rounds, user, [ORCHESTRA, "--help"], [sys.executable, "-c", ""])
        user.run(ORCHESTRA, "lab", "up", "--nodes", "1", "--name", user.lab)
        try:
            user.run(ORCHESTRA, "image", "load", "--input", "busybox.tar")
            user.run(ORCHESTRA, "up")
            listing, _ = _alternate(rounds, user, [ORCHESTRA, "ps"], [sys.executable, "-c", ""])
        finally:
            user.run(ORCHESTRA, "lab", "down", "--name", user.lab)
    return [
        _row("`orchestra --help`, whole process, p50", helps, 80.0, bare),
        _row("`orchestra ps`, controller running, whole process, p50", listing, 150.0, bare),
    ]


def _row(name: str, ours: float, budget: float, bare: float) -> dict[str, Any]:
    return {
        "group": "cluster",
        "name": name,
        "unit": "ms",
        "ours": ours * 1000,
        "budget": budget,
        "peer": "python -c ''",
        "peer_value": bare * 1000,
        "better": "lower",
    }


class _User:
    """Somebody with a configuration of their own in `folder`."""

    def __init__(self, folder: Path, lab: str) -> None:
        self.lab = lab
        self._folder = folder
        self._environment = {
            **os.environ,
            "ORCHESTRA_CONFIG": str(folder / "config"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }

    def run(self, *command: str) -> float:
        """Run a command that must succeed; its seconds."""
        begun = time.perf_counter()
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, text=True, capture_output=True
        )
        took = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return took


def _alternate(rounds: int, user: _User, ours: list[str], peer: list[str]) -> tuple[float, float]:
    """Median seconds of both; the first round warms the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for command, series in zip((ours, peer), times):
            seconds = user.run(*command)
            if number:
                series.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])
