"""`orchestra events`: what the controller does for the stack, as it happens, until interrupted."""

from __future__ import annotations

import argparse
import json
import time

from orchestra.cli import project
from orchestra.model.codec import to_json
from orchestra.model.event import Event


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def line(event: Event) -> str:
    """ "2026-11-25T17:00:00Z task start web.1 on node2: it shall run"."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.time_ns / 1e9))
    node = event.attributes.get("node")
    because = event.attributes.get("because", "").partition("\n")[0]
    where = f" on {node}" if node else ""
    return f"{at} {event.type} {event.action} {event.id}{where}" + (
        f": {because}" if because else ""
    )


def run(args: argparse.Namespace) -> int:
    name = project.stack_name(args)
    for event in project.cluster(args).events():
        if name in (event.attributes.get("stack", name), event.id):
            print(json.dumps(to_json(event)) if args.json else line(event), flush=True)
    return 0
