"""Whole commands as a user waits for them, and a node whose power is cut.

The cluster is a lab of three nodes with a controller on the first, made here and taken down again.
A command's time is that of its whole process, from fork to exit, beside the bare interpreter that
it needs to start. A node's death counts from the cut until `node ls` says so and until its task
runs elsewhere, as seen by asking again and again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.agent.host import busybox_archive

PATIENCE = 90.0  # seconds
ORCHESTRA = str(Path(sys.executable).parent / "orchestra")
FILE = (
    "services:\n  app:\n    image: busybox\n    command: sleep 100000\n    stop_grace_period: 0s\n"
    "    deploy: {replicas: 3}\n"
)


def measure(rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-commands") as text:
        folder = Path(text)
        (folder / "run").mkdir(mode=0o700)
        (folder / "compose.yaml").write_text(FILE)
        (folder / "busybox.tar").write_bytes(busybox_archive())
        user = _User(folder, f"bench{os.getpid()}")
        helps, bare = _alternate(rounds, user, [ORCHESTRA, "--help"], [sys.executable, "-c", ""])
        user.run(ORCHESTRA, "lab", "up", "--nodes", "3", "--name", user.lab)
        try:
            user.run(ORCHESTRA, "image", "load", "--input", "busybox.tar")
            user.run(ORCHESTRA, "up")
            listing, _ = _alternate(rounds, user, [ORCHESTRA, "ps"], [sys.executable, "-c", ""])
            noticed, replaced = _death(user)
        finally:
            user.run(ORCHESTRA, "lab", "down", "--name", user.lab)
    return [
        _row("`orchestra --help`, whole process, p50", "ms", helps, 80.0, bare),
        _row("`orchestra ps`, controller running, whole process, p50", "ms", listing, 150.0, bare),
        _row("node death noticed", "s", noticed, 5.0),
        _row("node death: its task runs elsewhere", "s", replaced, 10.0),
    ]


def _row(
    name: str, unit: str, ours: float, budget: float, bare: float | None = None
) -> dict[str, Any]:
    return {
        "group": "cluster",
        "name": name,
        "unit": unit,
        "ours": ours,
        "budget": budget,
        "peer": None if bare is None else "python -c ''",
        "peer_value": bare,
        "better": "lower",
    }


def _death(user: _User) -> tuple[float, float]:
    """Seconds from a power cut until the node counts as down, and until its task is replaced."""
    home = "node1"  # the controller's
    victim = next(t["node"] for t in user.json(ORCHESTRA, "ps") if t["node"] != home)
    user.run(ORCHESTRA, "lab", "kill", "--name", user.lab, victim)
    begun = time.perf_counter()
    noticed = 0.0
    while (waited := time.perf_counter() - begun) < PATIENCE:
        states = {node["name"]: node["state"] for node in user.json(ORCHESTRA, "node", "ls")}
        if not noticed and states[victim] != "ready":
            noticed = waited
        tasks = user.json(ORCHESTRA, "ps")
        if sum(t["state"] == "running" and t["node"] != victim for t in tasks) == 3:
            return noticed, time.perf_counter() - begun
    raise RuntimeError(f"the task of {victim} was not replaced within {PATIENCE:.0f} s: {tasks}")


class _User:
    """Somebody with a configuration of their own in `folder`."""

    def __init__(self, folder: Path, lab: str) -> None:
        self.lab = lab
        self.said = ""
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
        self.said = done.stdout
        return took

    def json(self, *command: str) -> Any:
        """Run a command and parse what it says."""
        self.run(*command, "--format", "json")
        return json.loads(self.said)


def _alternate(rounds: int, user: _User, ours: list[str], peer: list[str]) -> tuple[float, float]:
    """Median milliseconds of both; the first round warms the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for command, series in zip((ours, peer), times):
            seconds = user.run(*command)
            if number:
                series.append(seconds)
    return statistics.median(times[0]) * 1000, statistics.median(times[1]) * 1000
