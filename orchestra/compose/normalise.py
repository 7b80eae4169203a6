"""What a merged project means without saying so: names, the default network, the environment.

Fills in, for the services that the active profiles leave: the network `default`, the full names
of networks and volumes, dependencies that other attributes imply, and the variables of `env_file`
and the caller's environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from orchestra.compose import dotenv
from orchestra.compose.errors import Problems
from orchestra.compose.tree import Map, Path, Seq

Read = Callable[[str], bytes]

_STARTED = {"condition": "service_started", "required": True}


def split_profiles(tree: Map, active: Iterable[str]) -> tuple[Map, Map]:
    """Divide the services into those that the active profiles (`*`: all) leave, and the others."""
    chosen = set(active)
    kept, left = Map(), Map()
    services: Map = tree.get("services") or Map()
    for name, service in services.items():
        wanted = set(service.get("profiles") or ())
        group = kept if not wanted or "*" in chosen or wanted & chosen else left
        group[name] = service
        group.places[name] = services.places[name]
    return kept, left


def normalise(
    tree: Map,
    name: str,
    directory: str,
    env: Mapping[str, str],
    read: Read,
    problems: Problems,
) -> Map:
    """Return the project with everything implied filled in."""
    result = Map(tree, tree.places)
    result["name"] = name
    services: Map = tree.get("services") or Map()
    result["services"] = Map(
        {
            k: _service(v, ("services", k), directory, env, read, problems)
            for k, v in services.items()
        },
        services.places,
    )
    networks: Map = tree.get("networks") or Map()
    if any("default" in (s.get("networks") or ()) for s in result["services"].values()):
        networks = Map({"default": Map(), **networks}, networks.places)
    result["networks"] = networks
    for section in ("networks", "volumes", "configs", "secrets"):
        items: Map = result.get(section) or Map()
        result[section] = Map({k: _named(v, k, name) for k, v in items.items()}, items.places)
    return result


def _named(value: Map, key: str, project: str) -> Map:
    result = Map(value, value.places)
    if not result.get("name"):
        result["name"] = key if result.get("external") else f"{project}_{key}"
    return result


def _service(
    service: Map,
    path: Path,
    directory: str,
    env: Mapping[str, str],
    read: Read,
    problems: Problems,
) -> Map:
    result = Map(resolve_variables(service, env), service.places)
    alone = service.get("network_mode") or "provider" in service
    if not service.get("networks") and not alone:
        result["networks"] = Map({"default": None})
    if "build" in result:
        build: Map = Map(result["build"], result["build"].places)
        build.setdefault("context", directory)
        if "dockerfile_inline" not in build:
            build.setdefault("dockerfile", "Dockerfile")
        if "args" in build:
            args = {k: env.get(k) if v is None else v for k, v in build["args"].items()}
            build["args"] = Map({k: v for k, v in args.items() if v is not None})
        result["build"] = build
    if service.get("image") and "pre_start" in result:
        result["pre_start"] = [{"image": service["image"], **h} for h in result["pre_start"]]
    if result.get("pull_policy") == "if_not_present":
        result["pull_policy"] = "missing"
    _imply_dependencies(result)
    _read_environment(result, path, env, read, problems)
    _read_label_files(result, path, env, read, problems)
    return result


def _imply_dependencies(service: Map) -> None:
    """Sharing a namespace, links and volumes_from need the other service to be there first."""
    implied: dict[str, bool] = {}
    for link in service.get("links") or ():
        implied.setdefault(link.partition(":")[0], True)
    for key in ("network_mode", "ipc", "pid", "uts", "cgroup"):
        kind, _, other = str(service.get(key) or "").partition(":")
        if kind == "service" and other:
            implied.setdefault(other, True)
    for source in service.get("volumes_from") or ():
        if not source.startswith("container:"):
            implied.setdefault(source.partition(":")[0], False)
    if not implied:
        return
    depends: Map = service.get("depends_on") or Map()
    added = {
        other: Map(_STARTED | ({"restart": True} if restart else {}))
        for other, restart in implied.items()
        if other not in depends
    }
    service["depends_on"] = Map({**depends, **added}, depends.places)


def resolve_variables(service: Map, env: Mapping[str, str]) -> Map:
    """A service whose variables without a value take that of `env`, where it has one."""
    own: Map | None = service.get("environment")
    if not own or all(v is not None for v in own.values()):
        return service
    result = Map(service, service.places)
    values = {k: env.get(k) if v is None else v for k, v in own.items()}
    result["environment"] = Map(values, own.places)
    return result


def _read_environment(
    service: Map, path: Path, env: Mapping[str, str], read: Read, problems: Problems
) -> None:
    """Merge the env files below `environment`, then look up what has no value of its own."""
    values: dict[str, str | None] = {}

    def known(key: str) -> str | None:
        return env.get(key, values.get(key))

    for index, entry in enumerate(service.get("env_file") or Seq()):
        place = service["env_file"].places[index]
        where = (*path, "env_file", index)
        try:
            text = read(entry["path"]).decode("utf-8-sig")
        except FileNotFoundError:
            if entry.get("required", True):
                problems.at(place, where, f"env file {entry['path']} not found")
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.at(place, where, f"cannot read env file {entry['path']}: {error}")
            continue
        how = entry.get("format", "")
        if how not in ("", "raw"):
            problems.at(place, where, f"format must be raw, not {how!r}")
        try:
            raw = how == "raw"
            values.update(dotenv.parse_raw(text, known) if raw else dotenv.parse(text, known))
        except dotenv.BadEnvFile as error:
            problems.at(place, where, f"env file {entry['path']}, {error}")
    own: Map = service.get("environment") or Map()
    values |= own
    if values:
        service["environment"] = Map(values, own.places)
    service.pop("env_file", None)


def _read_label_files(
    service: Map, path: Path, env: Mapping[str, str], read: Read, problems: Problems
) -> None:
    labels: dict[str, str] = {}
    for index, file in enumerate(service.get("label_file") or Seq()):
        place = service["label_file"].places[index]
        try:
            labels |= dotenv.parse(read(file).decode("utf-8-sig"), env.get)
        except (OSError, UnicodeDecodeError, dotenv.BadEnvFile) as error:
            message = f"cannot read label file {file}: {error}"
            problems.at(place, (*path, "label_file", index), message)
    if "label_file" in service:
        own: Map = service.get("labels") or Map()
        service["labels"] = Map({**labels, **own}, own.places)
