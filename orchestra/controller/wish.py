"""What a user asks for becomes part of the desired state.

Pure: every function takes the state (or a stack's record) and returns the next one, or says why
not. The controller commits what comes out under the next generation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve

from orchestra.model.cluster import ImageNeed, StackRecord
from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.model.service import Stack
from orchestra.plan import demand as ask
from orchestra.plan.state import ImageFacts, NodeRecord, State


def with_stack(
    state: State,
    stack: Stack,
    needs: Sequence[ImageNeed],
    facts: Mapping[str, ImageFacts],
    now: float,
) -> State:
    """The state in which `stack` is desired as its file says: scale and stops are undone.

    `facts` are those of the images that the stack needs, by manifest digest.
    """
    before = state.stacks.get(stack.name)
    record = StackRecord(
        stack=stack,
        revision=before.revision + 1 if before else 1,
        updated=now,
        images={need.image: need for need in needs},
        restart_tokens=_resuming(before, before.stopped) if before else {},
    )
    networks = {
        name: evolve(known, internal=network.internal)
        for network in stack.networks.values()
        if not network.external and (known := state.networks.get(name := network.name))
    }
    changed = put(state, record)
    return evolve(
        changed,
        images=_used_images(changed, {**state.images, **facts}, set(facts)),
        networks={**state.networks, **networks},
    )


def put(state: State, record: StackRecord) -> State:
    """The state with a stack's record in it."""
    return evolve(state, stacks={**state.stacks, record.stack.name: record})


def scaled(record: StackRecord, replicas: Mapping[str, int]) -> StackRecord:
    """Raises NotFound for unknown services, Invalid for numbers that cannot be."""
    chosen_services(record, list(replicas))
    for service, count in replicas.items():
        if ask.is_global(record.stack.services[service]):
            raise Invalid(f"cannot scale {service}: a global service has one task per node")
        if count < 0:
            raise Invalid(f"cannot scale {service} to {count} replicas")
    return evolve(record, scale={**record.scale, **replicas})


def stopped(record: StackRecord, services: Sequence[str]) -> StackRecord:
    out = {*record.stopped, *chosen_services(record, services)}
    return evolve(record, stopped=tuple(sorted(out)))


def started(record: StackRecord, services: Sequence[str], now: float) -> StackRecord:
    """What failed before is tried again, too."""
    chosen = chosen_services(record, services) & set(record.stopped)
    return evolve(
        record,
        stopped=tuple(sorted(set(record.stopped) - chosen)),
        restart_tokens=_resuming(record, chosen),
        updated=now,
    )


def _resuming(record: StackRecord, services: Collection[str]) -> Mapping[str, int]:
    """The stack's restart tokens once stopped services are to run again."""
    tokens = record.restart_tokens
    return {**tokens, **{name: tokens.get(name, 0) + 1 for name in services}}


def restarted(state: State, record: StackRecord, services: Sequence[str]) -> State:
    """Running tasks will be restarted in place by their nodes; those that ended run anew."""
    chosen = chosen_services(record, services)
    tokens = dict(record.restart_tokens)
    for service in chosen:
        tokens[service] = tokens.get(service, 0) + 1
    tasks = dict(state.tasks)
    for task_id, task in tasks.items():
        mine = task.task
        if mine.stack == record.stack.name and mine.service in chosen and task.final is None:
            tasks[task_id] = evolve(task, task=evolve(mine, restart_token=tokens[mine.service]))
    return put(evolve(state, tasks=tasks), evolve(record, restart_tokens=tokens))


def chosen_services(record: StackRecord, services: Sequence[str]) -> set[str]:
    """The named services of the stack; without names, all of them. NotFound says which it has."""
    for service in services:
        if service not in record.stack.services:
            known = ", ".join(sorted(record.stack.services))
            raise NotFound(f"stack {record.stack.name} has no service {service}; it has: {known}")
    return set(services or record.stack.services)


def without_stack(state: State, name: str, now: float) -> State:
    """The state when nothing of a stack is left: its addresses rest, its ports are free again."""
    mine = f"{name}/"
    networks = {
        key: evolve(
            network,
            vips={s: a for s, a in network.vips.items() if not s.startswith(mine)},
            released={
                **network.released,
                **{a: now for s, a in network.vips.items() if s.startswith(mine)},
            },
        )
        for key, network in state.networks.items()
    }
    out = evolve(
        state,
        stacks={n: r for n, r in state.stacks.items() if n != name},
        ports={k: v for k, v in state.ports.items() if not k.startswith(mine)},
        networks=networks,
    )
    return evolve(out, images=_used_images(out, out.images, set()))


def own_volumes(record: StackRecord) -> list[str]:
    """Full names of the volumes that a stack brings along."""
    return [v.name for v in record.stack.volumes.values() if not v.external]


def without_node(state: State, record: NodeRecord, force: bool) -> State:
    """Raises Conflict while the node holds something, unless `force` gives that up."""
    tasks = [t.task.slot for t in state.tasks.values() if t.task.node == record.id]
    volumes = [v for v, holders in state.volumes.items() if record.id in holders]
    if (tasks or volumes) and not force:
        what = f"runs {', '.join(sorted(tasks))}" if tasks else f"holds {', '.join(volumes)}"
        raise Conflict(
            f"cannot remove node {record.name}: it {what}; `orchestra node drain {record.name}` "
            "empties it, --force removes it with what it holds"
        )
    return evolve(
        state,
        nodes={i: n for i, n in state.nodes.items() if i != record.id},
        volumes={
            volume: kept
            for volume, holders in state.volumes.items()
            if (kept := tuple(h for h in holders if h != record.id))
        },
    )


def relabelled(record: NodeRecord, labels: Mapping[str, str | None]) -> NodeRecord:
    """The node with further labels; None removes one."""
    merged = {**record.node.labels, **labels}
    kept = {key: value for key, value in merged.items() if value is not None}
    return evolve(record, node=evolve(record.node, labels=kept))


def _used_images(
    state: State, images: Mapping[str, ImageFacts], fresh: set[str]
) -> dict[str, ImageFacts]:
    """Those of `images` that a task, a stack or `fresh` still names."""
    used = {t.assigned.image_manifest for t in state.tasks.values()} | fresh
    used |= {need.manifest for r in state.stacks.values() for need in r.images.values()}
    return {digest: facts for digest, facts in images.items() if digest in used}
