"""Signal names as clients write them: "TERM", "SIGTERM", "15", "RTMIN+3"."""

from __future__ import annotations

import re
import signal

from orchestra.model.errors import Invalid


def signal_number(text: str) -> int:
    """Return the number; Invalid where there is no such signal (signal(7))."""
    name = text.upper().removeprefix("SIG")
    if name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    if match := re.fullmatch(r"RTM(IN|AX)(?:([+-])(\d+))?", name):
        base = signal.SIGRTMIN if match[1] == "IN" else signal.SIGRTMAX
        number = base + int(f"{match[2] or '+'}{match[3] or 0}")
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    elif f"SIG{name}" in signal.Signals.__members__:
        return signal.Signals[f"SIG{name}"].value
    raise Invalid(f"Invalid signal: {text}")
