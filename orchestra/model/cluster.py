"""What the controller says of the cluster: nodes, stacks, tasks, plans and progress.

These are the values of the controller's HTTP API: the CLI prints them and nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import field, frozen

from orchestra.model.codec import tagged
from orchestra.model.node import Availability, InventoryNode, NodeFacts, NodeState
from orchestra.model.service import Stack
from orchestra.model.task import Task as Task
from orchestra.model.task import TaskStatus as TaskStatus


@frozen
class NodeStatus:
    """One row of `node ls`. `facts` None: never reached since the controller started."""

    node: InventoryNode
    state: NodeState
    id: str = ""
    index: int = 0
    availability: Availability = Availability.ACTIVE
    reason: str = ""  # why it is not ready
    facts: NodeFacts | None = None
    applied: int = 0  # generation
    last_seen: float = 0.0


@frozen
class ServiceStatus:
    stack: str
    service: str
    mode: str
    running: int
    desired: int
    image: str
    ports: tuple[str, ...] = ()


# --- plan -----------------------------------------------------------------------------------
# Every action is an idempotent value that says why it is there; `str()` of it is the line that
# `plan`, the confirmation, events and logs show.


@frozen
class Difference:
    """One key of a service's specification that changed; old and new as short text."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


@tagged
@frozen
class CreateNetwork:
    network: str
    because: str

    def __str__(self) -> str:
        return f"create network {self.network}: {self.because}"


@tagged
@frozen
class RemoveNetwork:
    network: str
    because: str

    def __str__(self) -> str:
        return f"remove network {self.network}: {self.because}"


@tagged
@frozen
class CreateVolume:
    volume: str
    node: str  # node's name
    because: str

    def __str__(self) -> str:
        return f"create volume {self.volume} on {self.node}: {self.because}"


@tagged
@frozen
class StartTask:
    """Start a slot on a node: `replaces` is the task id that it takes over from ("" = none)."""

    stack: str
    service: str
    slot: str
    number: int
    node: str  # node id
    node_name: str
    because: str
    replaces: str = ""
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        verb = "replace" if self.replaces else "start"
        text = f"{verb} {self.slot} on {self.node_name}: {self.because}"
        return text + "".join(f"\n    {d}" for d in self.differences)


@tagged
@frozen
class StopTask:
    task: str
    stack: str
    service: str
    slot: str
    node_name: str
    because: str
    hold: bool = False  # its container is kept for a later ResumeTask

    def __str__(self) -> str:
        return f"stop {self.slot} on {self.node_name}: {self.because}"


@tagged
@frozen
class ResumeTask:
    """Start the container of a held task again, where it is and as it is."""

    task: str
    stack: str
    service: str
    slot: str
    node_name: str
    because: str

    def __str__(self) -> str:
        return f"start {self.slot} on {self.node_name} again: {self.because}"


@tagged
@frozen
class RemoveTask:
    """Forget a task that ended; its container is removed from its node."""

    task: str
    slot: str
    because: str

    def __str__(self) -> str:
        return f"remove ended {self.slot}: {self.because}"


Action = (
    CreateNetwork | RemoveNetwork | CreateVolume | StartTask | StopTask | ResumeTask | RemoveTask
)


@frozen
class Blocked:
    """Not possible now, and why: "no node satisfies node.labels.disk==ssd: 3 of 3 lack it"."""

    slot: str
    because: str
    stack: str = ""


@frozen
class Waiting:
    """Possible later: what it waits for, and until when at most (Unix time, 0 = an event)."""

    slot: str
    because: str
    until: float = 0.0
    stack: str = ""


@frozen
class Plan:
    """What would happen now. `generation` is the one it was made from; applying checks it."""

    generation: int
    actions: tuple[Action, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    warnings: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()  # nodes that could not be asked

    @property
    def empty(self) -> bool:
        return not self.actions and not self.blocked and not self.waiting


class StackPhase(enum.Enum):
    CONVERGING = "converging"
    CONVERGED = "converged"
    FAILED = "failed"
    REMOVING = "removing"
    REMOVED = "removed"


class SlotPhase(enum.Enum):
    """How a slot is on its way, in the words that `up` shows."""

    WAITING = "waiting"
    BLOCKED = "blocked"
    PLACED = "placed"
    SHIPPING = "shipping"
    STARTING = "starting"
    RUNNING = "running"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPING = "stopping"
    GONE = "gone"


@frozen
class SlotProgress:
    """Where a slot is; `text` says what of it: an image that is shipped, why it waits."""

    slot: str
    phase: SlotPhase
    node: str = ""  # name, "" while it has none
    text: str = ""
    share: float = 0.0  # of an image's bytes that are on the node, 0..1


@frozen
class Progress:
    """A moment of a stack on its way; `phase` ends the stream when not CONVERGING/REMOVING.

    `slots` are those that have changed since the moment before.
    """

    time: float
    text: str
    phase: StackPhase = StackPhase.CONVERGING
    running: int = 0
    desired: int = 0
    slots: tuple[SlotProgress, ...] = ()
    log_tail: tuple[str, ...] = ()  # last lines of the containers that failed


@frozen
class ImageNeed:
    """What must be done about one image of a stack before it can start."""

    image: str
    manifest: str = ""  # digest; "" = found nowhere
    id: str = ""
    nodes: tuple[str, ...] = ()  # nodes that already hold it


@frozen
class StackRecord:
    """The desired state of a stack. `overrides` hold scale, stop and restart requests."""

    stack: Stack
    revision: int
    updated: float
    images: Mapping[str, ImageNeed] = field(factory=dict)  # by the service's image text
    scale: Mapping[str, int] = field(factory=dict)
    stopped: tuple[str, ...] = ()  # services stopped by `orchestra stop`
    restart_tokens: Mapping[str, int] = field(factory=dict)
    removing: bool = False
    remove_volumes: bool = False  # together with `removing`: its named volumes too


@frozen
class ControllerInfo:
    cluster: str
    cluster_id: str
    version: str
    protocol: int
    role: str  # "daemon" or "session"
    generation: int
    nodes: int
    heals: bool  # a daemon replaces the tasks of dead nodes; a session ends with its user
    orphaned_generation: int = 0  # higher one found on nodes: `cluster adopt` is needed
