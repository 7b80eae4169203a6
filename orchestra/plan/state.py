"""What the planner works on: the stored desired state, and the controller's view of the nodes.

`State` is everything the store holds, `View` everything that was observed. Both are values: the
planner reads them, `enact` makes the next state, and the store commits the difference.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from orchestra.model.assignment import AssignedTask
from orchestra.model.cluster import StackRecord, Task
from orchestra.model.container import ImageConfig
from orchestra.model.node import Availability, InventoryNode, NodeState, Observed, ObservedTask
from orchestra.model.service import Resources


@frozen
class ClusterIdentity:
    """`range` holds every network of the cluster ("" until the first node was seen).

    `last_index` is the highest node index ever given, so that none comes twice.
    """

    name: str
    id: str
    range: str = ""
    vni: int = 0
    last_index: int = 0


@frozen
class NodeRecord:
    """`index` is 1..4095 and never reused; `underlay` the address its tunnel ends at."""

    index: int
    id: str
    node: InventoryNode
    underlay: str = ""
    availability: Availability = Availability.ACTIVE

    @property
    def name(self) -> str:
        return self.node.name


@frozen
class NetworkRecord:
    """A cluster network and what is given out in it.

    `vips` maps "stack/service" to an address, `released` an address to when it became free
    (Unix time): it rests for a while before it is given to another.
    """

    id: str
    name: str
    stack: str
    subnet: str
    gateway: str
    internal: bool = False
    blocks: Mapping[int, str] = field(factory=dict)
    vips: Mapping[str, str] = field(factory=dict)
    released: Mapping[str, float] = field(factory=dict)


@frozen
class ImageFacts:
    """What planning needs of an image, by its manifest's digest."""

    id: str
    architecture: str = ""
    os: str = "linux"
    config: ImageConfig = field(factory=ImageConfig)


@frozen
class TaskRecord:
    """A task as the store keeps it.

    `assigned` is complete, so an old task keeps its specification while its service changes.
    `released`: its image is on its node, so it may be in the node's assignment. `generation` is
    the one in which the record last changed. `final` is the last report of a task that ended for
    good, `ended` the controller's time when it saw that.
    """

    task: Task
    assigned: AssignedTask
    fingerprint: Mapping[str, str] = field(factory=dict)
    reserved: Resources = field(factory=Resources)
    host_ports: tuple[str, ...] = ()  # "tcp/8080"
    volumes: tuple[str, ...] = ()  # full names
    released: bool = False
    generation: int = 0
    final: ObservedTask | None = None
    ended: float = 0.0


@frozen
class State:
    """The desired state of the whole cluster.

    `volumes` maps a volume's full name to the ids of the nodes that hold it, `ports` maps
    "stack/service/protocol/target" to the published port that was picked for it.
    """

    identity: ClusterIdentity
    generation: int = 0
    nodes: Mapping[str, NodeRecord] = field(factory=dict)  # by id
    stacks: Mapping[str, StackRecord] = field(factory=dict)
    tasks: Mapping[str, TaskRecord] = field(factory=dict)  # by id
    networks: Mapping[str, NetworkRecord] = field(factory=dict)  # by name
    volumes: Mapping[str, tuple[str, ...]] = field(factory=dict)
    ports: Mapping[str, int] = field(factory=dict)
    images: Mapping[str, ImageFacts] = field(factory=dict)  # by manifest digest


@frozen
class NodeView:
    """A node as the controller sees it now; `observed` is its last report."""

    record: NodeRecord
    state: NodeState
    observed: Observed | None = None
    reason: str = ""


@frozen
class View:
    """`serving_since` holds when the controller saw a task begin to serve (its own clock)."""

    now: float
    nodes: Mapping[str, NodeView] = field(factory=dict)  # by id
    serving_since: Mapping[str, float] = field(factory=dict)

    def reports(self) -> dict[str, ObservedTask]:
        """Every task that some node reports, by id."""
        return {
            task.id: task
            for node in self.nodes.values()
            if node.observed is not None
            for task in node.observed.tasks
        }
