"""What counts as a change of a service: its fingerprint, the hash of it, and differences by key.

A fingerprint is a flat mapping from key ("environment.GREETING") to text. Only values that differ
from the model's defaults are in it, so a newer version of orchestra with a new field restarts
nothing. As in Compose, replicas, depends_on and profiles do not count; the content of configs and
secrets, the image's manifest and the full names of networks and volumes do. Placement and
update_config say where and how tasks come to be, not what they are: they do not count either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from orchestra.model.cluster import Difference, StackRecord
from orchestra.model.codec import to_json
from orchestra.model.service import Service

_IGNORED = frozenset({"name", "replicas", "depends_on", "profiles", "placement", "update"})
_DEFAULT = Service(name="")
_FIELDS = tuple(
    (a.name, getattr(_DEFAULT, a.name)) for a in attrs.fields(Service) if a.name not in _IGNORED
)
_SHOWN = 60  # characters of a value in a difference


def fingerprint(record: StackRecord, service: Service) -> dict[str, str]:
    """Return what of `service` (in its stack) makes a container the one it is."""
    stack = record.stack
    out: dict[str, str] = {}
    for name, default in _FIELDS:
        value = getattr(service, name)
        if value != default:
            out.update(_flatten(name, to_json(value)))
    need = record.images.get(service.image)
    if need is not None and need.manifest:
        out["image (manifest)"] = need.manifest
    for wire in service.networks:
        network = stack.networks.get(wire.network)
        if network is not None:
            flags = " internal" if network.internal else ""
            out[f"networks.{wire.network}"] = f"{network.name}{flags}"
    for mount in service.mounts:
        volume = stack.volumes.get(mount.source)
        if volume is not None:
            out[f"volumes.{mount.source}"] = volume.name
    for kind, references in (("configs", service.configs), ("secrets", service.secrets)):
        for reference in references:
            file = stack.files.get(reference.source)
            if file is not None:
                digest = hashlib.sha256(file.content).hexdigest()
                out[f"{kind}.{reference.source} (content)"] = f"sha256:{digest[:12]}"
    return out


def spec_hash(fingerprint: Mapping[str, str]) -> str:
    """Return the fingerprint's digest: equal exactly where nothing that counts differs."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Difference, ...]:
    """Return the keys whose values differ, in order, with both values as short text."""
    return tuple(
        Difference(key, _short(old.get(key)), _short(new.get(key)))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _flatten(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for inner, item in value.items():
            yield from _flatten(f"{key}.{inner}", item)
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        yield key, text


def _short(text: str | None) -> str:
    if text is None:
        return "(unset)"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
