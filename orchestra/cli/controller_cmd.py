"""`orchestra controller`: the controller as a daemon on a node, healing while nobody watches."""

from __future__ import annotations

import argparse
from typing import Any

from orchestra.cli import context, session
from orchestra.cli.table import show
from orchestra.model.codec import to_json


def register(subparsers: Any) -> None:
    install = subparsers.add_parser("install", help="make a node its home, or upgrade it there")
    install.add_argument("node", metavar="NODE")
    install.set_defaults(run=run_install)

    uninstall = subparsers.add_parser("uninstall", help="back to the session of the command line")
    uninstall.set_defaults(run=run_uninstall)

    status = subparsers.add_parser("status", help="what controls the cluster")
    status.add_argument("--format", choices=("table", "json"), default="table")
    status.set_defaults(run=run_status)


def run_install(args: argparse.Namespace) -> int:
    from orchestra.cli import hosts

    moved = hosts.install_controller(context.chosen(args), args.node)
    print(f"{moved.name}: controller on {args.node}")
    print("".join(f"  took over {line}\n" for line in hosts.hand_over(moved)), end="")
    return 0


def run_uninstall(args: argparse.Namespace) -> int:
    from orchestra.cli import hosts

    cluster = context.chosen(args)
    unreached = hosts.uninstall_controller(cluster)
    print(f"{cluster.name}: no controller on {cluster.controller} any more")
    for name in unreached:
        print(f"{name} could not be reached: the controller's key is still authorized there")
    hosts.hand_over(context.load(cluster.name))
    return 0


def run_status(args: argparse.Namespace) -> int:
    from orchestra.api.blocking import ClusterClient

    info = to_json(ClusterClient(session.connect(args)).info())
    if args.format == "json":
        show([info], (), "json")
    else:
        show([{"what": key, "is": value} for key, value in info.items()], ("what", "is"))
    return 0
