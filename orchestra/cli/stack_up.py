"""`orchestra up`: make the stack of this folder what the cluster runs, and wait until it is."""

from __future__ import annotations

import argparse
import sys
import time

from orchestra.api.blocking import ClusterClient
from orchestra.cli import project, stack_plan
from orchestra.cli.progress import follow, waiting_options
from orchestra.model.cluster import StackPhase, StartTask
from orchestra.model.errors import NotFound
from orchestra.model.service import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    waiting_options(parser)
    anyway = "what it does anyway; taken for compose's sake"
    parser.add_argument("--wait", action="store_true", help=anyway)
    parser.add_argument("--remove-orphans", action="store_true", help=anyway)


def same(client: ClusterClient, stack: Stack) -> bool:
    """Whether the cluster has this very stack already."""
    try:
        return client.stack(stack.name).stack == stack
    except NotFound:
        return False


def run(args: argparse.Namespace) -> int:
    loaded = project.load(args)
    project.refuse_relative_binds(loaded)
    name = loaded.stack.name
    client = project.cluster(args)
    info = client.info()
    started = time.monotonic()
    plan = client.plan(loaded.stack)
    if plan.empty and not plan.warnings:
        if not same(client, loaded.stack):  # in what starts and stops nothing: depends_on, say
            client.apply(loaded.stack, plan.generation)
        print(f"{name}: nothing to do")
        return 0
    for line in stack_plan.lines(plan):
        print(line)
    if not info.heals:
        print(
            "note: no controller is installed on a node, so the death of a node will not be "
            "healed; `orchestra controller install NODE` changes that",
            file=sys.stderr,
        )
    client.apply(loaded.stack, plan.generation)
    if args.detach:
        return 0
    starts = {action.slot for action in plan.actions if isinstance(action, StartTask)}
    if follow(client, name, args.timeout, starts).phase is not StackPhase.CONVERGED:
        return 1
    print(f"{name}: up in {time.monotonic() - started:.1f} s")
    return 0
