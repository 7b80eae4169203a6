"""`orchestra agent run`: an engine on this host, without a cluster or SSH.

It serves the Docker Engine API on its socket: point DOCKER_HOST (or ORCHESTRA_HOST) at it.
"""

from __future__ import annotations

import argparse
from typing import Any

from orchestra.model.paths import NodePaths


def register(subparsers: Any) -> None:
    text = "run the engine in the foreground"
    parser = subparsers.add_parser("run", help=text, description=text)
    parser.add_argument("--state", default=NodePaths().state, help="what survives reboots")
    parser.add_argument("--run-dir", default=NodePaths().run, help="sockets")
    parser.set_defaults(run=run_agent)


def run_agent(args: argparse.Namespace) -> int:
    from orchestra.cli import serve

    return serve.main(["agent", "--state", args.state, "--run", args.run_dir])
