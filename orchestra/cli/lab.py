"""`orchestra lab`: a cluster of namespace hosts on this machine, to try and to test things on."""

from __future__ import annotations

import argparse
from typing import Any

from orchestra.cli.table import show


def register(subparsers: Any) -> None:
    def command(word: str, text: str, run: Any) -> Any:
        parser = subparsers.add_parser(word, help=text, description=text)
        parser.add_argument("--name", default="lab", metavar="LAB", help='which lab ("lab")')
        parser.set_defaults(run=run)
        return parser

    up = command("up", "make hosts, a cluster of them and its controller", run_up)
    up.add_argument("--nodes", type=int, default=3, metavar="N")
    up.add_argument(
        "--no-controller", action="store_true", help="no daemon: the session is the controller"
    )
    up.add_argument("--bare", action="store_true", help="hosts only: no agent, no controller")
    command("down", "take everything of the lab away", run_down)
    ls = subparsers.add_parser("ls", aliases=["list"], help="list the hosts of all labs")
    ls.add_argument("--format", choices=("table", "json"), default="table")
    ls.add_argument("-q", "--quiet", action="store_true", help="names of labs only")
    ls.set_defaults(run=run_ls)
    for word, text in (
        ("cut", "pull a host's network cable"),
        ("heal", "plug the cable back in"),
        ("kill", "cut a host's power; its disk stays"),
        ("boot", "switch a host on"),
    ):
        command(word, text, run_power).add_argument("node", metavar="NODE")
        subparsers.choices[word].set_defaults(verb=word)
    inside = command("exec", "run a command on a host, as its root", run_exec)
    inside.add_argument("node", metavar="NODE")
    inside.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD...")
    client = command("client", "run a command on a machine outside the cluster", run_client)
    client.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD...")


def run_up(args: argparse.Namespace) -> int:
    import time

    from orchestra.testing.lab import hosts, making

    started = time.monotonic()
    if args.bare:
        lab = making.create(args.name, args.nodes)
        hosts.over_all(lab, hosts.boot)
    else:
        from orchestra.testing.lab import cluster

        lab = cluster.up(args.name, args.nodes, controller=not args.no_controller)
    names = ", ".join(f"{host.name} {host.address}" for host in lab.hosts)
    print(f"lab {lab.name}: up in {time.monotonic() - started:.1f} s ({names})")
    return 0


def run_down(args: argparse.Namespace) -> int:
    from orchestra.testing.lab import cluster

    cluster.down(args.name)
    return 0


def run_ls(args: argparse.Namespace) -> int:
    from orchestra.model.errors import NotFound
    from orchestra.testing.lab import hosts

    rows = []
    for name in hosts.names():
        try:
            lab = hosts.load(name)
        except NotFound:
            rows.append({"lab": name, "node": "", "state": "half-made; `lab down` removes it"})
            continue
        for host in lab.hosts:
            state = hosts.states(lab)[host.name]
            row = {"lab": name, "node": host.name, "address": host.address, "state": state}
            rows.append(row)
    if args.quiet:
        print("".join(f"{name}\n" for name in hosts.names()), end="")
    else:
        show(rows, ("lab", "node", "address", "state"), args.format)
    return 0


def run_power(args: argparse.Namespace) -> int:
    from orchestra.testing.lab import hosts

    lab = hosts.load(args.name)
    getattr(hosts, args.verb)(lab, lab.host(args.node))
    print(args.node)
    return 0


def run_exec(args: argparse.Namespace) -> int:
    import os

    from orchestra.model.errors import Invalid
    from orchestra.testing.lab import hosts

    lab = hosts.load(args.name)
    if not args.words:
        raise Invalid("say what to run: orchestra lab exec NODE CMD...")
    command = hosts.on_host(lab, lab.host(args.node), args.words)
    os.execvp(command[0], command)


def run_client(args: argparse.Namespace) -> int:
    from orchestra.model.errors import Invalid
    from orchestra.testing.lab import hosts

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise Invalid("say what to run: orchestra lab client CMD...")
    hosts.exec_as_client(hosts.load(args.name), words)
    raise AssertionError("exec does not return")
