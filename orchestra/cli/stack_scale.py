"""`orchestra scale SERVICE=N ...`: set replica counts and wait until they are reached."""

from __future__ import annotations

import argparse

from orchestra.cli import project
from orchestra.cli.progress import follow, waiting_options
from orchestra.model.cluster import StackPhase
from orchestra.model.errors import Invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    waiting_options(parser)
    parser.add_argument("replicas", nargs="+", metavar="SERVICE=N")


def wish(text: str) -> tuple[str, int]:
    service, _, number = text.partition("=")
    if not service or not number.isdigit():
        raise Invalid(f"cannot read {text!r}: write SERVICE=NUMBER, for example web=3")
    return service, int(number)


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    client.scale(name, dict(wish(text) for text in args.replicas))
    if args.detach:
        return 0
    return 0 if follow(client, name, args.timeout).phase is StackPhase.CONVERGED else 1
