"""Named volumes of a node: a directory each, with its description beside the data.

`<volumes>/<name>/volume.json` is written whole and synced before a volume counts as made, so that a
crash leaves either nothing or a volume. Options follow Docker's local driver as far as a bind goes
(type=none, o=bind, device=/path); everything else is refused by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence

from orchestra.model.codec import from_json, to_json
from orchestra.model.container import LocalVolume
from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.model.paths import NodePaths

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Volumes:
    """The volumes below `paths.volumes`; read from disk once, kept in step with it."""

    def __init__(self, paths: NodePaths) -> None:
        self._root = paths.volumes
        os.makedirs(self._root, 0o700, exist_ok=True)
        self._volumes: dict[str, LocalVolume] = {}
        for name in os.listdir(self._root):
            try:
                with open(f"{self._root}/{name}/volume.json") as file:
                    self._volumes[name] = from_json(LocalVolume, json.load(file), name)
            except FileNotFoundError:
                shutil.rmtree(f"{self._root}/{name}")  # its making was cut short

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        options: Mapping[str, str],
        anonymous: bool = False,
    ) -> LocalVolume:
        """Make it durably; the existing one where its options are the same (Conflict where not)."""
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise Invalid(
                f"{name!r} includes invalid characters for a local volume name, "
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
            )
        if old := self._volumes.get(name):
            if options and dict(options) != dict(old.options):
                raise Conflict(f"volume {name} already exists with other options")
            return old
        mountpoint = _device(options) or f"{self._root}/{name}/_data"
        volume = LocalVolume(name, mountpoint, time.time(), dict(labels), dict(options), anonymous)
        os.makedirs(f"{self._root}/{name}/_data", 0o755, exist_ok=True)
        os.chmod(f"{self._root}/{name}", 0o701)
        write_durably(f"{self._root}/{name}/volume.json", json.dumps(to_json(volume)).encode())
        _sync_directory(self._root)
        self._volumes[name] = volume
        return volume

    def get(self, name: str) -> LocalVolume:
        """NotFound, in the text that clients match."""
        if name not in self._volumes:
            raise NotFound(f"get {name}: no such volume")
        return self._volumes[name]

    def list(self) -> Sequence[LocalVolume]:
        return sorted(self._volumes.values(), key=lambda v: v.name)

    def path(self, name: str) -> str:
        """The host directory that containers mount."""
        return self.get(name).mountpoint

    def remove(self, name: str) -> None:
        """Remove it with its data (a bind's device is left alone). NotFound."""
        self.get(name)
        del self._volumes[name]
        os.unlink(f"{self._root}/{name}/volume.json")
        shutil.rmtree(f"{self._root}/{name}")


def _device(options: Mapping[str, str]) -> str:
    if not options:
        return ""
    flags = set(options.get("o", "").split(","))
    device = options.get("device", "")
    unknown = set(options) - {"type", "o", "device"}
    if unknown:
        raise Invalid(f"volume option {sorted(unknown)[0]!r} is not known to the local driver")
    if options.get("type", "none") not in ("none", "bind") or not flags & {"bind", "rbind"}:
        raise Invalid(
            "the local driver takes options only for binds: type=none, o=bind, device=..."
        )
    if not os.path.isdir(device):
        raise Invalid(f"volume option device={device!r}: not a directory of this node")
    return device


def write_durably(path: str, content: bytes) -> None:
    """Replace a file so that after a power loss it is whole, old or new (mode 0600)."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.rename(path + ".new", path)
    _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
