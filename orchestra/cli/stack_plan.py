"""`orchestra plan`: what `up` would change and why; changes nothing."""

from __future__ import annotations

import argparse
import json

from orchestra.cli import project
from orchestra.model.cluster import Plan
from orchestra.model.codec import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="exit 3 if something would change")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def lines(plan: Plan) -> list[str]:
    """The plan as text: actions, what waits, what cannot be done, warnings."""
    out = [str(action) for action in plan.actions]
    out += [f"wait {w.slot}: {w.because}" for w in plan.waiting]
    out += [f"cannot place {b.slot}: {b.because}" for b in plan.blocked]
    out += [f"warning: {w}" for w in plan.warnings]
    if plan.unseen:
        out.append(f"warning: could not ask {', '.join(plan.unseen)}; its tasks are as last known")
    return out


def run(args: argparse.Namespace) -> int:
    loaded = project.load(args)
    project.refuse_relative_binds(loaded)
    plan = project.cluster(args).plan(loaded.stack)
    if args.format == "json":
        print(json.dumps(to_json(plan), indent=2))
    elif plan.empty and not plan.warnings:
        print(f"{loaded.stack.name}: nothing to do")
    else:
        print(f"{loaded.stack.name} (generation {plan.generation}):")
        for line in lines(plan):
            print("  " + line.replace("\n", "\n  "))
    return 3 if args.check and plan.actions else 0
