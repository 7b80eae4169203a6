"""A project as Docker Compose's `config` prints it, as data.

The whole language in long forms, what nothing uses left out, dollars doubled so that the result is
a compose file again. Differences from Docker Compose are defects; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestra.compose.load import Project
from orchestra.compose.tree import Map
from orchestra.compose.units import spell

_Plain = dict[str, Any]


def printed(project: Project) -> _Plain:
    """Return the project as plain data: dicts, lists and scalars."""
    tree = project.tree
    services = {name: _service(value) for name, value in sorted(tree["services"].items())}
    result: _Plain = {"name": tree["name"]}
    for section, used in _used(services).items():
        items = {
            name: _resource(section, value)
            for name, value in sorted(tree[section].items())
            if name in used
        }
        if items:
            result[section] = items
    result["services"] = services
    result |= {key: value for key, value in tree.items() if key.startswith("x-")}
    plain: _Plain = _plain(result)
    return plain


def _used(services: Mapping[str, _Plain]) -> dict[str, set[Any]]:
    """The names of each section that some service refers to."""
    used: dict[str, set[Any]] = {"networks": set(), "volumes": set(), "secrets": set()}
    used["configs"] = set()
    for service in services.values():
        used["networks"].update(service.get("networks") or ())
        used["volumes"].update(v.get("source") for v in service.get("volumes") or ())
        used["configs"].update(c.get("source") for c in service.get("configs") or ())
        secrets = [*(service.get("secrets") or ())]
        secrets += (service.get("build") or {}).get("secrets") or ()
        used["secrets"].update(s.get("source") for s in secrets)
    return used


def _plain(value: Any) -> Any:
    """Plain dicts and lists, with dollars doubled."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value).replace("$", "$$") if isinstance(value, str) else value


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _without_extensions(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_extensions(v) for k, v in value.items() if not k.startswith("x-")}
    return [_without_extensions(v) for v in value] if isinstance(value, list) else value


def _resource(section: str, value: Map) -> _Plain:
    result = {k: v for k, v in _without_extensions(value).items() if _says_something(v)}
    if section == "networks":
        result["ipam"] = value.get("ipam") or {}
    return result


def _service(value: Map) -> _Plain:
    result: _Plain = {"command": None, "entrypoint": None}
    for key, inner in value.items():
        if key.startswith("x-") or key == "extends":
            continue
        if inner in ("", [], {}) and key not in ("command", "entrypoint"):
            continue
        if key in _MAPPINGS_OF_NAMES:
            inner = {name: _without_extensions(v) for name, v in inner.items()}
        else:
            inner = _without_extensions(inner)
        spelled = _SPELLED.get(key)
        result[key] = spelled(inner) if spelled else inner
    return result


def _deploy(value: _Plain) -> _Plain:
    return {"resources": {}, "placement": {}, **value}


def _file_references(folder: str) -> Callable[[list[_Plain]], list[_Plain]]:
    def spelled(files: list[_Plain]) -> list[_Plain]:
        result = []
        for file in files:
            file = dict(file)
            if folder and "target" not in file:
                file["target"] = folder + file["source"]
            if file.get("mode") is not None:
                file["mode"] = f"0{file['mode']:o}"
            result.append(file)
        return result

    return spelled


_secrets = _file_references("/run/secrets/")


def _build(value: _Plain) -> _Plain:
    result = {k: v for k, v in value.items() if _says_something(v)}
    if "ssh" in result:
        result["ssh"] = [k if v is None else f"{k}={v}" for k, v in value["ssh"].items()]
    if "secrets" in result:
        result["secrets"] = _secrets(result["secrets"])
    if "extra_hosts" in result:
        result["extra_hosts"] = sorted(result["extra_hosts"])
    for key in ("sbom", "provenance"):
        if key in result:
            result[key] = spell(result[key])
    return result


def _blkio(value: _Plain) -> _Plain:
    return {
        k: [{p.capitalize(): v for p, v in item.items()} for item in inner]
        if isinstance(inner, list)
        else inner
        for k, inner in value.items()
    }


def _develop(value: _Plain) -> _Plain:
    watch = [{"exec": {"command": None}, **w} for w in value.get("watch") or ()]
    return {**value, "watch": watch} if watch else value


def _pre_start(value: list[_Plain]) -> list[_Plain]:
    default: _Plain = {"command": None, "entrypoint": None, "networks": {"default": None}}
    return [{**default, **hook} for hook in value]


def _provider(value: _Plain) -> _Plain:
    options = {
        k: [spell(i) for i in (v if isinstance(v, list) else [v])]
        for k, v in (value.get("options") or {}).items()
    }
    return {**value, "options": options} if options else value


def _volumes(value: list[_Plain]) -> list[_Plain]:
    result = []
    for mount in value:
        mount = {k: v for k, v in mount.items() if v not in (False, "", None)}
        if (mount.get("tmpfs") or {}).get("size") == "0":
            mount["tmpfs"] = {k: v for k, v in mount["tmpfs"].items() if k != "size"}
        result.append(mount)
    return result


# Mappings whose keys are names that users choose: there x- is no extension.
_MAPPINGS_OF_NAMES = {"annotations", "depends_on", "environment", "labels", "networks", "sysctls"}
_SPELLED: Mapping[str, Callable[[Any], Any]] = {
    "blkio_config": _blkio,
    "build": _build,
    "configs": _file_references(""),
    "deploy": _deploy,
    "develop": _develop,
    "extra_hosts": sorted,
    "mem_swappiness": str,
    "pre_start": _pre_start,
    "provider": _provider,
    "secrets": _secrets,
    "volumes": _volumes,
}
