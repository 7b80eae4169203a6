"""`python -m orchestra.testing.sim`: many seeds of nemesis, one after the other, in virtual time.

Prints a line per seed; a law that breaks is printed with the history that broke it, and the exit
code is 1. The same seed always does the same.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from random import Random

import trio
import trio.testing

from orchestra.testing.sim.nemesis import Broken, Nemesis
from orchestra.testing.sim.world import open_world


def play(seed: int, steps: int, nodes: int = 3) -> list[str]:
    """Harm a fresh world as `seed` says; the history. Raises Broken."""

    async def main() -> list[str]:
        with tempfile.TemporaryDirectory() as directory:
            async with open_world(directory, nodes) as world:
                nemesis = Nemesis(world, Random(seed))
                await nemesis.run(steps)
                return nemesis.history

    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        for error in _leaves(group):
            if isinstance(error, Broken):
                raise error from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestra.testing.sim", description=__doc__)
    parser.add_argument("--first", type=int, default=1, metavar="SEED")
    parser.add_argument("--seeds", type=int, default=50, metavar="N")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="harmful things each")
    parser.add_argument("--nodes", type=int, default=3, metavar="N")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every history")
    args = parser.parse_args(argv)
    logging.disable()  # what goes wrong is on purpose
    broken = 0
    for seed in range(args.first, args.first + args.seeds):
        started = time.monotonic()
        try:
            history = play(seed, args.steps, args.nodes)
        except Broken as error:
            broken += 1
            print(f"seed {seed}: BROKEN: {error}", flush=True)
            continue
        print(f"seed {seed}: holds ({time.monotonic() - started:.1f} s)", flush=True)
        if args.verbose:
            print("\n".join(history))
    print(f"{args.seeds - broken} of {args.seeds} seeds hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
