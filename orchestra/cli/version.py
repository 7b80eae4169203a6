"""`orchestra version`: what runs where, and whether it is of one age."""

from __future__ import annotations

import argparse
import json

import orchestra
from orchestra.cli import project
from orchestra.cli.table import show
from orchestra.model.errors import OrchestraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--client", action="store_true", help="the client only; asks nobody")


def run(args: argparse.Namespace) -> int:
    rows = [{"what": "client", "version": orchestra.__version__, "note": ""}]
    if not args.client:
        try:
            client = project.cluster(args)
            info = client.info()
            rows.append({"what": f"controller ({info.role})", "version": info.version, "note": ""})
            for status in client.nodes():
                version = status.facts.agent_version if status.facts else "?"
                rows.append(
                    {"what": f"agent on {status.node.name}", "version": version, "note": ""}
                )
        except OrchestraError as error:
            rows.append({"what": "controller", "version": "?", "note": str(error)})
    for row in rows:
        if row["version"] not in ("?", orchestra.__version__):
            row["note"] = f"differs from the client's {orchestra.__version__}"
    if args.format == "json":
        print(json.dumps(rows, indent=2))
    else:
        show(rows, ("what", "version", "note"))
    return 0
