"""`orchestra down`: stop the stack in reverse dependency order and remove what it made."""

from __future__ import annotations

import argparse

from orchestra.cli import project
from orchestra.cli.progress import follow, waiting_options
from orchestra.model.cluster import StackPhase
from orchestra.model.errors import NotFound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--volumes", action="store_true", help="also remove named volumes")
    waiting_options(parser)
    anyway = "what it does anyway; taken for compose's sake"
    parser.add_argument("--remove-orphans", action="store_true", help=anyway)


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    try:
        client.stack(name)
    except NotFound:
        print(f"{name}: nothing to remove")
        return 0
    client.remove_stack(name, args.volumes)
    if args.detach:
        return 0
    try:
        if follow(client, name, args.timeout).phase is not StackPhase.REMOVED:
            return 1
    except NotFound:
        pass  # gone before we could look
    print(f"{name}: removed")
    return 0
