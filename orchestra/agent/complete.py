"""A create request and its image become the complete specification of a container.

Docker's merge rules, pure: what the request says wins, where it is silent the image's
configuration speaks, and a new entrypoint drops the image's command. Endpoints are not decided
here, they need the node's networks.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from orchestra.api.engine import CreateRequest
from orchestra.model.container import ContainerSpec, Image
from orchestra.model.errors import Invalid
from orchestra.model.service import Healthcheck, Mount, MountType, Port, RestartCondition

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def complete(request: CreateRequest, image: Image) -> ContainerSpec:
    """Return the specification to run. Raises Invalid where the request contradicts itself."""
    spec, config = request.spec, image.config
    entrypoint, command = _argv(request, image)
    if not entrypoint + command:
        raise Invalid(
            f"no command specified: image {spec.image} has neither entrypoint nor command; "
            "give one behind the image's name"
        )
    if spec.auto_remove and spec.restart.condition is not RestartCondition.NONE:
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    return evolve(
        spec,
        image_id=image.id,
        args=entrypoint + command,
        entrypoint=entrypoint,
        env=merge_env(config.env, spec.env),
        working_dir=spec.working_dir or config.working_dir or "/",
        user=spec.user or config.user,
        labels={**config.labels, **spec.labels},
        mounts=spec.mounts + _image_volumes(config.volumes, spec.mounts),
        stop_signal=spec.stop_signal or config.stop_signal or "SIGTERM",
        healthcheck=_healthcheck(spec.healthcheck, config.healthcheck),
        ports=spec.ports + _all_ports(request, image),
    )


def merge_env(base: Iterable[str], over: Iterable[str]) -> tuple[str, ...]:
    """Merge "KEY=value" texts in order; a bare "KEY" removes it. PATH is always there."""
    values = {"PATH": PATH}
    for entry in (*base, *over):
        key, equals, _ = entry.partition("=")
        if equals:
            values[key] = entry
        else:
            values.pop(key, None)
    return tuple(values.values())


def _argv(request: CreateRequest, image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    said = request.spec
    if said.entrypoint:
        # [""] is how `--entrypoint ""` arrives: run the command alone.
        return (() if said.entrypoint == ("",) else said.entrypoint), said.args
    entrypoint = () if request.entrypoint_given else image.config.entrypoint
    return entrypoint, said.args or (() if request.cmd_given else image.config.cmd)


def _healthcheck(said: Healthcheck | None, image: Healthcheck | None) -> Healthcheck | None:
    if said is None:
        return image
    if said.test:
        return said
    # Only the timing was given: it applies to the image's test.
    return evolve(said, test=image.test) if image else None


def _image_volumes(targets: Iterable[str], mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    covered = {m.target.rstrip("/") for m in mounts}
    return tuple(
        Mount(MountType.VOLUME, target) for target in targets if target.rstrip("/") not in covered
    )


def _all_ports(request: CreateRequest, image: Image) -> tuple[Port, ...]:
    """Return the exposed ports as published ones, where the request says so (`-P`)."""
    host = request.body.get("HostConfig") or {}
    if not host.get("PublishAllPorts"):
        return ()
    exposed = [*image.config.exposed_ports, *(request.body.get("ExposedPorts") or {})]
    given = {(p.target, p.protocol) for p in request.spec.ports}
    wanted = dict.fromkeys(_port(text) for text in exposed)
    return tuple(Port(t, None, protocol) for t, protocol in wanted if (t, protocol) not in given)


def _port(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return int(number), protocol or "tcp"
