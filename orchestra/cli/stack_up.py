"""`orchestra up`: make the stack of this folder what the cluster runs, and wait until it is."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestra.cli import project, stack_plan
from orchestra.model.cluster import Progress, StackPhase
from orchestra.model.errors import Failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait until healthy")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait (0: ever)"
    )


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError naming `what` after `seconds` (0: never), also out of a blocking read."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"timed out after {seconds:g} s waiting for {what}")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def follow(progress: Iterator[Progress]) -> Progress | None:
    """Print live progress and return its last line (None: the stream broke off)."""
    live = sys.stdout.isatty()
    last = None
    shown = ""
    for last in progress:
        text = f"[{last.running}/{last.desired}] {last.text}" if last.desired else last.text
        if text == shown:
            continue
        shown = text
        if live:
            print(f"\r\x1b[K{text[:200]}", end="" if not last.log_tail else "\n", flush=True)
        else:
            print(text, flush=True)
        for line in last.log_tail:
            print(f"    | {line}")
    if live and shown:
        print()
    return last


def run(args: argparse.Namespace) -> int:
    loaded = project.load(args)
    project.refuse_relative_binds(loaded)
    client = project.cluster(args)
    info = client.info()
    started = time.monotonic()
    plan = client.plan(loaded.stack)
    if plan.empty:
        print(f"{loaded.stack.name}: nothing to do")
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
    with deadline(args.timeout, f"stack {loaded.stack.name}"):
        last = follow(client.progress(loaded.stack.name))
    if last is None:
        raise Failed("the controller closed the progress stream; `orchestra ps` shows the state")
    if last.phase is not StackPhase.CONVERGED:
        return 1
    print(f"{loaded.stack.name}: up in {time.monotonic() - started:.1f} s")
    return 0
