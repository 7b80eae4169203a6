"""`orchestra stop | start | restart`: services of a stack halt, come back, or both in place."""

from __future__ import annotations

import argparse

from orchestra.cli import project
from orchestra.cli.progress import follow, waiting_options
from orchestra.model.cluster import StackPhase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    waiting_options(parser)
    parser.add_argument("services", nargs="*", metavar="SERVICE", help="all where none is named")


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    ask, done = {
        "stop": (client.stop_services, "stopped"),
        "start": (client.start_services, "started"),
        "restart": (client.restart_services, "restarted"),
    }[args.command]
    ask(name, args.services)
    if not args.detach and follow(client, name, args.timeout).phase is not StackPhase.CONVERGED:
        return 1
    print(f"{name}: {done} {', '.join(args.services) or 'all services'}")
    return 0
