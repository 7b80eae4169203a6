"""`orchestra images`: the images of the stack's services, as they were found at the last `up`."""

from __future__ import annotations

import argparse

from orchestra.cli import project
from orchestra.cli.table import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="image ids only")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("services", nargs="*", metavar="SERVICE")


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    client = project.cluster(args)
    record = client.stack(name)
    tasks = client.tasks(name)
    services = project.services(client, name, tasks, args.services or [*record.stack.services])
    nodes: dict[str, set[str]] = {service: set() for service in services}
    for task in tasks:
        if task.container and task.service in nodes:
            nodes[task.service].add(task.node)
    rows = []
    for service in sorted(services):
        need = record.images[record.stack.services[service].image]
        image = need.id.removeprefix("sha256:")[:12]
        where = ", ".join(sorted(nodes[service]))
        rows.append({"service": service, "image": need.image, "image_id": image, "nodes": where})
    if args.quiet:
        for image in dict.fromkeys(row["image_id"] for row in rows):
            print(image)
        return 0
    show(rows, ("service", "image", "image_id", "nodes"), args.format)
    return 0
