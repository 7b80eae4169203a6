"""`orchestra container ...`: the containers of one engine, with docker's words."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from orchestra.cli.engine import engine
from orchestra.cli.stack_exec import execute
from orchestra.cli.table import ago, show
from orchestra.model.errors import Failed


def register(subparsers: Any) -> None:
    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
        parser.add_argument("--node", metavar="NODE", help="the engine of this node")
        parser.set_defaults(run=run)
        return parser

    listing = command("ls", run_ls, "list containers")
    listing.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    listing.add_argument("-q", "--quiet", action="store_true", help="ids only")
    listing.add_argument("--format", choices=("table", "json"), default="table")
    inspect = command("inspect", run_inspect, "show all of containers as JSON")
    inspect.add_argument("names", nargs="+", metavar="CONTAINER")
    logs = command("logs", run_logs, "show a container's output")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("-n", "--tail", type=int, default=None, metavar="N")
    logs.add_argument("name", metavar="CONTAINER")
    run = command("exec", run_exec, "run a command in a container")
    run.add_argument("-T", "--no-tty", action="store_true", help="no terminal")
    run.add_argument("-d", "--detach", action="store_true")
    run.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE")
    run.add_argument("-u", "--user", default="")
    run.add_argument("-w", "--workdir", default="")
    run.add_argument("--privileged", action="store_true")
    run.add_argument("name", metavar="CONTAINER")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    for verb in ("start", "stop", "restart", "pause", "unpause"):
        parser = command(verb, run_verb, f"{verb} containers")
        parser.add_argument("names", nargs="+", metavar="CONTAINER")
        parser.set_defaults(verb=verb)
    kill = command("kill", run_kill, "send a signal to containers")
    kill.add_argument("-s", "--signal", default="SIGKILL")
    kill.add_argument("names", nargs="+", metavar="CONTAINER")
    remove = command("rm", run_rm, "remove containers")
    remove.add_argument("-f", "--force", action="store_true", help="kill a running one")
    remove.add_argument("-v", "--volumes", action="store_true", help="its anonymous volumes too")
    remove.add_argument("names", nargs="+", metavar="CONTAINER")


def run_ls(args: argparse.Namespace) -> int:
    found = engine(args).containers(all=args.all)
    if args.quiet:
        print("\n".join(c["Id"][:12] for c in found))
    elif args.format == "json":
        print(json.dumps(found, indent=2))
    else:
        rows = [
            {
                "container_id": c["Id"][:12],
                "image": c["Image"],
                "command": c["Command"][:30],
                "created": ago(c["Created"]),
                "status": c["Status"],
                "names": ", ".join(n.lstrip("/") for n in c["Names"]),
            }
            for c in found
        ]
        show(rows, ("container_id", "image", "command", "created", "status", "names"))
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    client = engine(args)
    print(json.dumps([client.inspect(name) for name in args.names], indent=2))
    return 0


def run_logs(args: argparse.Namespace) -> int:
    for entry in engine(args).logs(args.name, follow=args.follow, tail=args.tail):
        out = sys.stderr.buffer if entry.stream == 2 else sys.stdout.buffer
        out.write(entry.data)
        out.flush()
    return 0


def run_exec(args: argparse.Namespace) -> int:
    if not args.argv:
        raise Failed("name a command to run, for example `sh`")
    return execute(engine(args), args.name, args, args.argv)


def each(args: argparse.Namespace, path: str, method: str = "POST", **query: object) -> int:
    client = engine(args)
    for name in args.names:
        client.json(method, path.format(name=name), query=query)
        print(name)
    return 0


def run_verb(args: argparse.Namespace) -> int:
    return each(args, "/containers/{name}/" + args.verb)


def run_kill(args: argparse.Namespace) -> int:
    return each(args, "/containers/{name}/kill", signal=args.signal)


def run_rm(args: argparse.Namespace) -> int:
    return each(args, "/containers/{name}", "DELETE", force=args.force, v=args.volumes)
