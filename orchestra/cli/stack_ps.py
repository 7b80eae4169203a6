"""`orchestra ps`: the stack's tasks, over the whole cluster."""

from __future__ import annotations

import argparse
import sys

from orchestra.cli import project
from orchestra.cli.table import ago, show
from orchestra.model.codec import to_json
from orchestra.model.errors import NotFound
from orchestra.model.task import TERMINAL, TaskStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also tasks that ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="container ids only")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("services", nargs="*", metavar="SERVICE")


def state(task: TaskStatus) -> str:
    """The state in one phrase: "running (healthy)", "failed (exit 1)"."""
    text = task.state.value
    if task.health is not None and task.state not in TERMINAL:
        text += f" ({task.health.value})"
    elif task.exit_code is not None and task.state in TERMINAL:
        text += f" (exit {task.exit_code})"
    return text


def row(task: TaskStatus) -> dict[str, str]:
    return {
        "slot": task.slot,
        "node": task.node or "-",
        "state": state(task),
        "since": ago(task.started or task.created),
        "restarts": str(task.restarts or ""),
        "image": task.image,
        "ports": ", ".join(task.ports),
        "note": task.error,
    }


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    try:
        found = client.tasks(name)
        services = project.services(client, name, found, args.services)
    except NotFound:
        if args.services:
            raise
        found, services = (), set()
        print(f"stack {name} is not up; `orchestra up` starts it", file=sys.stderr)
    tasks = sorted(
        (t for t in found if t.service in services and (args.all or t.desired == "running")),
        key=lambda t: (t.service, t.slot, -t.created),
    )
    if args.quiet:
        for task in tasks:
            if task.container:
                print(task.container)
    elif args.format == "json":
        show([to_json(t) for t in tasks], (), "json")
    else:
        show([row(t) for t in tasks], list(row(EMPTY)), "table")
    return 0


EMPTY = TaskStatus("", "", "", "", "", next(iter(TERMINAL)), "")
