"""A node: what the inventory says of it, what its agent reports, what the cluster thinks of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import field, frozen

from orchestra.model.task import TERMINAL as TERMINAL
from orchestra.model.task import HealthStatus
from orchestra.model.task import TaskState as TaskState


class NodeState(enum.Enum):
    """What the controller knows of a node's reachability."""

    UNKNOWN = "unknown"
    READY = "ready"
    NOT_READY = "not-ready"  # reachable, but the agent reports why it cannot take tasks
    DOWN = "down"


class Availability(enum.Enum):
    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@frozen
class InventoryNode:
    """How to reach a node over SSH; `underlay` "" = the address other nodes reach it by."""

    name: str
    address: str
    user: str = "root"
    port: int = 22
    identity: str = ""  # path of a private key; "": the SSH agent and default keys
    underlay: str = ""  # address or interface name
    jump: str = ""  # user@host[:port]
    host_key: str = ""  # "ssh-ed25519 AAAA..." as pinned by `node add`
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class NodeFacts:
    """What an agent says of its host; collected at its start, cheap to ask."""

    id: str
    name: str
    hostname: str
    agent_version: str
    protocol: int
    os: str
    architecture: str  # amd64, arm64
    kernel: str
    cpus: float
    memory: int
    cgroup_version: int
    addresses: tuple[str, ...] = ()  # of the host's interfaces, without loopback
    routes: tuple[str, ...] = ()  # destination prefixes of the host's routes
    labels: Mapping[str, str] = field(factory=dict)  # engine labels
    problems: tuple[str, ...] = ()  # why it cannot take tasks, each with its remedy
    boot_id: str = ""


@frozen
class ObservedTask:
    """What a node reports of one assigned task. Times are Unix seconds.

    `exit_code` and `finished` are those of the last run that ended, while the next one runs too.
    """

    id: str
    state: TaskState
    container: str = ""
    health: HealthStatus | None = None
    exit_code: int | None = None
    error: str = ""
    restarts: int = 0
    started: float = 0.0
    finished: float = 0.0
    final: bool = False  # no further restart will come from the node itself
    restart_token: int = 0  # of the last restart that was asked for and done

    @property
    def serving(self) -> bool:
        """Running, and healthy where a health check exists: may receive traffic."""
        return self.state is TaskState.RUNNING and self.health in (None, HealthStatus.HEALTHY)


@frozen
class Observed:
    """A node's report. `sequence` rises with every change; `applied` is a generation."""

    sequence: int
    facts: NodeFacts
    applied: int = 0
    tasks: tuple[ObservedTask, ...] = ()
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()  # "tcp/8080" bound by imperative containers
    problems: tuple[str, ...] = ()  # of applying the assignment, each naming its object
