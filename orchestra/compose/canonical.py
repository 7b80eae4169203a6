"""Short forms to long forms: after this stage every attribute has one shape.

Works on one document that satisfies the schema, before merge: merging is then a matter of
mappings and lists. Relative paths become absolute here, where the folder they are relative to is
known. No defaults are filled in that a later file could not override.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from orchestra.compose import short
from orchestra.compose.errors import Problems
from orchestra.compose.tree import Map, Path, Place, Relative, Seq
from orchestra.compose.tree import spell as spell_path
from orchestra.compose.units import byte_size, duration, spell, spell_duration


@frozen
class Folder:
    """What relative paths of a document are relative to; `home` is what `~` stands for."""

    path: str
    home: str = ""

    def resolve(self, path: str) -> str:
        """An absolute path; one that was relative remembers so (`Relative`)."""
        if path.startswith("~") and self.home:
            return posixpath.normpath(posixpath.join(self.home, path[1:].lstrip("/")))
        if path.startswith("/") or path[1:3] in (":\\", ":/"):
            return path
        return Relative.of(posixpath.normpath(posixpath.join(self.path, path)), path)


Rule = Callable[[Any, Folder], Any]


def canonical(tree: Map, folder: Folder, problems: Problems) -> Map:
    """Return the document in long forms. Texts that cannot be parsed go to `problems`."""
    result = Map(tree, tree.places)
    for section, rules in _SECTIONS.items():
        items = tree.get(section)
        if not isinstance(items, Map):
            continue
        result[section] = Map({}, items.places)
        for name, value in items.items():
            if section != "services" and name.startswith("x-"):
                continue
            path, place = (section, name), items.places[name]
            value = _apply(value or Map(), rules, folder, problems, path, place)
            if section != "services":
                _relocate_external(value, path, place, problems)
            if section == "volumes":
                _locate_device(value, folder)
            result[section][name] = value
    return result


def _relocate_external(value: Map, path: Path, place: Place, problems: Problems) -> None:
    """`external: {name: X}`, the old form, is `external: true` and `name: X`."""
    external = value.get("external")
    if not isinstance(external, Map):
        return
    problems.warn(f"{spell_path(path)}: external.name is deprecated; write name and external: true")
    if "name" in external:
        if "name" in value:
            problems.at(place, (*path, "external"), "name and external.name conflict; keep name")
        value["name"] = external["name"]
        value.places.setdefault("name", place)
    value["external"] = True


def _locate_device(value: Map, folder: Folder) -> None:
    """A local volume made with `o: bind` is a bind mount: its device is a path."""
    options = value.get("driver_opts") or {}
    if "bind" in options.get("o", "").split(",") and options.get("device"):
        options["device"] = folder.resolve(options["device"])


def _apply(
    value: Any,
    rules: Mapping[str, Any],
    folder: Folder,
    problems: Problems,
    path: Path,
    place: Place,
) -> Any:
    """Apply the rules of one level: a rule is a function of the value, or the rules within it."""
    if isinstance(value, Seq):
        return Seq(
            [
                _apply(v, rules, folder, problems, (*path, i), value.places[i])
                for i, v in enumerate(value)
            ],
            value.places,
        )
    if not isinstance(value, Map):
        return value
    result = Map(value, value.places)
    for key, inner in value.items():
        rule = rules.get(key)
        if rule is None or inner is None:
            continue
        if isinstance(rule, dict):
            if isinstance(inner, str):  # the one short form of a mapping with rules: build
                inner = Map({"context": inner}, {"context": value.places[key]})
            result[key] = _apply(inner, rule, folder, problems, (*path, key), value.places[key])
            continue
        try:
            result[key] = _located(rule(inner, folder), value.places[key])
        except _AtKey as error:
            # What cannot be parsed is left out, so that the later stages can still look for more.
            del result[key]
            at = inner.places[error.key] if isinstance(inner, (Map, Seq)) else place
            problems.at(at, (*path, key, error.key), str(error))
        except ValueError as error:
            del result[key]
            problems.at(value.places[key], (*path, key), str(error))
    return result


def _located(value: Any, place: Place) -> Any:
    """Entries that a rule made up are where the attribute itself is written."""
    if isinstance(value, Map):
        for key in value.keys() - value.places.keys():
            value.places[key] = place
    elif isinstance(value, Seq):
        value.places.extend([place] * (len(value) - len(value.places)))
    return value


class _AtKey(ValueError):
    """A part of the attribute is wrong: the item or key `key` of its value."""

    def __init__(self, key: Any, error: ValueError) -> None:
        super().__init__(str(error))
        self.key = key


def _each(value: Seq, parse: Callable[[Any], list[Any]]) -> Seq:
    """Parse each item into any number of items, which keep its place if it has one."""
    result = Seq()
    for index, item in enumerate(value):
        try:
            parsed = parse(item)
        except ValueError as error:
            raise _AtKey(index, error) from None
        result.extend(parsed)
        result.places.extend(value.places[index : index + 1] * len(parsed))
    return result


def _list(value: Any, folder: Folder) -> Seq:
    return value if isinstance(value, Seq) else Seq([value] if value else [])


def _texts(value: Seq, folder: Folder) -> Seq:
    return Seq([spell(v) for v in value], value.places)


def _pairs(value: Any, folder: Folder) -> Map:
    """`environment`-like: a KEY without a value is None."""
    if isinstance(value, Map):
        return Map({k: None if v is None else spell(v) for k, v in value.items()}, value.places)
    result = Map()
    for index, item in enumerate(value):
        key, equals, text = item.partition("=")
        if not key or key != key.strip():
            raise _AtKey(index, ValueError(f"{item!r} does not begin with a name"))
        result[key] = text if equals else None
        result.places[key] = value.places[index]
    return result


def _labels(value: Any, folder: Folder) -> Map:
    pairs = _pairs(value, folder)
    return Map({k: v or "" for k, v in pairs.items()}, pairs.places)


def _options(value: Map, folder: Folder) -> Map:
    return Map({k: spell(v) for k, v in value.items()}, value.places)


def _keys(value: Any, empty: Any) -> Map:
    """A list of names as a mapping, like its long form."""
    if isinstance(value, Map):
        return value
    keys = {name: (Map(empty) if empty is not None else None) for name in value}
    return Map(keys, dict(zip(value, value.places)))


def _command(value: Any, folder: Folder) -> Any:
    return Seq(split_words(value)) if isinstance(value, str) else value


def split_words(text: str) -> list[str]:
    """Divide a command line as compose does: quotes and backslashes as in a shell, no expansion.

    An unquoted `;`, `&`, `|`, `<` or `>` ends it: there is no shell. Raises ValueError.
    """
    words: list[str] = []
    current: str | None = None
    index, quote = 0, ""
    while index < len(text):
        letter = text[index]
        if letter == "\\" and quote != "'" and index + 1 < len(text):
            index += 1
            current = (current or "") + {"n": "\n", "t": "\t"}.get(text[index], text[index])
        elif quote:
            if letter == quote:
                quote = ""
            else:
                current = (current or "") + letter
        elif letter in "'\"":
            quote, current = letter, current or ""
        elif letter in " \t\r\n":
            if current is not None:
                words.append(current)
            current = None
        elif letter in ";&|<>":
            break
        elif letter == "(":
            raise ValueError(f"{text!r}: a '(' needs quotes, or sh -c")
        else:
            current = (current or "") + letter
        index += 1
    if quote:
        raise ValueError(f"{text!r}: the quote {quote} is not closed")
    return words if current is None else [*words, current]


def _number(value: Any, folder: Folder) -> float | int:
    number = float(value)
    return int(number) if number.is_integer() else number


def _duration(value: Any, folder: Folder) -> str:
    return spell_duration(duration(value))


def _bytes(value: Any, folder: Folder) -> str:
    return str(byte_size(value))


def _path(value: str, folder: Folder) -> str:
    return folder.resolve(value)


def _context(value: str, folder: Folder) -> str:
    remote = "://" in value or value.startswith(
        ("git@", "github.com/", "service:", "docker-image:")
    )
    return value if remote else folder.resolve(value)


def _ports(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Any) -> list[Any]:
        if not isinstance(entry, Map):
            return short.port(spell(entry))
        result = Map(entry, entry.places)
        if "target" not in entry:
            raise ValueError("'target' is missing")
        result.setdefault("mode", "ingress")
        result.setdefault("protocol", "tcp")
        if "published" in entry:
            result["published"] = spell(entry["published"])
        return [result]

    return _each(value, parse)


def _volumes(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Any) -> list[Any]:
        if isinstance(entry, str):
            entry = Map(short.volume(entry))
        else:
            entry = Map(entry, entry.places)
            if not entry.get("target"):
                raise ValueError("the mount target is missing")
            entry["target"] = short.clean(entry["target"])
            if entry["type"] == "bind" and not entry.get("source"):
                raise ValueError("a bind needs a source")
            if "labels" in (entry.get("volume") or {}):
                entry["volume"] = Map(entry["volume"], entry["volume"].places)
                entry["volume"]["labels"] = _labels(entry["volume"]["labels"], folder)
            if "size" in (entry.get("tmpfs") or {}):
                entry["tmpfs"] = Map(entry["tmpfs"], entry["tmpfs"].places)
                entry["tmpfs"]["size"] = _bytes(entry["tmpfs"]["size"], folder)
        if entry["type"] == "bind":
            entry["source"] = folder.resolve(entry["source"])
        return [entry]

    return _each(value, parse)


def _files(value: Seq, folder: Folder) -> Seq:
    return _each(value, lambda e: [Map(e, e.places) if isinstance(e, Map) else Map({"source": e})])


def _env_files(value: Any, folder: Folder) -> Seq:
    def parse(entry: Any) -> list[Any]:
        entry = Map({"path": entry}) if isinstance(entry, str) else Map(entry, entry.places)
        entry["path"] = folder.resolve(entry["path"])
        return [entry]

    return _each(_list(value, folder), parse)


def _paths(value: Any, folder: Folder) -> Seq:
    value = _list(value, folder)
    return Seq([folder.resolve(v) for v in value], value.places)


def _extra_hosts(value: Any, folder: Folder) -> Seq:
    if isinstance(value, Seq):
        return _each(value, short.host)
    result = Seq()
    for name, addresses in value.items():
        entries = short.hosts(name, addresses if isinstance(addresses, list) else [addresses])
        result.extend(entries)
        result.places.extend([value.places[name]] * len(entries))
    return result


def _depends_on(value: Any, folder: Folder) -> Map:
    keys = _keys(value, {"condition": "service_started"})
    return Map(
        {k: Map({"required": True, **v}, getattr(v, "places", {})) for k, v in keys.items()},
        keys.places,
    )


def _networks(value: Any, folder: Folder) -> Map:
    return _keys(value, None)


def _models(value: Any, folder: Folder) -> Map:
    return _keys(value, None)


def _extends(value: Any, folder: Folder) -> Map:
    result = Map({"service": value}) if isinstance(value, str) else Map(value, value.places)
    if "file" in result:
        result["file"] = folder.resolve(result["file"])
    return result


def _devices(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Any) -> list[Any]:
        if isinstance(entry, str):
            return [Map(short.device(entry))]
        target = entry.get("target") or entry["source"]
        return [Map({"permissions": "rwm", **entry, "target": target}, entry.places)]

    return _each(value, parse)


def _gpus(value: Any, folder: Folder) -> Seq:
    if value == "all":
        return Seq([Map({"count": -1})])
    return _device_requests(value, folder)


def _device_requests(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Map) -> list[Any]:
        entry = Map(entry, entry.places)
        count = entry.get("count")
        if isinstance(count, str):
            if count != "all" and not count.isdecimal():
                raise ValueError(f"count must be a number or all, not {count!r}")
            entry["count"] = -1 if count == "all" else int(count)
        if "count" in entry and "device_ids" in entry:
            raise ValueError("count and device_ids exclude each other")
        if "count" not in entry and "device_ids" not in entry:
            entry["count"] = -1
        if "options" in entry:
            entry["options"] = _labels(entry["options"], folder)
        return [entry]

    return _each(value, parse)


def _test(value: Any, folder: Folder) -> Seq:
    if isinstance(value, str):
        return Seq(["CMD-SHELL", value])
    if value and value[0] not in ("CMD", "CMD-SHELL", "NONE"):
        raise ValueError(f"must begin with CMD, CMD-SHELL or NONE, not {value[0]!r}")
    return value  # type: ignore[no-any-return]


def _ulimits(value: Map, folder: Folder) -> Map:
    def parse(limit: Any) -> Any:
        if isinstance(limit, Map):
            return Map({k: int(v) if k in ("soft", "hard") else v for k, v in limit.items()})
        return int(limit)

    return Map({k: parse(v) for k, v in value.items()}, value.places)


def _watch(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Map) -> list[Any]:
        paths = entry["path"] if isinstance(entry["path"], Seq) else [entry["path"]]
        lists = {k: _list(entry[k], folder) for k in ("ignore", "include") if k in entry}
        return [Map({**entry, **lists, "path": folder.resolve(p)}, entry.places) for p in paths]

    return _each(value, parse)


def _rates(value: Seq, folder: Folder) -> Seq:
    def parse(entry: Map) -> list[Any]:
        rate = {"rate": _bytes(entry["rate"], folder)} if "rate" in entry else {}
        return [Map({**entry, **rate}, entry.places)]

    return _each(value, parse)


_HOOK = {"command": _command, "environment": _pairs}
_RESOURCES = {"cpus": _number, "memory": _bytes, "devices": _device_requests}
_UPDATE = {"delay": _duration, "monitor": _duration}
_BUILD: dict[str, Any] = {
    "context": _context,
    "args": _pairs,
    "labels": _labels,
    "ssh": _pairs,
    "additional_contexts": lambda v, f: Map(
        {k: _context(t or "", f) for k, t in _pairs(v, f).items()}, _pairs(v, f).places
    ),
    "extra_hosts": _extra_hosts,
    "no_cache_filter": _list,
    "secrets": _files,
    "shm_size": _bytes,
    "ulimits": _ulimits,
}
_SERVICE: dict[str, Any] = {
    "annotations": _labels,
    "blkio_config": {
        "device_read_bps": _rates,
        "device_read_iops": _rates,
        "device_write_bps": _rates,
        "device_write_iops": _rates,
    },
    "build": _BUILD,
    "command": _command,
    "configs": _files,
    "cpus": _number,
    "depends_on": _depends_on,
    "deploy": {
        "labels": _labels,
        "update_config": _UPDATE,
        "rollback_config": _UPDATE,
        "restart_policy": {"delay": _duration, "window": _duration},
        "resources": {"limits": _RESOURCES, "reservations": _RESOURCES},
    },
    "develop": {"watch": _watch},
    "devices": _devices,
    "dns": _list,
    "dns_search": _list,
    "entrypoint": _command,
    "env_file": _env_files,
    "environment": _pairs,
    "expose": _texts,
    "extends": _extends,
    "extra_hosts": _extra_hosts,
    "gpus": _gpus,
    "group_add": _texts,
    "healthcheck": {
        "test": _test,
        "retries": lambda v, f: int(v),
        "interval": _duration,
        "timeout": _duration,
        "start_period": _duration,
        "start_interval": _duration,
    },
    "label_file": _paths,
    "labels": _labels,
    "logging": {"options": _options},
    "mem_limit": _bytes,
    "mem_reservation": _bytes,
    "memswap_limit": _bytes,
    "models": _models,
    "networks": _networks,
    "ports": _ports,
    "post_start": _HOOK,
    "pre_start": _HOOK,
    "pre_stop": _HOOK,
    "secrets": _files,
    "shm_size": _bytes,
    "stop_grace_period": _duration,
    "sysctls": _labels,
    "tmpfs": _list,
    "ulimits": _ulimits,
    "volumes": _volumes,
}
_FILE = {"file": _path, "labels": _labels}
_SECTIONS: dict[str, dict[str, Any]] = {
    "services": _SERVICE,
    "networks": {"driver_opts": _options, "labels": _labels},
    "volumes": {"driver_opts": _options, "labels": _labels},
    "secrets": {**_FILE, "driver_opts": _options},
    "configs": _FILE,
}
