"""A task: one attempt to run a slot on a node, and the row that `ps` shows of it.

Apart from the other values of the cluster because `orchestra ps` needs nothing else of them, and
making classes is most of what the command takes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import field, frozen


class TaskState(enum.Enum):
    """Only moves forward within one attempt; `restarts` counts attempts on the node."""

    NEW = "new"
    PENDING = "pending"
    ASSIGNED = "assigned"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETE = "complete"  # ended with exit code 0
    FAILED = "failed"
    REJECTED = "rejected"  # the node cannot run it
    SHUTDOWN = "shutdown"  # ended because it was asked to
    ORPHANED = "orphaned"  # its node is gone


TERMINAL = frozenset(
    {
        TaskState.COMPLETE,
        TaskState.FAILED,
        TaskState.REJECTED,
        TaskState.SHUTDOWN,
        TaskState.ORPHANED,
    }
)


class HealthStatus(enum.Enum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@frozen
class Task:
    """The controller's record of one attempt to run a slot on a node; immutable but for `stop`."""

    id: str
    stack: str
    service: str
    slot: str  # "web.3", global: "web.<node name>"
    number: int  # 3; global: 0
    node: str  # node id
    spec_hash: str  # of the service it was made from
    revision: int  # of the stack
    created: float
    stop: bool = False
    stop_reason: str = ""
    held: bool = False  # with `stop`: by a user; it is kept, to be resumed in place
    addresses: Mapping[str, str] = field(factory=dict)  # network id -> address
    restart_token: int = 0


@frozen
class TaskStatus:
    """One row of `ps`."""

    task: str
    stack: str
    service: str
    slot: str
    node: str  # name, "" while waiting
    state: TaskState
    desired: str  # "running", "shutdown"
    image: str = ""
    container: str = ""
    container_name: str = ""
    health: HealthStatus | None = None
    exit_code: int | None = None
    error: str = ""  # also why it waits
    final: bool = False  # it ended, and its node will not start it again
    restarts: int = 0
    created: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    ports: tuple[str, ...] = ()  # "*:8080->80/tcp"
    addresses: Mapping[str, str] = field(factory=dict)  # network name -> address
