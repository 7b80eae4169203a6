"""`orchestra start`: start services that `stop` stopped."""

from __future__ import annotations

import argparse

from orchestra.cli import project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("services", nargs="*", metavar="SERVICE", help="all where none is named")


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    project.cluster(args).start_services(name, args.services)
    print(f"{name}: started {', '.join(args.services) or 'all services'}")
    return 0
