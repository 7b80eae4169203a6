"""Making a container: its volumes, its directory, its record. Nothing runs yet.

Order: volumes and directory are durable before the record says that they are there, so an agent
that dies in between leaves a directory without a record, which its next start sweeps away.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import trio
from attrs import frozen

from orchestra.agent.containers import Containers, Live
from orchestra.agent.events import Events
from orchestra.agent.state import Record
from orchestra.image.images import Images
from orchestra.model.container import Container, ContainerSpec, LocalVolume
from orchestra.model.errors import Invalid, NotFound
from orchestra.model.service import Mount, MountType
from orchestra.runtime.runtime import Runtime
from orchestra.runtime.volumes import Volumes


@frozen
class Parts:
    """What a node is made of, for those who need most of it."""

    containers: Containers
    runtime: Runtime
    images: Images
    volumes: Volumes
    events: Events


def new_id() -> str:
    """Return 64 random hex digits whose first 12 are not all decimal (they look like numbers)."""
    while (candidate := secrets.token_hex(32))[:12].isdecimal():
        pass
    return candidate


async def create_container(
    parts: Parts,
    container_id: str,
    name: str,
    spec: ContainerSpec,
    *,
    request: Mapping[str, Any] | None = None,
    task: str = "",
    restart_token: int = 0,
) -> Live:
    """Create a container of a complete specification; its name must be valid and free.

    Raises NotFound for an image that is not here, Invalid for a mount that cannot be, Failed with
    the reason where the disk refuses.
    """
    containers = parts.containers
    containers.check_name(name)
    for mount in spec.mounts:
        _check_mount(mount)
    lowers = parts.images.lowers(spec.image_id)
    containers.reserve(name, container_id)
    made: list[LocalVolume] = []
    try:
        with trio.CancelScope(shield=True):
            volumes = {
                m.target: _volume(parts, m, made) for m in spec.mounts if m.type is MountType.VOLUME
            }
            paths = {target: parts.volumes.path(volume) for target, volume in volumes.items()}
            await parts.runtime.create(container_id, spec, lowers, paths)
            container = Container(
                id=container_id,
                name=name,
                created=time.time(),
                spec=spec,
                task=task,
                request=request or {},
                volumes=volumes,
            )
            live = containers.add(Record(container, restart_token=restart_token))
    except BaseException:
        containers.release(name)
        for volume in made:
            if volume.anonymous:
                parts.volumes.remove(volume.name)
        raise
    attributes = {**spec.labels, "image": spec.image, "name": name}
    parts.events.publish("container", "create", container_id, attributes)
    return live


def _check_mount(mount: Mount) -> None:
    if not mount.target.startswith("/"):
        raise Invalid(f"invalid mount path: '{mount.target}' mount path must be absolute")
    if mount.type is not MountType.BIND:
        return
    if not mount.source.startswith("/"):
        raise Invalid(f"invalid mount path: '{mount.source}' bind source path must be absolute")
    if not mount.create_host_path and not os.path.exists(mount.source):
        raise Invalid(
            f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
        )


def _volume(parts: Parts, mount: Mount, made: list[LocalVolume]) -> str:
    """Return the name of the mount's volume, made now where it does not exist."""
    name = mount.source or secrets.token_hex(32)
    try:
        return parts.volumes.get(name).name
    except NotFound:
        volume = parts.volumes.create(name, {}, {}, anonymous=not mount.source)
        made.append(volume)
        parts.events.publish("volume", "create", name, {"driver": "local"})
        return volume.name
