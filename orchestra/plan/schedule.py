"""Where a slot goes: filters that can explain themselves, then the node with the least on it.

A `Scheduler` is filled with what runs, answers for one slot at a time and counts what it placed.
The order of nodes is: fewest tasks of the service, evenness over the `spread` labels, least load
(tasks, and the share of the node that is reserved), lowest index; so equal input gives equal
placement. Nodes that pass the unchanging filters are found once for each distinct (constraints,
platform), which is what makes ten thousand services on a thousand nodes take less than a second.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import define, field, frozen

from orchestra.model.node import Availability, NodeState
from orchestra.model.service import Resources
from orchestra.plan import constraints
from orchestra.plan.explain import Refusal, no_node
from orchestra.plan.state import NodeView

_RESERVED_WEIGHT = 8.0  # a fully reserved node counts like one with eight more tasks


@frozen
class Demand:
    """What one slot of a service asks of a node.

    `ports` are host ports ("tcp/8080"). `pinned` maps each named volume that has a place to the
    ids of the nodes that hold it.
    """

    service: str  # "stack/service"
    constraints: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()
    architecture: str = ""
    reserved: Resources = field(factory=Resources)
    ports: tuple[str, ...] = ()
    max_per_node: int = 0
    pinned: Mapping[str, tuple[str, ...]] = field(factory=dict)


@define
class _Load:
    """What is placed on a node so far."""

    view: NodeView
    cpus: float
    memory: int
    tasks: int = 0
    reserved_cpus: float = 0.0
    reserved_memory: int = 0
    ports: Counter[str] = field(factory=Counter)
    services: Counter[str] = field(factory=Counter)

    @property
    def weight(self) -> float:
        cpus = self.reserved_cpus / self.cpus if self.cpus else 0.0
        memory = self.reserved_memory / self.memory if self.memory else 0.0
        return self.tasks + _RESERVED_WEIGHT * max(cpus, memory)


class Scheduler:
    def __init__(self, nodes: Iterable[NodeView], ingress: Collection[str] = ()) -> None:
        """`ingress` are ports that every node answers: no task can have them as host ports."""
        self._loads: dict[str, _Load] = {}
        self._order: dict[str, int] = {}
        self._ingress = frozenset(ingress)
        self._classes: dict[tuple[tuple[str, ...], str], list[str]] = {}
        self._heaps: dict[tuple[tuple[str, ...], str], list[tuple[float, int, str]]] = {}
        self._placed: Counter[str] = Counter()  # tasks by service
        self._answers: dict[tuple[object, ...], str] = {}
        for view in sorted(nodes, key=lambda v: v.record.index):
            facts = view.observed.facts if view.observed else None
            self._loads[view.record.id] = _Load(
                view, facts.cpus if facts else 0.0, facts.memory if facts else 0
            )
            self._order[view.record.id] = view.record.index

    def count(self, node: str, demand: Demand, sign: int = 1) -> None:
        """Take note of a task that is on `node` already (`sign` -1: of one that leaves it)."""
        load = self._loads.get(node)
        if load is None:
            return
        load.tasks += sign
        load.reserved_cpus += sign * (demand.reserved.cpus or 0.0)
        load.reserved_memory += sign * (demand.reserved.memory or 0)
        load.services[demand.service] += sign
        for port in demand.ports:
            load.ports[port] += sign
        self._placed[demand.service] += sign
        self._answers.clear()
        if sign < 0:  # heaps assume that loads only grow
            self._heaps.clear()

    def place(self, demand: Demand, leaving: str = "") -> str:
        """Return the id of the node for one more task; it is counted there.

        `leaving` is the node of a predecessor that will go once this one serves: it still holds
        its resources, but it does not speak against that node. Raises NoNode, whose text counts
        what each node lacks.
        """
        node = self._choose(demand, leaving)
        if node is None:
            raise NoNode(self.why_not(demand))
        self.count(node, demand)
        return node

    def place_on(self, node: str, demand: Demand) -> str:
        """As `place`, for a slot that can only be on this one node. Raises NoNode too."""
        load = self._loads.get(node)
        if load is None:
            raise NoNode("its node was removed")
        refusal = self._refusal(load, demand)
        if refusal:
            name = load.view.record.name
            raise NoNode(f"{name} cannot take it: a node that {refusal.need} is needed")
        self.count(node, demand)
        return node

    def eligible(self, demand: Demand, availability: Collection[Availability]) -> list[NodeView]:
        """Nodes that satisfy the unchanging filters, whatever their state (global services)."""
        return [
            self._loads[node].view
            for node in self._class(demand)
            if self._loads[node].view.record.availability in availability
        ]

    def why_not(self, demand: Demand) -> str:
        """Say, with counts, why no node can take the demand."""
        key = (
            demand.constraints,
            demand.architecture,
            demand.reserved,
            demand.ports,
            tuple(sorted(demand.pinned.items())),
            demand.max_per_node and demand.service,
        )
        if key not in self._answers:
            refusals = {
                load.view.record.name: refusal
                for load in self._loads.values()
                if (refusal := self._refusal(load, demand))
            }
            self._answers[key] = no_node(refusals)
        return self._answers[key]

    def stays(self, node: str, demand: Demand) -> str:
        """Why a running task of the demand may not stay on `node` ("" = it may)."""
        load = self._loads.get(node)
        if load is None:
            return "its node was removed"
        if load.view.record.availability is Availability.DRAIN:
            return f"{load.view.record.name} is drained"
        refusal = self._mismatch(load, demand)
        return f"{load.view.record.name} no longer {refusal.need}" if refusal else ""

    def _choose(self, demand: Demand, leaving: str) -> str | None:
        if not self._placed[demand.service] and not demand.preferences and not demand.pinned:
            return self._least_loaded(demand)
        candidates = [
            node
            for node in self._class(demand)
            if not self._refusal(self._loads[node], demand, fixed=False, leaving=leaving)
        ]
        if not candidates:
            return None
        branches = self._branches(demand)
        return min(candidates, key=lambda node: self._rank(node, demand, branches, leaving))

    def _least_loaded(self, demand: Demand) -> str | None:
        """The first service's first slot anywhere: the top of its class's heap, lazily updated."""
        key = (demand.constraints, demand.architecture)
        heap = self._heaps.get(key)
        if heap is None:
            heap = [(self._loads[n].weight, self._order[n], n) for n in self._class(demand)]
            heapq.heapify(heap)
            self._heaps[key] = heap
        passed_over: list[tuple[float, int, str]] = []
        found = None
        while heap and found is None:
            weight, order, node = heap[0]
            load = self._loads[node]
            if load.weight != weight:
                heapq.heapreplace(heap, (load.weight, order, node))
            elif self._refusal(load, demand, fixed=False):
                passed_over.append(heapq.heappop(heap))
            else:
                found = node
        for entry in passed_over:
            heapq.heappush(heap, entry)
        return found

    def _rank(
        self,
        node: str,
        demand: Demand,
        branches: Sequence[tuple[str, Mapping[str, int]]],
        leaving: str,
    ) -> tuple[object, ...]:
        load = self._loads[node]
        spread = tuple(
            counts.get(constraints.label_of(key, load.view), 0) for key, counts in branches
        )
        gone = int(node == leaving)
        return (
            *spread,
            load.services[demand.service] - gone,
            load.weight - gone,
            not gone,
            self._order[node],
        )

    def _branches(self, demand: Demand) -> list[tuple[str, Mapping[str, int]]]:
        """For each `spread=label`, how many tasks of the service each value of the label has."""
        out: list[tuple[str, Mapping[str, int]]] = []
        for preference in demand.preferences:
            key = preference.removeprefix("spread=").strip()
            counts: defaultdict[str, int] = defaultdict(int)
            for load in self._loads.values():
                if load.services[demand.service]:
                    counts[constraints.label_of(key, load.view)] += load.services[demand.service]
            out.append((key, counts))
        return out

    def _class(self, demand: Demand) -> list[str]:
        key = (demand.constraints, demand.architecture)
        nodes = self._classes.get(key)
        if nodes is None:
            nodes = [node for node, load in self._loads.items() if not self._mismatch(load, demand)]
            self._classes[key] = nodes
        return nodes

    def _mismatch(self, load: _Load, demand: Demand) -> Refusal | None:
        """The filters whose answer does not change while a plan is made."""
        for text in demand.constraints:
            constraint = constraints.parse(text)
            if not constraint.matches(load.view):
                return Refusal(f"satisfies {constraint}", f"lack {constraint}")
        facts = load.view.observed.facts if load.view.observed else None
        if facts and demand.architecture and facts.architecture != demand.architecture:
            arch = demand.architecture
            return Refusal(f"runs images for {arch}", f"do not run images for {arch}")
        return None

    def _refusal(
        self, load: _Load, demand: Demand, fixed: bool = True, leaving: str = ""
    ) -> Refusal | None:
        """Why `load`'s node cannot take the demand; None where it can. Cheap tests come first."""
        record, reserved = load.view.record, demand.reserved
        if fixed and (why := self._mismatch(load, demand)):
            return why
        for volume, holders in demand.pinned.items():
            if record.id not in holders:
                return Refusal(f"holds volume {volume}", f"do not hold volume {volume}")
        if load.view.state is not NodeState.READY:
            return Refusal("is ready", f"are {load.view.state.value}")
        if record.availability is not Availability.ACTIVE:
            word = {Availability.DRAIN: "drained", Availability.PAUSE: "paused"}
            return Refusal("is active", f"are {word[record.availability]}")
        mine = load.services[demand.service] - (record.id == leaving)
        if demand.max_per_node and mine >= demand.max_per_node:
            most = f"max_replicas_per_node ({demand.max_per_node})"
            return Refusal(f"is below {most}", f"have reached {most}")
        if reserved.cpus and load.reserved_cpus + reserved.cpus > load.cpus:
            want = f"{reserved.cpus:g} cpus unreserved"
            return Refusal(f"has {want}", f"have less than {want}")
        if reserved.memory and load.reserved_memory + reserved.memory > load.memory:
            want = f"{reserved.memory >> 20} MiB of memory unreserved"
            return Refusal(f"has {want}", f"have less than {want}")
        observed = load.view.observed
        for port in demand.ports:
            if port in self._ingress or load.ports[port] or (observed and port in observed.ports):
                return Refusal(f"has host port {port} free", f"use host port {port} already")
        return None


class NoNode(Exception):
    """No node can take the demand; the text says why, with counts."""
