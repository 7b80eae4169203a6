"""`orchestra port SERVICE PORT`: the addresses at which a service's port answers.

A port that every node answers is listed with every node's address; one of a task's own node
(`mode: host`) with that node's.
"""

from __future__ import annotations

import argparse
import re

from orchestra.cli import project
from orchestra.model.errors import Invalid, NotFound

_PUBLISHED = re.compile(r"(?P<host>.*):(?P<number>\d+)->(?P<target>\d+)/(?P<protocol>\w+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
    parser.add_argument("--index", type=int, help="number of the replica (web.2 is 2)")
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("port", metavar="PORT", help="the container's port: 80, or 53/udp")


def run(args: argparse.Namespace) -> int:
    number, _, protocol = args.port.partition("/")
    if not number.isdigit():
        raise Invalid(f"cannot read port {args.port!r}: write 80 or 53/udp")
    name = project.stack_name(args)
    client = project.cluster(args)
    tasks = [t for t in client.tasks(name) if t.desired == "running"]
    project.services(client, name, tasks, [args.service])
    addresses = {status.node.name: status.node.address for status in client.nodes()}
    wanted = f"{args.service}.{args.index}" if args.index is not None else ""
    found: set[str] = set()
    for task in tasks:
        if task.service != args.service or (wanted and task.slot != wanted):
            continue
        for text in task.ports:
            port = _PUBLISHED.fullmatch(text)
            if port is None or port["target"] != number:
                continue
            if port["protocol"] != (protocol or args.protocol):
                continue
            hosts = {"*": addresses.values(), "node": (addresses.get(task.node, ""),)}
            for host in hosts.get(port["host"], (port["host"],)):
                found.add(f"{host}:{port['number']}")
    if not found:
        raise NotFound(
            f"{wanted or args.service} does not publish {number}/{protocol or args.protocol}"
        )
    for line in sorted(found):
        print(line)
    return 0
