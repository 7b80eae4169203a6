"""A container: what it shall be (`ContainerSpec`) and what became of it (`Container`).

The runtime runs a spec; the agent keeps the record; the API renders both in Docker's shapes. A
spec is complete: entrypoint, command, environment and user are already those of image and request
together, so that starting it needs no second look at the image's configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from orchestra.model.service import Healthcheck, Mount, Port, RestartPolicy, Ulimit
from orchestra.model.task import HealthStatus as HealthStatus


@frozen
class Limits:
    """Cgroup settings; None leaves the kernel's default. Same meaning as Docker's HostConfig."""

    memory: int | None = None
    memory_swap: int | None = None  # memory + swap, -1 unlimited
    memory_reservation: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpu_period: int | None = None  # microseconds
    cpu_quota: int | None = None  # microseconds
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None


@frozen
class FileContent:
    """A config or secret inside the container, at an absolute path, from `content`."""

    target: str
    content: bytes = field(repr=False)
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


@frozen
class Endpoint:
    """One wire of a container: its address in a network.

    `network` is the network's id; `address` is IPv4 text ("" until the agent chose one from the
    node's block); `aliases` are further DNS names on that network.
    """

    network: str
    network_name: str = ""
    address: str = ""
    aliases: tuple[str, ...] = ()
    mac: str = ""


@frozen
class ContainerSpec:
    image: str  # as the user wrote it
    image_id: str  # "sha256:..." of the image's configuration
    args: tuple[str, ...]  # entrypoint and command joined: argv
    entrypoint: tuple[str, ...] = ()  # how args divides: first part
    env: tuple[str, ...] = ()  # "KEY=value", PATH always among them
    working_dir: str = "/"
    user: str = ""  # "", "name", "uid", "user:group"
    group_add: tuple[str, ...] = ()
    hostname: str = ""  # "": the first 12 characters of the id
    domainname: str = ""
    labels: Mapping[str, str] = field(factory=dict)
    mounts: tuple[Mount, ...] = ()
    files: tuple[FileContent, ...] = ()
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    console_size: tuple[int, int] = (0, 0)  # rows, columns
    stop_signal: str = "SIGTERM"
    stop_grace: float = 10.0  # seconds; -1: wait for ever
    cap_add: tuple[str, ...] = ()  # "NET_ADMIN" or "CAP_NET_ADMIN", "ALL"
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    read_only: bool = False
    init: bool = False
    no_new_privileges: bool = False
    seccomp: str = ""  # "": the default profile; "unconfined"; else a profile's JSON text
    limits: Limits = Limits()
    ulimits: Mapping[str, Ulimit] = field(factory=dict)
    sysctls: Mapping[str, str] = field(factory=dict)
    shm_size: int = 64 << 20
    oom_score_adj: int | None = None
    network_mode: str = "bridge"  # bridge, none, host, container:ID, or a network's name
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[Port, ...] = ()  # published by this container itself (docker run -p)
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    restart: RestartPolicy = field(factory=RestartPolicy)
    healthcheck: Healthcheck | None = None
    auto_remove: bool = False


class ContainerStatus(enum.Enum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


@frozen
class Probe:
    """One run of a health check; times are Unix seconds."""

    started: float
    finished: float
    exit_code: int
    output: str


@frozen
class Health:
    status: HealthStatus
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()  # the last five


@frozen
class Container:
    """The agent's record of one container. Times are Unix seconds, 0.0 = never."""

    id: str  # 64 hex digits
    name: str  # without a leading slash
    created: float
    spec: ContainerSpec
    status: ContainerStatus = ContainerStatus.CREATED
    pid: int = 0
    exit_code: int = 0
    last_exit_code: int | None = None  # of the last run that ended, while the next one runs too
    error: str = ""
    oom_killed: bool = False
    started: float = 0.0
    finished: float = 0.0  # of the last run that ended
    restart_count: int = 0
    stopped_by_user: bool = False
    health: Health | None = None
    task: str = ""  # id of the assigned task, "" = imperative
    request: Mapping[str, Any] = field(factory=dict)  # the create call's body, for inspect
    volumes: Mapping[str, str] = field(factory=dict)  # mount target -> volume name


@frozen
class ExecSpec:
    args: tuple[str, ...]
    env: tuple[str, ...] = ()  # added to the container's
    working_dir: str = ""  # "": the container's
    user: str = ""  # "": the container's
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    privileged: bool = False
    console_size: tuple[int, int] = (0, 0)
    detach_keys: str = ""


@frozen
class Exec:
    id: str
    container: str
    spec: ExecSpec
    running: bool = False
    exit_code: int | None = None
    pid: int = 0


@frozen
class ImageConfig:
    """The parts of an OCI image configuration that make a container's defaults."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(factory=dict)
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] = ()
    onbuild: tuple[str, ...] = ()


@frozen
class Image:
    """An image in a store, as listings and inspection show it."""

    id: str  # "sha256:..." of the configuration
    manifest_digest: str
    names: tuple[str, ...]  # familiar form: "busybox:latest"
    digests: tuple[str, ...] = ()  # "busybox@sha256:..."
    created: float = 0.0
    size: int = 0  # bytes of the unpacked layers' tar
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    author: str = ""
    comment: str = ""
    layers: tuple[str, ...] = ()  # diff ids
    history: tuple[Mapping[str, Any], ...] = ()
    config: ImageConfig = ImageConfig()


@frozen
class LocalVolume:
    name: str
    mountpoint: str
    created: float
    labels: Mapping[str, str] = field(factory=dict)
    options: Mapping[str, str] = field(factory=dict)
    anonymous: bool = False
