"""`orchestra node`: the cluster's nodes, from bare hosts to draining."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from orchestra.cli import context, session
from orchestra.cli.table import show
from orchestra.model.cluster import NodeStatus
from orchestra.model.codec import to_json
from orchestra.model.errors import Invalid, NotFound
from orchestra.model.node import Availability, InventoryNode

if TYPE_CHECKING:
    from orchestra.api.blocking import ClusterClient


def register(subparsers: Any) -> None:
    add = subparsers.add_parser("add", help="make a host a node, or upgrade it in place")
    add.add_argument("name", metavar="NAME")
    add.add_argument("target", metavar="USER@HOST[:PORT]")
    add.add_argument(
        "--underlay", default="", metavar="ADDR|IFACE|SUBNET", help="how other nodes reach it"
    )
    add.add_argument("--label", action="append", metavar="K=V")
    add.add_argument("--identity", default="", metavar="FILE", help="private key for SSH")
    add.add_argument("--jump", default="", metavar="USER@HOST", help="go through this host")
    add.add_argument("--install", action="store_true", help="fetch packages that are missing")
    trust = add.add_mutually_exclusive_group()
    trust.add_argument("--accept-new", action="store_true", help="pin the key that it shows")
    trust.add_argument("--host-key", default="", metavar="FINGERPRINT", help="SHA256:...")
    add.set_defaults(run=run_add)

    ls = subparsers.add_parser("ls", aliases=["list"], help="list the nodes")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--format", choices=("table", "json"), default="table")
    ls.set_defaults(run=run_ls)

    inspect = subparsers.add_parser("inspect", help="all that is known of nodes, as JSON")
    inspect.add_argument("names", nargs="+", metavar="NODE")
    inspect.set_defaults(run=run_inspect)

    rm = subparsers.add_parser("rm", help="take nodes out; their hosts become plain hosts again")
    rm.add_argument("names", nargs="+", metavar="NODE")
    rm.add_argument("--purge", action="store_true", help="volumes and images too")
    rm.add_argument("--force", action="store_true", help="also with tasks on it, or out of reach")
    rm.set_defaults(run=run_rm)

    for word, text in (
        ("drain", "move tasks away and give it none"),
        ("activate", "let it take tasks again"),
    ):
        parser = subparsers.add_parser(word, help=text)
        parser.add_argument("names", nargs="+", metavar="NODE")
        parser.set_defaults(run=run_drain if word == "drain" else run_activate)

    label = subparsers.add_parser("label", help="set labels; KEY- removes one")
    label.add_argument("name", metavar="NODE")
    label.add_argument("labels", nargs="+", metavar="K=V|K-")
    label.set_defaults(run=run_label)


def run_add(args: argparse.Namespace) -> int:
    import os

    from orchestra.cli import hosts

    user, address, port = hosts.read_target(args.target)
    if args.jump:
        hosts.read_target(args.jump)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", args.name):
        raise Invalid(f"{args.name!r} cannot be a node's name: letters, digits, '.', '_', '-'")
    node = InventoryNode(
        name=args.name,
        address=address,
        user=user,
        port=port,
        identity=os.path.abspath(args.identity) if args.identity else "",
        underlay=args.underlay,
        jump=args.jump,
        labels=hosts.options(args.label),
    )
    trust = hosts.Trust(args.accept_new, args.host_key)
    added = hosts.add(context.chosen_or_first(args), node, trust, args.install)
    verb = "upgraded" if added.upgraded else "added"
    print(f"{node.name}: {verb}, agent {added.facts.agent_version}, underlay {added.node.underlay}")
    return 0


def cluster(args: argparse.Namespace) -> ClusterClient:
    from orchestra.api.blocking import ClusterClient

    return ClusterClient(session.connect(args))


def listed(status: NodeStatus) -> dict[str, Any]:
    """One node as `ls --format json` shows it."""
    return {
        "name": status.node.name,
        "address": status.node.address,
        "state": status.state.value,
        "availability": status.availability.value,
        "labels": dict(status.node.labels),
        "agent_version": status.facts.agent_version if status.facts else "",
        "underlay": status.node.underlay,
        "id": status.id,
        "reason": status.reason,
    }


def run_ls(args: argparse.Namespace) -> int:
    statuses = sorted(cluster(args).nodes(), key=lambda s: s.node.name)
    if args.quiet:
        print("".join(f"{s.node.name}\n" for s in statuses), end="")
        return 0
    rows = [listed(s) for s in statuses]
    if args.format == "table":
        for row in rows:
            row["labels"] = ", ".join(f"{k}={v}" for k, v in row["labels"].items())
    columns = ("name", "address", "state", "availability", "agent_version", "labels", "reason")
    show(rows, columns, args.format)
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    statuses = {s.node.name: s for s in cluster(args).nodes()}
    unknown = [name for name in args.names if name not in statuses]
    if unknown:
        known = ", ".join(sorted(statuses)) or "none"
        raise NotFound(f"no node named {', '.join(unknown)}; the cluster's nodes: {known}")
    print(json.dumps([to_json(statuses[name]) for name in args.names], indent=2))
    return 0


def run_rm(args: argparse.Namespace) -> int:
    from orchestra.cli import hosts

    for name in args.names:
        hosts.remove(context.chosen(args), name, purge=args.purge, force=args.force)
        print(name)
    return 0


def run_drain(args: argparse.Namespace) -> int:
    return _set(args, Availability.DRAIN)


def run_activate(args: argparse.Namespace) -> int:
    return _set(args, Availability.ACTIVE)


def _set(args: argparse.Namespace, availability: Availability) -> int:
    client = cluster(args)
    for name in args.names:
        client.set_availability(name, availability)
        print(name)
    return 0


def run_label(args: argparse.Namespace) -> int:
    from orchestra.cli import hosts

    labels: dict[str, str | None] = {}
    for text in args.labels:
        if text.endswith("-") and "=" not in text:
            labels[text[:-1]] = None
        else:
            labels.update(hosts.options([text]))
    hosts.label(context.chosen(args), args.name, labels)
    print(args.name)
    return 0
