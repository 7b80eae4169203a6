"""A service on a node becomes a container: its complete specification.

The image's configuration and the service are merged by Docker's rules, templates such as
`{{.Node.Hostname}}` are filled in, and labels say whose the container is. What comes out needs no
second look at service, stack or image.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve, frozen

from orchestra.model.cluster import StackRecord
from orchestra.model.container import ContainerSpec, Endpoint, FileContent, Limits
from orchestra.model.errors import Invalid
from orchestra.model.service import FileReference, Healthcheck, Mount, MountType, Service, Stack
from orchestra.plan.state import ImageFacts

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}")


@frozen
class Place:
    """Where and as what a task runs: what templates and labels can say."""

    task: str
    slot: str  # "web.3"
    number: int  # 3; 0 of a global service
    node_id: str
    node_name: str
    node_hostname: str
    node_os: str = "linux"
    node_architecture: str = ""


def expand(
    record: StackRecord,
    service: Service,
    place: Place,
    image: ImageFacts,
    endpoints: Sequence[Endpoint],
    spec_hash: str,
) -> ContainerSpec:
    """Return the container of one task.

    `endpoints` are its wires in order, the default route's first. Raises Invalid where the image
    and the service together have no command, and for a template that is not known.
    """
    stack = record.stack
    fill = _filler(stack, service, place)
    config = image.config
    entrypoint = config.entrypoint if service.entrypoint is None else service.entrypoint
    command = service.command
    if command is None:  # the image's command belongs to the image's entrypoint
        command = config.cmd if service.entrypoint is None else ()
    args = (*entrypoint, *command)
    if not args:
        raise Invalid(
            f"service {service.name}: image {service.image} has no command of its own; "
            "give the service a `command` or an `entrypoint`"
        )
    return ContainerSpec(
        image=service.image,
        image_id=image.id,
        args=args,
        entrypoint=tuple(entrypoint),
        env=_environment(config.env, {k: fill(v) for k, v in service.environment.items()}),
        working_dir=service.working_dir or config.working_dir or "/",
        user=service.user or config.user,
        group_add=service.group_add,
        hostname=fill(service.hostname),
        domainname=service.domainname,
        labels={
            **config.labels,
            **service.labels,
            **_labels(stack.name, service.name, place, record.revision, spec_hash),
        },
        mounts=_mounts(stack, service, config.volumes, fill),
        files=(
            *_files(stack, service.configs, "config"),
            *_files(stack, service.secrets, "secret"),
        ),
        tty=service.tty,
        open_stdin=service.stdin_open,
        stop_signal=service.stop_signal or config.stop_signal or "SIGTERM",
        stop_grace=service.stop_grace_period,
        cap_add=service.cap_add,
        cap_drop=service.cap_drop,
        privileged=service.privileged,
        read_only=service.read_only,
        init=service.init,
        limits=Limits(
            memory=service.limits.memory,
            memory_reservation=service.reservations.memory,
            cpus=service.limits.cpus,
            pids=service.limits.pids,
        ),
        ulimits=service.ulimits,
        sysctls=service.sysctls,
        shm_size=64 << 20 if service.shm_size is None else service.shm_size,
        network_mode=service.network_mode or (endpoints[0].network_name if endpoints else "none"),
        endpoints=tuple(endpoints),
        extra_hosts=service.extra_hosts,
        dns=service.dns,
        dns_search=service.dns_search,
        dns_opt=service.dns_opt,
        restart=service.restart,
        healthcheck=_healthcheck(service.healthcheck, config.healthcheck),
        no_new_privileges=_option(service.security_opt, "no-new-privileges") in ("", "true"),
        seccomp=_option(service.security_opt, "seccomp") or "",
    )


def check_templates(stack: Stack) -> None:
    """Raise Invalid for the first template in `stack` that no task could fill in."""
    place = Place("", "", 0, "", "", "")
    for service in stack.services.values():
        fill = _filler(stack, service, place)
        for text in (*service.environment.values(), service.hostname):
            fill(text)
        for mount in service.mounts:
            fill(mount.source)
            fill(mount.target)


def mac_of(address: str) -> str:
    """The wire's MAC address, made from its IPv4 address so that it needs no book-keeping."""
    octets = ipaddress.IPv4Address(address).packed
    return "02:6e:" + ":".join(f"{octet:02x}" for octet in octets)


def volume_name(stack: Stack, source: str) -> str:
    """The full name of the volume that a mount's `source` means in its stack."""
    volume = stack.volumes.get(source)
    return volume.name if volume else source


def _filler(stack: Stack, service: Service, place: Place) -> Callable[[str], str]:
    number = str(place.number) if place.number else place.slot.partition(".")[2]
    values = {
        ".Node.Hostname": place.node_hostname,
        ".Node.ID": place.node_id,
        ".Node.Name": place.node_name,
        ".Node.Platform.OS": place.node_os,
        ".Node.Platform.Architecture": place.node_architecture,
        ".Service.Name": service.name,
        ".Service.ID": f"{stack.name}_{service.name}",
        ".Stack.Name": stack.name,
        ".Task.ID": place.task,
        ".Task.Name": f"{stack.name}_{place.slot}",
        ".Task.Slot": number,
    }

    def value(match: re.Match[str]) -> str:
        key = match[1]
        if key.startswith(".Service.Labels."):
            return service.deploy_labels.get(key.removeprefix(".Service.Labels."), "")
        if key not in values:
            raise Invalid(
                f"service {service.name}: unknown template {match[0]}; known are "
                f"{', '.join(sorted(values))} and .Service.Labels.NAME"
            )
        return values[key]

    return lambda text: _TEMPLATE.sub(value, text) if "{{" in text else text


def _environment(image: Sequence[str], service: Mapping[str, str]) -> tuple[str, ...]:
    merged = {"PATH": DEFAULT_PATH}
    for line in image:
        key, _, value = line.partition("=")
        merged[key] = value
    merged.update(service)
    return tuple(f"{key}={value}" for key, value in merged.items())


def _labels(
    stack: str, service: str, place: Place, revision: int, spec_hash: str
) -> dict[str, str]:
    return {
        "com.docker.compose.project": stack,
        "com.docker.compose.service": service,
        "com.docker.compose.container-number": str(place.number or 1),
        "com.docker.compose.oneoff": "False",
        "com.docker.compose.config-hash": spec_hash,
        "com.orchestra.stack": stack,
        "com.orchestra.service": service,
        "com.orchestra.slot": place.slot,
        "com.orchestra.number": str(place.number),
        "com.orchestra.task": place.task,
        "com.orchestra.node": place.node_name,
        "com.orchestra.revision": str(revision),
        "com.orchestra.spec-hash": spec_hash,
    }


def _mounts(
    stack: Stack, service: Service, image_volumes: Sequence[str], fill: Callable[[str], str]
) -> tuple[Mount, ...]:
    mounts = []
    for mount in service.mounts:
        source = mount.source
        if mount.type is MountType.VOLUME and source:
            source = volume_name(stack, source)
        mounts.append(evolve(mount, source=fill(source), target=fill(mount.target)))
    covered = {mount.target.rstrip("/") for mount in mounts}
    mounts += [
        Mount(MountType.VOLUME, target)
        for target in image_volumes
        if target.rstrip("/") not in covered
    ]
    return tuple(mounts)


def _files(stack: Stack, references: Sequence[FileReference], kind: str) -> tuple[FileContent, ...]:
    out = []
    for reference in references:
        file = stack.files.get(reference.source) or stack.files.get(f"{kind}/{reference.source}")
        if file is None:
            raise Invalid(f"{kind} {reference.source} has no content in stack {stack.name}")
        out.append(
            FileContent(
                reference.target, file.content, reference.uid, reference.gid, reference.mode
            )
        )
    return tuple(out)


def _healthcheck(service: Healthcheck | None, image: Healthcheck | None) -> Healthcheck | None:
    """The service's check; without a `test` of its own it times the image's."""
    if service is None:
        found = image
    elif not service.test:
        found = evolve(service, test=image.test) if image else None
    else:
        found = service
    return None if found is None or found.test[:1] == ("NONE",) else found


def _option(options: Sequence[str], name: str) -> str | None:
    """The value of a `security_opt` entry ("key:value" or "key=value"); None: not given."""
    for option in options:
        key, _, value = option.replace("=", ":", 1).partition(":")
        if key == name:
            return value
    return None
