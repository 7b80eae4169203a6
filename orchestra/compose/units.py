"""Amounts as compose files write them: durations, byte sizes, numbers as text.

Grammar and spelling are those of the compose specification (11-extension: durations, byte values)
and of Go's formatting, which compose's own output uses.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)")
_SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "w": Decimal(7 * 86400),
}
_EXPONENT_FROM = 6
_BYTES = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgtp]?)(i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def duration(value: Any) -> float:
    """Seconds of a duration like `1m30s`. Raises ValueError; a bare number is none (no unit)."""
    text = str(value).strip()
    if text == "0":
        return 0.0
    sign = -1 if text[:1] == "-" else 1
    body = text.lstrip("+-")
    total, index = Decimal(0), 0
    for part in _DURATION.finditer(body):
        if part.start() != index:
            break
        total += Decimal(part.group(1)) * _SECONDS[part.group(2)]
        index = part.end()
    if index != len(body) or not body:
        raise ValueError(f"{value!r} is no duration; give a number with a unit, like 90s or 1m30s")
    return float(total * sign)


def spell_duration(seconds: float) -> str:
    """A duration in Go's spelling: 1m30s, 500ms, 2h0m0s, 0s."""
    nanoseconds = round(Decimal(repr(seconds)) * 1_000_000_000)
    if nanoseconds < 0:
        return "-" + spell_duration(-seconds)
    if not nanoseconds:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < size * 1000:
            return f"{_trim(Decimal(nanoseconds) / size)}{unit}"
    hours, rest = divmod(nanoseconds, 3600 * 10**9)
    minutes, rest = divmod(rest, 60 * 10**9)
    text = f"{_trim(Decimal(rest) / 10**9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _trim(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def byte_size(value: Any) -> int:
    """Bytes of an amount like 64m, 1.5gb or 4096; units are powers of 1024. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if text == "-1":
        return -1
    match = _BYTES.fullmatch(text)
    if not match:
        raise ValueError(f"{value!r} is no size; give a number with b, k, m, g or t, like 64m")
    return int(Decimal(match.group(1)) * 1024 ** _POWERS[match.group(2).lower()])


def go_integer(text: str) -> int | None:
    """The integer that `text` spells in any base (`0x1f`, `0o17`, `017`), or None."""
    body = text.lstrip("+-")
    if len(text) - len(body) > 1 or not body.isascii() or not body.isalnum():
        return None
    base = 8 if len(body) > 1 and body[0] == "0" and body[1].isdigit() else 0
    try:
        return int(text, base)
    except ValueError:
        return None


def spell(value: Any) -> str:
    """A scalar as the text a container or a label gets: `true`, `1000`, `3.1`, `1.5e-07`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, float):
        return _spell_float(value)
    return str(value)


def _spell_float(value: float) -> str:
    """The shortest digits that mean `value`; an exponent from 1e+06 on, as Go's %v has it."""
    digits = repr(value)
    exact = Decimal(digits)
    power = exact.adjusted() if value else 0
    if -4 <= power < _EXPONENT_FROM:
        return _trim(exact) if value or digits[0] != "-" else "-0"
    significant = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
    mantissa = significant[0] + ("." + significant[1:] if significant[1:] else "")
    return f"{'-' if value < 0 else ''}{mantissa}e{'-' if power < 0 else '+'}{abs(power):02}"
