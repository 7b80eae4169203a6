"""What single values must be like, beyond their shape: each check returns what is wrong, or "".

Only what no node can make sense of is refused here; what depends on a node (capabilities, signals,
kernel settings) is the node's to say. Templates (`{{.Task.Slot}}`) are filled in later and pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from orchestra.compose.tree import Path
from orchestra.compose.units import duration

# RFC 1123, and sethostname(2)'s length.
_HOST = re.compile(r"(?=.{1,64}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_CONSTRAINT = re.compile(r"\s*[\w.]+[\w.\-/]*\s*(==|!=)\s*\S.*")
_LARGEST_MODE = 0o7777

Check = Callable[[Any], str]


def not_negative(value: Any) -> str:
    number = float(value)
    return "" if number >= 0 else f"must be at least 0, not {value}"


def limit(value: Any) -> str:
    """A count of which -1 means no limit."""
    return "" if int(value) >= -1 else f"must be at least -1 (no limit), not {value}"


def span(value: Any) -> str:
    return "" if duration(value) >= 0 else f"a duration cannot be negative: {value}"


def address(value: Any) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return f"{value!r} is no address"
    return ""


def host_name(value: Any) -> str:
    if not value or "{{" in value or _HOST.fullmatch(value):
        return ""
    return f"{value!r} is no host name: letters, digits, dots and dashes, 64 at most"


def absolute(value: Any) -> str:
    if not value or value.startswith("/") or "{{" in value:
        return ""
    return f"{value!r} must be an absolute path"


def number(value: Any) -> str:
    return "" if str(value).isdecimal() else f"{value!r} must be a number"


def mode(value: Any) -> str:
    return "" if 0 <= value <= _LARGEST_MODE else f"{value} is no mode; write it like 0440"


def constraint(value: Any) -> str:
    if _CONSTRAINT.fullmatch(value):
        return ""
    return f"{value!r} is no constraint; write KEY == VALUE or KEY != VALUE"


def variable(value: Any) -> str:
    return "" if value and "=" not in value else f"{value!r} is no name of a variable"


def ulimit(value: Any) -> str:
    if not isinstance(value, Mapping):
        return limit(value)
    soft, hard = int(value["soft"]), int(value["hard"])
    if wrong := limit(soft) or limit(hard):
        return wrong
    if hard != -1 and (soft == -1 or soft > hard):
        return f"soft is {soft}, more than hard, which is {hard}"
    return ""


# Path within a service -> its check. "*" stands for every item or value, "~" for every key.
CHECKS: Mapping[tuple[str, ...], Check] = {
    ("mem_limit",): not_negative,
    ("mem_reservation",): not_negative,
    ("cpus",): not_negative,
    ("shm_size",): not_negative,
    ("pids_limit",): limit,
    ("hostname",): host_name,
    ("working_dir",): absolute,
    ("stop_grace_period",): span,
    ("environment", "~"): variable,
    ("dns", "*"): address,
    ("ulimits", "*"): ulimit,
    ("networks", "*", "ipv4_address"): address,
    ("networks", "*", "aliases", "*"): host_name,
    ("configs", "*", "uid"): number,
    ("configs", "*", "gid"): number,
    ("configs", "*", "mode"): mode,
    ("secrets", "*", "uid"): number,
    ("secrets", "*", "gid"): number,
    ("secrets", "*", "mode"): mode,
    ("volumes", "*", "tmpfs", "size"): not_negative,
    ("volumes", "*", "tmpfs", "mode"): mode,
    ("healthcheck", "interval"): span,
    ("healthcheck", "timeout"): span,
    ("healthcheck", "start_period"): span,
    ("healthcheck", "start_interval"): span,
    ("healthcheck", "retries"): not_negative,
    ("deploy", "restart_policy", "delay"): span,
    ("deploy", "restart_policy", "window"): span,
    ("deploy", "restart_policy", "max_attempts"): not_negative,
    ("deploy", "update_config", "delay"): span,
    ("deploy", "update_config", "monitor"): span,
    ("deploy", "placement", "constraints", "*"): constraint,
    ("deploy", "resources", "limits", "cpus"): not_negative,
    ("deploy", "resources", "limits", "memory"): not_negative,
    ("deploy", "resources", "limits", "pids"): limit,
    ("deploy", "resources", "reservations", "cpus"): not_negative,
    ("deploy", "resources", "reservations", "memory"): not_negative,
}


def wrong_values(service: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What is wrong with the values of a service: the path within it, and the words."""
    for pattern, check in CHECKS.items():
        for path, value in _found(service, pattern) if pattern[0] in service else ():
            try:
                message = check(value)
            except (TypeError, ValueError, OverflowError):
                message = f"{value!r} is not understood"
            if message:
                yield path, message


def _found(value: Any, pattern: tuple[str, ...]) -> Iterator[tuple[Path, Any]]:
    """The values that a pattern means, with their paths."""
    if not pattern:
        if value is not None:
            yield (), value
        return
    first, *rest = pattern
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        if first == "~":
            items = [(key, key) for key in value]
        elif first == "*":
            items = value.items()
        elif first in value:
            items = [(first, value[first])]
    elif isinstance(value, list) and first == "*":
        items = enumerate(value)
    for key, inner in items:
        for path, found in _found(inner, tuple(rest)):
            yield (key, *path), found
