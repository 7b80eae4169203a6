"""Variables in the file's text: `$V`, `${V}` and its forms with `-`, `?` and `+`, nested, and `$$`.

Interpolation happens per document, on values only, before merge and schema. Where an attribute has
a type of its own (a count, a switch), the text becomes that type here, so that
`replicas: ${N}` is a number. Syntax: compose specification, 12-interpolation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestra.compose.errors import Problems
from orchestra.compose.tree import Map, Path, Place, Seq
from orchestra.compose.units import go_integer

Lookup = Callable[[str], str | None]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")


class BadTemplate(ValueError):
    """The text is no valid template, or a required variable has no value."""


def substitute(text: str, lookup: Lookup, missing: Callable[[str], None] | None = None) -> str:
    """Return `text` with its variables replaced. `missing` is told of plain unset variables.

    Raises BadTemplate.
    """
    parts, index = [], 0
    while True:
        dollar = text.find("$", index)
        if dollar < 0 or dollar == len(text) - 1:
            parts.append(text[index:])
            return "".join(parts)
        parts.append(text[index:dollar])
        after = text[dollar + 1]
        if after == "$":
            parts.append("$")
            index = dollar + 2
        elif after == "{":
            end = _closing(text, dollar + 1)
            parts.append(_braced(text[dollar + 2 : end], text, lookup, missing))
            index = end + 1
        elif name := _NAME.match(text, dollar + 1):
            parts.append(_plain(name.group(), lookup, missing))
            index = name.end()
        else:
            parts.append("$")
            index = dollar + 1


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
    raise BadTemplate(f"{text[start - 1 :]!r} is not closed; write $$ for a dollar sign")


def _plain(name: str, lookup: Lookup, missing: Callable[[str], None] | None) -> str:
    value = lookup(name)
    if value is None and missing:
        missing(name)
    return value or ""


def _braced(body: str, text: str, lookup: Lookup, missing: Callable[[str], None] | None) -> str:
    name = _NAME.match(body)
    rest = body[name.end() :] if name else body
    operator = next((o for o in _OPERATORS if rest.startswith(o)), "")
    if not name or (rest and not operator):
        raise BadTemplate(f"${{{body}}} in {text!r} is no variable; write $$ for a dollar sign")
    if not rest:
        return _plain(name.group(), lookup, missing)
    word = rest[len(operator) :]
    value = lookup(name.group())
    # With a colon an empty value counts as none.
    there = bool(value) if operator[0] == ":" else value is not None
    if operator[-1] == "+":
        return substitute(word, lookup, missing) if there else ""
    if there:
        return value or ""
    if operator[-1] == "-":
        return substitute(word, lookup, missing)
    reason = substitute(word, lookup, missing)
    text = f"required variable {name.group()} has no value"
    raise BadTemplate(f"{text}: {reason}" if reason else text)


def _boolean(text: str, warn: Callable[[str], None]) -> bool:
    word = text.lower()
    if word in ("true", "false"):
        return word == "true"
    if word in ("y", "yes", "on", "n", "no", "off"):
        value = word in ("y", "yes", "on")
        warn(f'"{text}" for a boolean is not YAML 1.2; write {str(value).lower()}')
        return value
    raise ValueError(f"{text!r} is not a boolean; write true or false")


def _whole(text: str, warn: Callable[[str], None]) -> int:
    number = go_integer(text)
    if number is None:
        raise ValueError(f"{text!r} is not a whole number")
    return number


def _number(text: str, warn: Callable[[str], None]) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


# Attributes whose text becomes a value of another type. "*" is any key, "[]" any item.
_SERVICE = {
    "attach": _boolean,
    "build": {
        "no_cache": _boolean,
        "privileged": _boolean,
        "pull": _boolean,
        "ulimits": {"*": _whole},
    },
    "configs": {"[]": {"mode": _whole}},
    "cpu_count": _whole,
    "cpu_period": _whole,
    "cpu_quota": _whole,
    "cpu_rt_period": _whole,
    "cpu_rt_runtime": _whole,
    "cpu_shares": _whole,
    "cpus": _number,
    "depends_on": {"*": {"required": _boolean, "restart": _boolean}},
    "deploy": {
        "replicas": _whole,
        "update_config": {"parallelism": _whole, "max_failure_ratio": _number},
        "rollback_config": {"parallelism": _whole, "max_failure_ratio": _number},
        "restart_policy": {"max_attempts": _whole},
        "placement": {"max_replicas_per_node": _whole},
        "resources": {"limits": {"pids": _whole}, "reservations": {"pids": _whole}},
    },
    "env_file": {"[]": {"required": _boolean}},
    "healthcheck": {"retries": _whole, "disable": _boolean},
    "init": _boolean,
    "mem_swappiness": _whole,
    "networks": {"*": {"priority": _whole, "gw_priority": _whole}},
    "oom_kill_disable": _boolean,
    "oom_score_adj": _whole,
    "pids_limit": _whole,
    "ports": {"[]": {"target": _whole}},
    "post_start": {"[]": {"privileged": _boolean}},
    "pre_stop": {"[]": {"privileged": _boolean}},
    "privileged": _boolean,
    "read_only": _boolean,
    "scale": _whole,
    "secrets": {"[]": {"mode": _whole}},
    "stdin_open": _boolean,
    "tty": _boolean,
    "ulimits": {"*": _whole},
    "use_api_socket": _boolean,
    "volumes": {
        "[]": {
            "read_only": _boolean,
            "bind": {"create_host_path": _boolean},
            "volume": {"nocopy": _boolean},
            "tmpfs": {"mode": _whole},
        }
    },
}
_SERVICE["ulimits"] = _SERVICE["build"]["ulimits"] = {  # type: ignore[index]
    "*": {"": _whole, "soft": _whole, "hard": _whole}
}
_TYPES: Mapping[str, Any] = {
    "services": {"*": _SERVICE},
    "networks": {
        "*": dict.fromkeys(
            ("external", "internal", "attachable", "enable_ipv4", "enable_ipv6"), _boolean
        )
    },
    "volumes": {"*": {"external": _boolean}},
    "configs": {"*": {"external": _boolean}},
    "secrets": {"*": {"external": _boolean}},
}


def interpolate(tree: Map, lookup: Lookup, problems: Problems) -> Map:
    """Return a copy of a document with all variables replaced and typed attributes typed."""
    unset: dict[str, None] = {}

    def walk(value: Any, types: Any, path: Path, place: Place) -> Any:
        if isinstance(value, str):
            if "$" in value:
                try:
                    value = substitute(value, lookup, unset.setdefault)
                except BadTemplate as error:
                    problems.at(place, path, str(error))
                    return None
            cast = types.get("") if isinstance(types, dict) else types
            if cast is None:
                return value
            try:
                return cast(value, lambda text: problems.warn(f"{place.file}:{place.line}: {text}"))
            except ValueError as error:
                problems.at(place, path, str(error))
                return None
        inner = types if isinstance(types, dict) else {}
        if isinstance(value, Map):
            some = inner.get("*")
            return Map(
                {
                    k: walk(v, inner.get(k, some), (*path, k), value.places[k])
                    for k, v in value.items()
                },
                value.places,
            )
        if isinstance(value, Seq):
            some = inner.get("[]")
            return Seq(
                [walk(v, some, (*path, i), value.places[i]) for i, v in enumerate(value)],
                value.places,
            )
        return value

    result = walk(tree, _TYPES, (), Place())
    for name in unset:
        problems.warn(f"the variable {name} is not set; it counts as empty")
    assert isinstance(result, Map)
    return result
