"""`orchestra down`: stop the stack in reverse dependency order and remove what it made."""

from __future__ import annotations

import argparse

from orchestra.cli import project
from orchestra.cli.stack_up import deadline, follow
from orchestra.model.cluster import StackPhase
from orchestra.model.errors import NotFound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--volumes", action="store_true", help="also remove named volumes")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait (0: ever)"
    )


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    try:
        client.stack(name)
    except NotFound:
        print(f"{name}: nothing to remove")
        return 0
    client.remove_stack(name, args.volumes)
    with deadline(args.timeout, f"the removal of stack {name}"):
        last = follow(client.progress(name))
    if last is not None and last.phase is StackPhase.FAILED:
        return 1
    print(f"{name}: removed")
    return 0
