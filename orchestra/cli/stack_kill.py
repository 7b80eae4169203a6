"""`orchestra kill`: send a signal to the running tasks of services, on whichever nodes they are.

As with docker, a container that was killed (or sent its stop signal) is not restarted by its
policy; `orchestra start` brings it back.
"""

from __future__ import annotations

import argparse
from urllib.parse import quote

from orchestra.cli import project
from orchestra.model.errors import NotFound
from orchestra.model.task import TaskState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--signal", default="SIGKILL", help="for example SIGHUP, or 1")
    parser.add_argument("services", nargs="*", metavar="SERVICE", help="all where none is named")


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    tasks = client.tasks(name)
    services = project.services(client, name, tasks, args.services)
    running = [t for t in tasks if t.service in services and t.state is TaskState.RUNNING]
    if not running:
        raise NotFound(f"nothing of {', '.join(sorted(services)) or name} is running")
    for task in sorted(running, key=lambda t: t.slot):
        path = f"/containers/{quote(task.container)}/kill"
        client.engine(task.node).json("POST", path, query={"signal": args.signal})
        print(f"{task.slot}: sent {args.signal}")
    return 0
