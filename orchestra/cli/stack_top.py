"""`orchestra top`: the processes of the stack's tasks, each with its slot and node."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from orchestra.cli import project
from orchestra.cli.table import show
from orchestra.model.task import TaskState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("services", nargs="*", metavar="SERVICE")


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    tasks = client.tasks(name)
    services = project.services(client, name, tasks, args.services)
    rows: list[dict[str, str]] = []
    columns = ["slot", "node", "uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"]
    for task in sorted(tasks, key=lambda t: t.slot):
        if task.service in services and task.state is TaskState.RUNNING:
            path = f"/containers/{quote(task.container)}/top"
            seen = client.engine(task.node).json("GET", path)
            titles = [title.lower() for title in seen["Titles"]]
            for process in seen["Processes"]:
                rows.append({"slot": task.slot, "node": task.node, **dict(zip(titles, process))})
    show(rows, columns, args.format)
    return 0
