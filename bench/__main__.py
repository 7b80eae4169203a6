"""Runs the measurements of every group (or of ONLY=group), prints a table, writes build/bench.json.

A measurement is a dict {group, name, unit, ours, budget, peer, peer_value, better}; `better` says
whether lower or higher is. Ratios in one run are what counts: the machine's speed drifts, so ours
and the peer's rounds alternate. All of it runs at the highest priority, peers alike, so that a
neighbour's work is measured as little as possible. Nothing here asserts a time.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

MODULES = {
    "engine": ("bench.engine",),
    "images": ("bench.images",),
    "cluster": ("bench.cluster", "bench.fabric", "bench.commands"),
    "compose": ("bench.compose",),
}
OUT = Path("build/bench.json")


def line(row: dict[str, Any]) -> str:
    """One row of the table: ours, the budget and what it means, the peer and the ratio."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

    lower = row["better"] == "lower"
    budget = row["budget"]
    verdict = ""
    if budget is not None:
        verdict = "ok" if (row["ours"] <= budget) == lower or row["ours"] == budget else "MISSED"
    ratio = ""
    if row["peer_value"]:
        factor = row["peer_value"] / row["ours"] if lower else row["ours"] / row["peer_value"]
        ratio = f"{factor:.2f}x"
    return (
        f"{row['group']:<8} {row['name']:<58} {number(row['ours']):>9} {row['unit']:<8} "
        f"{number(budget):>8} {verdict:<7} {row['peer'] or '-':<22} "
        f"{number(row['peer_value']):>9} {ratio:>8}"
    )


def main() -> int:
    only = os.environ.get("ONLY", "")
    if only and only not in MODULES:
        print(f"no group {only!r}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    rounds = int(os.environ.get("ROUNDS", "30"))
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    rows: list[dict[str, Any]] = []
    print(
        f"{'group':<8} {'measured':<58} {'ours':>9} {'unit':<8} {'budget':>8} {'':<7} "
        f"{'peer':<22} {'peer':>9} {'better':>8}"
    )
    for group, modules in MODULES.items():
        if only and group != only:
            continue
        for module in modules:
            for row in importlib.import_module(module).measure(rounds):
                rows.append(row)
                print(line(row), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
