"""A lost store, rebuilt from what the nodes hold.

The node with the highest generation has the newest testament (stacks, nodes, networks, volumes);
every node's own assignment has its tasks. A task that an older assignment holds for a slot which a
newer one holds too is left out: its node will be told to stop it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from orchestra.model.assignment import AssignedTask
from orchestra.model.cluster import Task
from orchestra.model.codec import CodecError, from_json
from orchestra.model.errors import Failed
from orchestra.plan import demand as ask
from orchestra.plan.assign import Testament
from orchestra.plan.spec_hash import fingerprint, spec_hash
from orchestra.plan.state import State, TaskRecord


@frozen
class Legacy:
    """What one node holds."""

    node: str  # node id
    name: str
    generation: int
    bodies: Mapping[str, Any]


def rebuild(held: list[Legacy], now: float) -> tuple[State, list[str]]:
    """Return the state that the nodes' assignments tell, and what was taken over as text.

    Raises Failed where no node holds a readable testament.
    """
    order = sorted((h for h in held if h.bodies), key=lambda h: h.generation, reverse=True)
    if not order:
        raise Failed("no node that can be reached holds an assignment: there is nothing to adopt")
    newest = order[0]
    try:
        will = from_json(Testament, newest.bodies["stacks"], "stacks")
    except (CodecError, KeyError) as error:
        raise Failed(f"the assignment on {newest.name} cannot be read: {error}") from None
    state = State(
        will.identity,
        newest.generation,
        will.nodes,
        will.stacks,
        {},
        will.networks,
        will.volumes,
        will.ports,
        will.images,
    )
    tasks: dict[str, TaskRecord] = {}
    taken: dict[tuple[str, str], int] = {}  # (stack, slot) -> generation it was seen at
    for legacy in order:
        if legacy.node not in will.nodes:
            continue
        for body in legacy.bodies.get("tasks", ()):
            record = _task(state, legacy, body, now)
            slot = (record.task.stack, record.task.slot)
            if taken.setdefault(slot, legacy.generation) > legacy.generation:
                continue
            tasks[record.task.id] = record
    told = [f"cluster {will.identity.name} at generation {newest.generation} from {newest.name}"]
    told += [f"node {node.name}" for node in will.nodes.values()]
    for stack in will.stacks.values():
        count = sum(1 for t in tasks.values() if t.task.stack == stack.stack.name)
        told.append(f"stack {stack.stack.name}, revision {stack.revision}, {count} tasks")
    return evolve(state, tasks=tasks, generation=newest.generation + 1), told


def _task(state: State, legacy: Legacy, body: Any, now: float) -> TaskRecord:
    assigned = from_json(AssignedTask, body, f"tasks on {legacy.name}")
    labels = assigned.spec.labels
    digest = labels.get("com.orchestra.spec-hash", "")
    stack = state.stacks.get(assigned.stack)
    service = stack.stack.services.get(assigned.service) if stack else None
    marks = fingerprint(stack, service) if stack and service else {}
    return TaskRecord(
        task=Task(
            id=assigned.id,
            stack=assigned.stack,
            service=assigned.service,
            slot=assigned.slot,
            number=int(labels.get("com.orchestra.number", "0")),
            node=legacy.node,
            spec_hash=digest,
            revision=int(labels.get("com.orchestra.revision", "0")),
            created=now,
            stop=assigned.stop,
            stop_reason="it was stopping already" if assigned.stop else "",
            addresses={e.network: e.address for e in assigned.spec.endpoints},
            restart_token=assigned.restart_token,
        ),
        assigned=assigned,
        fingerprint=marks if spec_hash(marks) == digest else {},
        reserved=service.reservations if service else ask.NOTHING,
        host_ports=ask.host_ports(service) if service else (),
        volumes=ask.named_volumes(stack.stack, service) if stack and service else (),
        released=True,
        generation=legacy.generation,
    )
