"""Times and durations in the words that Docker's clients expect from the server."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from orchestra.model.errors import Invalid

NEVER = "0001-01-01T00:00:00Z"
_AGO = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)


def moment(text: str, now: float) -> float:
    """Unix seconds of what a filter names: a Unix time, RFC 3339 (in part), or "1h30m" ago."""
    try:
        return float(text)
    except ValueError:
        pass
    if text and (ago := _AGO.fullmatch(text)):
        hours, minutes, seconds = (int(part or 0) for part in ago.groups())
        return now - hours * 3600 - minutes * 60 - seconds
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"{text!r} is no time: write Unix seconds, 2026-01-31T12:00:00 or 1h30m (ago)"
        ) from None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def rfc3339(seconds: float) -> str:
    """RFC 3339 in UTC with trailing zeros of the fraction cut; 0 is Go's zero time."""
    if not seconds:
        return NEVER
    return rfc3339_ns(round(seconds * 1e6) * 1000, cut=True)


def rfc3339_ns(nanoseconds: int, cut: bool = False) -> str:
    """RFC 3339 in UTC from nanoseconds: always nine digits, or `cut` of trailing zeros."""
    whole, fraction = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    digits = f"{fraction:09d}"
    if cut:
        digits = digits.rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def duration(seconds: float) -> str:
    """A span of time as `docker ps` says it (go-units HumanDuration)."""
    whole = max(0, int(seconds))
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(whole / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 14:
        return f"{hours // 24} days"
    if hours < 24 * 60:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"
