"""Does a project fit together? What no schema can say: references, cycles, contradictions.

Every check adds to the problems and goes on. `check` refuses what Docker Compose refuses too;
`check_published` is the cluster's own rule.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from orchestra.compose.errors import Problems, meant
from orchestra.compose.merge import port_key
from orchestra.compose.tree import Map, Path


def check(tree: Map, disabled: Map, problems: Problems) -> None:
    """Check the normalised project; `disabled` are the services that profiles leave out."""
    services: Map = tree["services"]
    for name, service in services.items():
        path: Path = ("services", name)
        _check_image(tree, service, path, problems)
        _check_references(tree, service, path, problems)
        _check_dependencies(tree, disabled, service, path, problems)
        _check_contradictions(tree, service, path, problems)
        _check_ports(tree, service, path, problems)
    _check_cycles(tree, services, problems)
    for section in ("networks", "volumes", "configs", "secrets"):
        for name, value in tree[section].items():
            _check_resource(tree, section, name, value, problems)


def replicas(service: Mapping[str, object]) -> int:
    """How many replicas the file asks for."""
    deploy = service.get("deploy") or {}
    assert isinstance(deploy, Mapping)
    number = deploy.get("replicas", service.get("scale"))
    return 1 if number is None else int(number)


def _check_image(tree: Map, service: Map, path: Path, problems: Problems) -> None:
    if not service.get("image") and "build" not in service and "provider" not in service:
        problems.on(tree, path, "has neither an image nor a build context")


def _check_references(tree: Map, service: Map, path: Path, problems: Problems) -> None:
    def refer(section: str, key: str, wanted: Iterable[str | None]) -> None:
        for index, name in enumerate(wanted):
            if name and name not in (tree.get(section) or ()):
                at = (*path, key, name if key in ("networks", "models") else index)
                kind, near = section.removesuffix("s"), meant(name, tree.get(section) or ())
                problems.on(tree, at, f"{kind} {name!r} is not defined{near}")

    refer("networks", "networks", service.get("networks") or ())
    refer("models", "models", service.get("models") or ())
    refer(
        "volumes",
        "volumes",
        (v.get("source") if v["type"] == "volume" else None for v in service.get("volumes") or ()),
    )
    for section in ("configs", "secrets"):
        refer(section, section, (f.get("source") for f in service.get(section) or ()))
        for index, file in enumerate(service.get(section) or ()):
            if not file.get("source"):
                problems.on(tree, (*path, section, index), "'source' is missing")
    build = service.get("build") or {}
    for key, context in (build.get("additional_contexts") or {}).items():
        other = context.removeprefix("service:")
        if other != context and "build" not in (tree["services"].get(other) or ()):
            at = (*path, "build", "additional_contexts", key)
            problems.on(tree, at, f"service {other!r} has no build")


def _check_dependencies(
    tree: Map, disabled: Map, service: Map, path: Path, problems: Problems
) -> None:
    depends: Map = service.get("depends_on") or Map()
    for name, how in depends.items():
        at = (*path, "depends_on", name)
        if name in tree["services"]:
            if name == path[1]:
                problems.on(tree, at, f"service {name!r} depends on itself")
        elif name not in disabled:
            near = meant(name, tree["services"])
            problems.on(tree, at, f"service {name!r} is not defined{near}")
        elif how.get("required", True):
            wanted = ", ".join(disabled[name].get("profiles") or ())
            problems.on(tree, at, f"service {name!r} is disabled; activate a profile of: {wanted}")


def _check_cycles(tree: Map, services: Map, problems: Problems) -> None:
    """Depth first over depends_on, without recursion: chains of a thousand services are fine."""
    done: set[str] = set()
    for root in services:
        if root in done:
            continue
        trail: list[str] = [root]
        waiting = [iter(services[root].get("depends_on") or ())]
        while waiting:
            name = next(waiting[-1], None)
            if name is None:
                done.add(trail.pop())
                waiting.pop()
            elif name in trail and name != trail[-1]:
                cycle = " -> ".join([*trail[trail.index(name) :], name])
                at = ("services", trail[-1], "depends_on", name)
                problems.on(tree, at, f"services depend on each other in a circle: {cycle}")
            elif name in services and name not in done and name not in trail:
                trail.append(name)
                waiting.append(iter(services[name].get("depends_on") or ()))


def _check_contradictions(tree: Map, service: Map, path: Path, problems: Problems) -> None:
    if service.get("network_mode") and service.get("networks"):
        problems.on(tree, (*path, "network_mode"), "network_mode and networks exclude each other")
    mounted: dict[str, str] = {}
    for key in ("tmpfs", "volumes"):
        for index, mount in enumerate(service.get(key) or ()):
            target = mount.partition(":")[0] if key == "tmpfs" else mount["target"]
            if target in mounted:
                message = f"{target} is mounted already, by {mounted[target]}"
                problems.on(tree, (*path, key, index), message)
            mounted[target] = f"{key}[{index}]"
    deploy: Map = service.get("deploy") or Map()
    scale, number = service.get("scale"), deploy.get("replicas")
    if scale is not None and number is not None and scale != number:
        problems.on(
            tree, (*path, "scale"), f"scale is {scale} but deploy.replicas is {number}; keep one"
        )
    resources: Map = deploy.get("resources") or Map()
    for key, side, inner in (
        ("cpus", "limits", "cpus"),
        ("mem_limit", "limits", "memory"),
        ("pids_limit", "limits", "pids"),
        ("mem_reservation", "reservations", "memory"),
    ):
        one, other = service.get(key), (resources.get(side) or {}).get(inner)
        if one not in (None, 0, "0") and other is not None and float(one) != float(other):
            place = f"deploy.resources.{side}.{inner}"
            problems.on(tree, (*path, key), f"{key} is {one} but {place} is {other}; keep one")
    if service.get("container_name") and replicas(service) > 1:
        problems.on(
            tree,
            (*path, "container_name"),
            f"{replicas(service)} replicas cannot share one container name; remove container_name",
        )


def _check_ports(tree: Map, service: Map, path: Path, problems: Problems) -> None:
    for index, port in enumerate(service.get("ports") or ()):
        address = port.get("host_ip")
        if address:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                at = (*path, "ports", index)
                problems.on(tree, at, f"host_ip {address!r} is no address")


def check_published(tree: Map, problems: Problems) -> None:
    """A port that every node answers has one owner.

    Two services with `mode: host` may share a number: the scheduler keeps them on different nodes.
    """
    owners: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}
    for name, service in tree["services"].items():
        for index, port in enumerate(service.get("ports") or ()):
            address, published, _, protocol = port_key(port)
            if not published or "-" in published:
                continue
            on_host = port.get("mode") == "host"
            for other, other_address, both in owners.setdefault((published, protocol), []):
                either = {address, other_address}
                if other == name or (on_host and both):
                    continue
                if len(either) == 1 or either & {"0.0.0.0", "::"}:
                    at = ("services", name, "ports", index)
                    problems.on(
                        tree,
                        at,
                        f"port {published}/{protocol} is already published by service {other!r}",
                    )
                    break
            owners[(published, protocol)].append((name, address, on_host))


def _check_resource(tree: Map, section: str, name: str, value: Map, problems: Problems) -> None:
    path = (section, name)
    if value.get("external"):
        for key in ("driver", "driver_opts", "labels") if section == "volumes" else ():
            if key in value:
                problems.on(tree, (*path, key), f"{key} and external: true exclude each other")
        return
    ways = {"configs": ("file", "content", "environment"), "secrets": ("file", "environment")}
    if section in ways:
        given = [k for k in ways[section] if value.get(k) is not None]
        words = " or ".join(ways[section])
        if len(given) > 1:
            problems.on(tree, (*path, given[1]), f"{' and '.join(given)} exclude each other")
        elif not given:
            problems.on(tree, path, f"needs {words}, or external: true")
