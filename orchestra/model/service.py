"""A service: what the user asked for. The system never changes it.

Durations are seconds, sizes bytes, CPU amounts whole cores (0.5 is half of one). Every field has
the meaning of the compose specification's attribute of the same name unless its comment says
otherwise. `compose` builds these values, `plan` turns a service and a node into a container.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import field, frozen


class ServiceMode(enum.Enum):
    REPLICATED = "replicated"
    GLOBAL = "global"
    REPLICATED_JOB = "replicated-job"
    GLOBAL_JOB = "global-job"


class DependencyCondition(enum.Enum):
    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


class RestartCondition(enum.Enum):
    NONE = "none"
    ON_FAILURE = "on-failure"
    ANY = "any"  # also compose's `always`
    UNLESS_STOPPED = "unless-stopped"


class PortMode(enum.Enum):
    INGRESS = "ingress"  # every node answers
    HOST = "host"  # only the node that runs the task


class MountType(enum.Enum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


class UpdateOrder(enum.Enum):
    STOP_FIRST = "stop-first"
    START_FIRST = "start-first"


@frozen
class Healthcheck:
    """`test` is ("CMD", arg, ...), ("CMD-SHELL", line) or ("NONE",)."""

    test: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    start_period: float = 0.0
    start_interval: float = 5.0


@frozen
class RestartPolicy:
    """When and how soon a task that ended is started again on its node.

    `delay` None means the exponential back-off of `restart:` (from 100 ms); a number is the fixed
    delay of `deploy.restart_policy`. `max_attempts` counts restarts (None: no limit) within
    `window` seconds (0: for ever).
    """

    condition: RestartCondition = RestartCondition.NONE
    delay: float | None = None
    max_attempts: int | None = None
    window: float = 0.0


@frozen
class UpdateConfig:
    """`order` None lets the planner choose (start-first unless a host port or a volume forbids)."""

    parallelism: int = 1
    delay: float = 0.0
    failure_action: str = "pause"
    monitor: float = 5.0
    max_failure_ratio: float = 0.0
    order: UpdateOrder | None = None


@frozen
class Port:
    """One port (ranges are expanded). `published` None: the controller picks one."""

    target: int
    published: int | None = None
    protocol: str = "tcp"
    mode: PortMode = PortMode.INGRESS
    host_ip: str = ""
    name: str = ""
    app_protocol: str = ""


@frozen
class Mount:
    """`source` is a path (bind), a volume's name (volume; "" = anonymous) or "" (tmpfs)."""

    type: MountType
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = ""  # bind: rprivate (default), private, rshared, shared, rslave, slave
    create_host_path: bool = False  # bind: make a missing source a directory
    no_copy: bool = False  # volume: do not fill it from the image
    subpath: str = ""  # volume
    tmpfs_size: int | None = None
    tmpfs_mode: int | None = None  # permission bits


@frozen
class FileReference:
    """A config or secret as a service uses it; `source` is a key of the stack's files."""

    source: str
    target: str
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


@frozen
class ServiceNetwork:
    """A service's membership in one network of the stack."""

    network: str
    aliases: tuple[str, ...] = ()
    ipv4_address: str = ""
    ipv6_address: str = ""
    priority: int = 0


@frozen
class Dependency:
    service: str
    condition: DependencyCondition = DependencyCondition.STARTED
    required: bool = True
    restart: bool = False


@frozen
class Resources:
    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None


@frozen
class Ulimit:
    """-1 means unlimited."""

    soft: int
    hard: int


@frozen
class Placement:
    constraints: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()  # "spread=node.labels.zone"
    max_replicas_per_node: int = 0  # 0: no limit


@frozen
class Service:
    name: str
    image: str = ""
    command: tuple[str, ...] | None = None  # None: the image's
    entrypoint: tuple[str, ...] | None = None  # None: the image's
    environment: Mapping[str, str] = field(factory=dict)  # env_file already merged in
    working_dir: str = ""
    user: str = ""
    group_add: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    container_name: str = ""
    labels: Mapping[str, str] = field(factory=dict)  # on the containers
    deploy_labels: Mapping[str, str] = field(factory=dict)  # on the service
    ports: tuple[Port, ...] = ()
    expose: tuple[str, ...] = ()
    networks: tuple[ServiceNetwork, ...] = ()
    network_mode: str = ""  # "", none, host
    endpoint_mode: str = "vip"  # vip, dnsrr
    mounts: tuple[Mount, ...] = ()
    configs: tuple[FileReference, ...] = ()
    secrets: tuple[FileReference, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    healthcheck: Healthcheck | None = None  # None: the image's
    restart: RestartPolicy = RestartPolicy()
    stop_signal: str = ""
    stop_grace_period: float = 10.0
    init: bool = False
    tty: bool = False
    stdin_open: bool = False
    read_only: bool = False
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(factory=dict)
    ulimits: Mapping[str, Ulimit] = field(factory=dict)
    shm_size: int | None = None
    extra_hosts: tuple[str, ...] = ()  # "name:address"
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    mode: ServiceMode = ServiceMode.REPLICATED
    replicas: int = 1
    placement: Placement = Placement()
    limits: Resources = Resources()
    reservations: Resources = Resources()
    update: UpdateConfig | None = None  # None: the file says nothing
    profiles: tuple[str, ...] = ()


@frozen
class Network:
    """A network of a stack; `name` is its full name on the cluster (`guestbook_front`)."""

    key: str
    name: str
    external: bool = False
    internal: bool = False
    attachable: bool = False
    subnet: str = ""  # "" : the controller picks one
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Volume:
    key: str
    name: str
    external: bool = False
    driver: str = "local"
    driver_opts: Mapping[str, str] = field(factory=dict)
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class StackFile:
    """The content of one config or secret, read where the CLI runs."""

    key: str
    content: bytes
    secret: bool


@frozen
class Stack:
    """One compose project, loaded, normalised and restricted to its active profiles."""

    name: str
    services: Mapping[str, Service] = field(factory=dict)
    networks: Mapping[str, Network] = field(factory=dict)
    volumes: Mapping[str, Volume] = field(factory=dict)
    files: Mapping[str, StackFile] = field(factory=dict)  # "config/NAME", "secret/NAME"
