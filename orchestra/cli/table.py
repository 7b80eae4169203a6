"""Tables on a terminal, JSON for programs: how every listing is printed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], style: str = "table") -> None:
    """Print `rows`; columns are the keys shown, upper-cased as headings. style: table or json."""
    if style == "json":
        print(json.dumps([dict(row) for row in rows], indent=2))
        return
    widths = [max([len(c), *(len(str(row.get(c, ""))) for row in rows)]) for c in columns]
    print(
        "   ".join(c.upper().replace("_", " ").ljust(w) for c, w in zip(columns, widths)).rstrip()
    )
    for row in rows:
        print("   ".join(str(row.get(c, "")).ljust(w) for c, w in zip(columns, widths)).rstrip())


def ago(moment: float) -> str:
    """How long ago a Unix time was, in a listing's words."""
    if not moment:
        return ""
    seconds = max(0, int(time.time() - moment))
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'' if seconds == 1 else 's'} ago"
