"""Several files, one stack: what a later file changes in an earlier one.

Works on canonical documents. Mappings merge key by key; lists add up, and an item that names the
same thing as an earlier one (a mount's target, a port) takes its place; a few attributes replace
what was there. Rules: compose specification, 13-merge. `clear` serves !reset and !override.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from orchestra.compose.tree import Map, Path, Place, Seq

# Lists that mean one thing as a whole: the later one replaces the earlier.
_REPLACED = {"command", "entrypoint", "test"}


def clear(tree: Map, paths: Iterable[Path]) -> None:
    """Remove what stands at `paths`; paths that lead nowhere are fine."""
    for path in paths:
        inner: Any = tree
        for part in path[:-1]:
            inner = inner.get(str(part)) if isinstance(inner, Map) else None
        if isinstance(inner, Map) and isinstance(path[-1], str):
            inner.pop(path[-1], None)


def merge(base: Map, over: Map) -> Map:
    """Return `base` with everything that `over` adds or changes; neither is modified."""
    return _merge_maps(base, over, ())


def merge_service(base: Map, over: Map) -> Map:
    """The same for two services, as `extends` needs it."""
    return _merge_maps(base, over, ("services", ""))


def without_nulls(over: Map, base: Map) -> Map:
    """A document as written, less the attributes of services that it leaves empty (`restart:`).

    Over an attribute of `base` an empty one says nothing; alone, the schema has its say.
    """
    services, there = over.get("services"), base.get("services")
    if not isinstance(services, Map) or not isinstance(there, Map):
        return over
    result = Map(over, over.places)
    result["services"] = Map(services, services.places)
    for name, service in services.items():
        known = there.get(name) or ()
        if isinstance(service, Map) and known:
            result["services"][name] = Map(
                {
                    k: v
                    for k, v in service.items()
                    if v is not None or k not in known or k in _REPLACED
                },
                service.places,
            )
    return result


def distinct(tree: Map) -> Map:
    """A document with the doubles within each of its own lists removed."""
    return _merge_maps(Map(), tree, ())


def _merge_maps(base: Map, over: Map, path: Path) -> Map:
    result, places = dict(base), dict(base.places)
    for key, value in over.items():
        there = key in base and not key.startswith("x-")
        inner = (*path, key)
        result[key] = _merge(base[key], value, inner) if there else _alone(value, inner)
        if not there or not isinstance(value, (Map, Seq)):
            places[key] = over.places.get(key, Place())
    return Map(result, places)


def _alone(value: Any, path: Path) -> Any:
    """A value that nothing else merges with may still hold doubles in its own lists."""
    if len(path) > 1 and path[-1] in _KEYS and path[0] == "services" and isinstance(value, Seq):
        return _add(Seq(), value, path)
    if isinstance(value, Map) and len(path) < 5 and not str(path[-1]).startswith("x-"):
        return Map({k: _alone(v, (*path, k)) for k, v in value.items()}, value.places)
    return value


def _merge(base: Any, over: Any, path: Path) -> Any:
    name = path[-1]
    if isinstance(base, Map) and isinstance(over, Map):
        if name == "logging" and base.get("driver", d := over.get("driver")) != d and d:
            return over
        return _merge_maps(base, over, path)
    if isinstance(base, Seq) and isinstance(over, Seq) and name not in _REPLACED:
        return _add(base, over, path)
    if over is None and isinstance(base, (Map, Seq)) and name not in _REPLACED:
        return base
    return over


def _add(base: Seq, over: Seq, path: Path) -> Seq:
    """Append the items of `over`; one with the key of an earlier item takes its place."""
    key_of = _KEYS.get(str(path[-1]), _item_itself)
    result, seen = Seq(), dict[Any, int]()
    for source in (base, over):
        for item, place in zip(source, source.places):
            key = key_of(item)
            if key is None or key not in seen:
                if key is not None:
                    seen[key] = len(result)
                result.append(item)
                result.places.append(place)
            else:
                index = seen[key]
                if path[-1] == "config":  # the subnets of a network merge, all else is replaced
                    item = _merge_maps(result[index], item, path)
                result[index], result.places[index] = item, place
    return result


def _item_itself(item: Any) -> Any:
    """Texts and numbers are the same when they are equal; mappings never are."""
    return item if isinstance(item, (str, int, float)) else None


def port_key(port: Map) -> Any:
    """Two ports with this key are one: same address, published port, target and protocol."""
    return (
        port.get("host_ip") or "0.0.0.0",
        port.get("published", ""),
        port["target"],
        port.get("protocol", "tcp"),
    )


def _file_key(default: str) -> Callable[[Map], Any]:
    return lambda file: file.get("target") or f"{default}{file.get('source', '')}"


_KEYS: dict[str, Callable[[Any], Any]] = {
    "ports": port_key,
    "volumes": lambda v: v["target"],
    "devices": lambda d: d.get("target") or repr(d),
    "configs": _file_key("/"),
    "secrets": _file_key("/run/secrets/"),
    "env_file": lambda e: e["path"],
    "config": lambda pool: pool.get("subnet"),
    **dict.fromkeys(
        (
            *("cap_add", "cap_drop", "dns", "dns_opt", "dns_search", "expose", "extra_hosts"),
            *("profiles", "tmpfs", "group_add", "links", "aliases", "label_file"),
        ),
        _item_itself,
    ),
}
