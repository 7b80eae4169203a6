"""`orchestra cluster`: the clusters this user knows, and taking one over from its nodes."""

from __future__ import annotations

import argparse
from typing import Any

from orchestra.cli import context, session
from orchestra.cli.table import show
from orchestra.model.errors import Conflict, Failed, NotFound

# The private network of our Vagrantfile, and the only one that VirtualBox allows by itself.
VAGRANT_NETWORK = "192.168.56.0/24"


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

    vagrant = subparsers.add_parser("import-vagrant", help="add the machines of a Vagrantfile")
    vagrant.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="its folder (.)")
    vagrant.add_argument(
        "--underlay", default=VAGRANT_NETWORK, metavar="IFACE|SUBNET", help="the private network"
    )
    vagrant.add_argument("--ssh-config", default="", metavar="FILE", help="`vagrant ssh-config`")
    vagrant.add_argument(
        "--no-controller", action="store_true", help="install no controller on the first machine"
    )
    vagrant.set_defaults(run=run_import_vagrant)

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


def run_import_vagrant(args: argparse.Namespace) -> int:
    """`vagrant up` made the machines, on this host: their keys are believed at first sight."""
    from orchestra.cli import hosts

    if args.ssh_config:
        with open(args.ssh_config) as file:
            text = file.read()
    else:
        text = _ssh_config(args.folder)
    nodes = hosts.machines(text, args.underlay)
    if not nodes:
        raise NotFound(f"no machine of {args.folder}/Vagrantfile runs; `vagrant up` starts them")
    cluster = context.fresh(args.cluster or "vagrant")
    if cluster.name in context.names():
        cluster = context.load(cluster.name)
    for node in nodes:
        added = hosts.add(cluster, node, hosts.Trust(accept_new=True), install=True)
        print(f"{node.name}: {added.node.address}, underlay {added.node.underlay}", flush=True)
    context.use(cluster.name)
    if not args.no_controller:
        home = cluster.controller or nodes[0].name
        hosts.hand_over(hosts.install_controller(context.load(cluster.name), home))
        print(f"{cluster.name}: controller on {home}")
    return 0


def _ssh_config(folder: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["vagrant", "ssh-config"], cwd=folder, stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError as error:
        what = "the folder" if error.filename == folder else "the command vagrant"
        raise NotFound(f"there is no {error.filename}: {what} is missing") from None
    if done.returncode:
        raise Failed(f"`vagrant ssh-config` in {folder} ended with {done.returncode}")
    return done.stdout


def run_rm(args: argparse.Namespace) -> int:
    session.stop(context.load(args.name))
    context.forget(args.name)
    print(args.name)
    return 0
