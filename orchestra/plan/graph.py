"""The order of services: who must be there before whom, and who must be gone before whom."""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.model.errors import Invalid
from orchestra.model.service import Service


def start_order(services: Mapping[str, Service]) -> tuple[str, ...]:
    """Return the services' names, each after those it depends on; by name where order is free.

    Dependencies on services that are not there are ignored (their profile is not active). Raises
    Invalid with the path of a cycle.
    """
    out: list[str] = []
    done: set[str] = set()
    path: dict[str, None] = {}
    for root in sorted(services):
        stack = [(root, iter(_needs(services, root)))] if root not in done else []
        path = {root: None}
        while stack:
            name, rest = stack[-1]
            for need in rest:
                if need in path:
                    cycle = [*list(path)[list(path).index(need) :], need]
                    raise Invalid(f"depends_on forms a cycle: {' -> '.join(cycle)}")
                if need not in done:
                    path[need] = None
                    stack.append((need, iter(_needs(services, need))))
                    break
            else:
                stack.pop()
                path.pop(name)
                done.add(name)
                out.append(name)
    return tuple(out)


def dependents(services: Mapping[str, Service]) -> dict[str, frozenset[str]]:
    """Return for each service the names of those that depend on it directly."""
    out: dict[str, set[str]] = {name: set() for name in services}
    for name, service in services.items():
        for dependency in service.depends_on:
            if dependency.service in out:
                out[dependency.service].add(name)
    return {name: frozenset(users) for name, users in out.items()}


def _needs(services: Mapping[str, Service], name: str) -> list[str]:
    return sorted(d.service for d in services[name].depends_on if d.service in services)
