"""A bundle: everything the shim's child must know to make one process, as plain JSON data.

All policy is applied here, in the agent: capabilities as masks, the seccomp filter compiled, limits
checked, defaults spelled out. The child only follows. The classes name the keys for the type
checker; on both sides the values are the parsed JSON. Built by pure functions from model values.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from orchestra.linux import capabilities
from orchestra.linux.cgroups import CgroupLimits, Hierarchy
from orchestra.linux.seccomp import InvalidProfile, default_filter, parse_profile
from orchestra.linux.seccomp_default import DEFAULT_PROFILE
from orchestra.model.container import ContainerSpec, ExecSpec, Limits
from orchestra.model.errors import Invalid
from orchestra.model.service import Mount, MountType, Ulimit

# Sysctls that belong to a namespace of the container (sysctl(8)); others would change the host.
_NAMESPACED_SYSCTLS = re.compile(
    r"kernel\.(shm\w+|msg\w+|sem)|fs\.mqueue\.\w+|net\.[\w./-]+|kernel\.domainname"
)
_RLIMITS = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc"),
        *("rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)


class MountPart(TypedDict):
    type: str  # bind, volume, tmpfs
    target: str
    source: str  # host path
    subpath: str
    read_only: bool
    propagation: str
    create: bool  # make a missing source a directory
    copy: bool  # fill an empty volume from the image
    size: int  # tmpfs, 0 = the kernel's default
    mode: int  # tmpfs


class FilePart(TypedDict):
    target: str
    content: str  # base64
    uid: str
    gid: str
    mode: int


class ProcessPart(TypedDict):
    args: list[str]
    env: list[str]
    cwd: str
    user: str
    groups: list[str]
    tty: bool
    console_size: list[int]
    caps: int
    host_caps: int
    seccomp: str  # base64 of the BPF program, "" = none
    no_new_privileges: bool
    rlimits: list[tuple[str, int, int]]
    cgroups: list[str]  # cgroup.procs files to join; empty on v2, where clone3 does it
    privileged: bool


class ExecPart(ProcessPart):
    pass


class StartPart(ProcessPart):
    run_directory: str
    lowers: list[str]
    upper: str
    work: str
    hostname: str
    domainname: str
    mounts: list[MountPart]
    files: list[FilePart]
    etc: dict[str, str]  # name in /etc -> content
    sysctls: dict[str, str]
    shm_size: int
    oom_score_adj: int | None
    read_only: bool
    init: str  # base64 of the init program, "" = none
    cgroup_namespace: bool  # unshared by the child after it joined (v1)
    cgroup_mounts: list[str]  # v1 controllers, or ["cgroup2"]


def check(spec: ContainerSpec, volumes: Mapping[str, str]) -> None:
    """Raise Invalid for what can never run, before anything is made."""
    if not spec.args:
        raise Invalid("no command specified")
    for name in spec.sysctls:
        if not _NAMESPACED_SYSCTLS.fullmatch(name):
            raise Invalid(f"sysctl {name!r} is not of a container's namespaces: set it on the host")
        if name.startswith("net.") and spec.network_mode == "host":
            raise Invalid(f"sysctl {name!r} not allowed in host network namespace")
    for name in spec.ulimits:
        if name not in _RLIMITS:
            raise Invalid(f"invalid ulimit type: {name}")
    for mount in spec.mounts:
        if not mount.target.startswith("/"):
            raise Invalid(f"invalid mount path: {mount.target!r} must be absolute")
        if mount.type is MountType.VOLUME and mount.target not in volumes:
            raise Invalid(f"mount {mount.target}: its volume has no directory on this node")
        if mount.type is MountType.BIND and not mount.source.startswith("/"):
            raise Invalid(f"mount {mount.target}: source {mount.source!r} must be absolute")
    _caps(spec)
    _seccomp(spec, ())


def cgroup_limits(limits: Limits) -> CgroupLimits:
    return CgroupLimits(
        memory=limits.memory or None,
        memory_swap=limits.memory_swap or None,
        memory_reservation=limits.memory_reservation or None,
        cpus=limits.cpus or None,
        cpu_shares=limits.cpu_shares or None,
        cpu_period=limits.cpu_period or None,
        cpu_quota=limits.cpu_quota or None,
        cpuset_cpus=limits.cpuset_cpus,
        cpuset_mems=limits.cpuset_mems,
        pids=limits.pids,
    )


def start_part(
    spec: ContainerSpec,
    *,
    lowers: Sequence[str],
    volumes: Mapping[str, str],
    directory: str,
    run_directory: str,
    hierarchy: Hierarchy,
    procs_files: Sequence[str],
    hostname: str,
    etc: Mapping[str, str],
    init: bytes,
) -> StartPart:
    """The description of a container's first process."""
    mask = _caps(spec)
    taken = {mount.target.rstrip("/") for mount in spec.mounts}
    taken |= {file.target for file in spec.files}
    version_2 = hierarchy.version == 2
    return StartPart(
        args=list(spec.args),
        env=_environment(spec, hostname),
        cwd=spec.working_dir or "/",
        user=spec.user,
        groups=list(spec.group_add),
        tty=spec.tty,
        console_size=list(spec.console_size),
        caps=mask,
        host_caps=capabilities.bounding(),
        seccomp=_seccomp(spec, capabilities.names(mask)),
        no_new_privileges=spec.no_new_privileges,
        rlimits=_rlimits(spec.ulimits),
        cgroups=list(procs_files),
        privileged=spec.privileged,
        run_directory=run_directory,
        lowers=list(lowers),
        upper=f"{directory}/upper",
        work=f"{directory}/work",
        hostname=hostname,
        domainname=spec.domainname,
        mounts=[_mount(mount, volumes) for mount in spec.mounts],
        files=[
            FilePart(
                target=file.target,
                content=base64.b64encode(file.content).decode(),
                uid=file.uid,
                gid=file.gid,
                mode=file.mode,
            )
            for file in spec.files
        ],
        etc={name: text for name, text in etc.items() if f"/etc/{name}" not in taken},
        sysctls=dict(spec.sysctls),
        shm_size=spec.shm_size,
        oom_score_adj=spec.oom_score_adj,
        read_only=spec.read_only,
        init=base64.b64encode(init).decode() if spec.init else "",
        cgroup_namespace=not version_2,
        cgroup_mounts=["cgroup2"] if version_2 else list(hierarchy.controllers),
    )


def exec_part(
    container: ContainerSpec, spec: ExecSpec, *, procs_files: Sequence[str], hostname: str
) -> ExecPart:
    """The description of a further process in a running container."""
    mask = capabilities.bounding() if spec.privileged else _caps(container)
    if not spec.args:
        raise Invalid("No exec command specified")
    environment = [*_environment(container, hostname), *spec.env]
    if spec.tty and not any(pair.startswith("TERM=") for pair in environment):
        environment.append("TERM=xterm")
    return ExecPart(
        args=list(spec.args),
        env=environment,
        cwd=spec.working_dir or container.working_dir or "/",
        user=spec.user or container.user,
        groups=list(container.group_add),
        tty=spec.tty,
        console_size=list(spec.console_size),
        caps=mask,
        host_caps=capabilities.bounding(),
        seccomp="" if spec.privileged else _seccomp(container, capabilities.names(mask)),
        no_new_privileges=container.no_new_privileges,
        rlimits=_rlimits(container.ulimits),
        cgroups=list(procs_files),
        privileged=spec.privileged,
    )


def _environment(spec: ContainerSpec, hostname: str) -> list[str]:
    """The spec's, after what every container is told; a later entry wins."""
    given = [f"HOSTNAME={hostname}"] + (["TERM=xterm"] if spec.tty else [])
    return [*given, *spec.env]


def _caps(spec: ContainerSpec) -> int:
    try:
        return capabilities.wanted(
            spec.cap_add, spec.cap_drop, spec.privileged, capabilities.bounding()
        )
    except capabilities.UnknownCapability as error:
        raise Invalid(f"invalid capability: {error}") from None


def _seccomp(spec: ContainerSpec, caps: Sequence[str]) -> str:
    if spec.privileged or spec.seccomp == "unconfined":
        return ""
    try:
        profile = parse_profile(spec.seccomp) if spec.seccomp else DEFAULT_PROFILE
        return base64.b64encode(default_filter(caps, profile)).decode()
    except InvalidProfile as error:
        raise Invalid(f"seccomp profile: {error}") from None


def _rlimits(ulimits: Mapping[str, Ulimit]) -> list[tuple[str, int, int]]:
    return [(name, limit.soft, limit.hard) for name, limit in ulimits.items()]


def _mount(mount: Mount, volumes: Mapping[str, str]) -> MountPart:
    volume = mount.type is MountType.VOLUME
    return MountPart(
        type=mount.type.value,
        target=mount.target,
        source=volumes[mount.target] if volume else mount.source,
        subpath=mount.subpath,
        read_only=mount.read_only,
        propagation=mount.propagation,
        create=mount.create_host_path and mount.type is MountType.BIND,
        copy=volume and not mount.no_copy and not mount.read_only and not mount.subpath,
        size=mount.tmpfs_size or 0,
        mode=0o1777 if mount.tmpfs_mode is None else mount.tmpfs_mode,
    )
