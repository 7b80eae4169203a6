"""`orchestra cluster`: the clusters this user knows, and taking one over from its nodes."""

from __future__ import annotations

import argparse
from typing import Any

from orchestra.cli import context, session
from orchestra.cli.table import show
from orchestra.model.errors import Conflict


def register(subparsers: Any) -> None:
    ls = subparsers.add_parser("ls", aliases=["list"], help="list the clusters; * is the current")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--format", choices=("table", "json"), default="table")
    ls.set_defaults(run=run_ls)

    create = subparsers.add_parser("create", help="a cluster without nodes, as the current one")
    create.add_argument("name", metavar="NAME")
    create.set_defaults(run=run_create)

    use = subparsers.add_parser("use", help="make a cluster the current one")
    use.add_argument("name", metavar="CLUSTER")
    use.set_defaults(run=run_use)

    adopt = subparsers.add_parser("adopt", help="rebuild the controller's store from the nodes")
    adopt.set_defaults(run=run_adopt)

    rm = subparsers.add_parser("rm", help="forget a cluster; its nodes go on as they are")
    rm.add_argument("name", metavar="CLUSTER")
    rm.set_defaults(run=run_rm)


def run_ls(args: argparse.Namespace) -> int:
    names = context.names()
    if args.quiet:
        print("".join(f"{name}\n" for name in names), end="")
        return 0
    rows = []
    for name in names:
        cluster = context.load(name)
        rows.append(
            {
                "name": name,
                "current": name == context.current(),
                "controller": cluster.controller or "(session)",
                "inventory": cluster.inventory,
            }
        )
    if args.format == "table":
        rows = [{**row, "current": "*" if row["current"] else ""} for row in rows]
    show(rows, ("current", "name", "controller", "inventory"), args.format)
    return 0


def run_create(args: argparse.Namespace) -> int:
    if args.name in context.names():
        raise Conflict(f"there is a cluster {args.name!r} already; `orchestra cluster use` it")
    context.save(context.fresh(args.name))
    context.use(args.name)
    print(args.name)
    return 0


def run_use(args: argparse.Namespace) -> int:
    context.use(args.name)
    print(args.name)
    return 0


def run_adopt(args: argparse.Namespace) -> int:
    from orchestra.api.blocking import ClusterClient

    adopted = ClusterClient(session.connect(args)).adopt()
    print("\n".join(adopted) or "nothing to adopt: the nodes hold no newer state")
    return 0


def run_rm(args: argparse.Namespace) -> int:
    session.stop(context.load(args.name))
    context.forget(args.name)
    print(args.name)
    return 0
