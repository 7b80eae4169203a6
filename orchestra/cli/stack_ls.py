"""`orchestra ls`: the stacks of the cluster, and how much of each is up."""

from __future__ import annotations

import argparse

from orchestra.api.blocking import ClusterClient
from orchestra.cli import project
from orchestra.cli.table import ago, show
from orchestra.model.cluster import StackRecord
from orchestra.model.container import HealthStatus
from orchestra.model.node import TaskState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def row(client: ClusterClient, record: StackRecord) -> dict[str, str | int]:
    """One stack: its tasks by state, as "running(3) complete(1)"."""
    states: dict[str, int] = {}
    for task in client.tasks(record.stack.name):
        if task.desired == "running":
            unhealthy = task.state is TaskState.RUNNING and task.health is HealthStatus.UNHEALTHY
            word = "unhealthy" if unhealthy else task.state.value
            states[word] = states.get(word, 0) + 1
    status = " ".join(f"{word}({count})" for word, count in sorted(states.items()))
    return {
        "name": record.stack.name,
        "status": "removing" if record.removing else status or "stopped",
        "services": len(record.stack.services),
        "revision": record.revision,
        "updated": ago(record.updated),
    }


def run(args: argparse.Namespace) -> int:
    client = project.cluster(args)
    stacks = client.stacks()
    if args.quiet:
        for record in stacks:
            print(record.stack.name)
        return 0
    rows = [row(client, record) for record in stacks]
    show(rows, ("name", "status", "services", "revision", "updated"), args.format)
    return 0
