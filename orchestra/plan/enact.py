"""A plan becomes the next desired state: ids, addresses and specifications are given out here.

`enact` is pure. A task's id is a digest of cluster, generation and slot, so that planning needs no
randomness and no id ever comes twice. `absorb` takes final reports into the state, where they
outlive the node that made them; `release` lets tasks into their nodes' assignments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import assert_never

from attrs import define, evolve, field

from orchestra.model.assignment import AssignedTask
from orchestra.model.cluster import (
    Blocked,
    CreateNetwork,
    CreateVolume,
    Plan,
    RemoveNetwork,
    RemoveTask,
    ResumeTask,
    StackRecord,
    StartTask,
    StopTask,
    Task,
)
from orchestra.model.container import Endpoint
from orchestra.model.errors import Conflict, Invalid
from orchestra.model.service import Network, Service
from orchestra.plan import addresses
from orchestra.plan import demand as ask
from orchestra.plan.expand import Place, expand, mac_of
from orchestra.plan.spec_hash import fingerprint, spec_hash
from orchestra.plan.standing import is_final
from orchestra.plan.state import NetworkRecord, NodeRecord, State, TaskRecord, View

FIRST_PICKED_PORT = 30000
LAST_PICKED_PORT = 32767


def enact(state: State, plan: Plan, view: View) -> tuple[State, tuple[Blocked, ...]]:
    """Return the state after `plan`, under the next generation, and what could not be enacted.

    Only a lack found while giving out (addresses, an image without a command) is reported back.
    """
    if not plan.actions:
        return state, ()
    draft = _Draft(
        state.generation + 1,
        view,
        state,
        dict(state.tasks),
        dict(state.networks),
        dict(state.volumes),
        dict(state.ports),
    )
    blocked = []
    for action in plan.actions:
        match action:
            case CreateNetwork():
                draft.create_network(action.network)
            case RemoveNetwork():
                del draft.networks[action.network]
            case CreateVolume():
                draft.bind(action)
            case StopTask():
                draft.stop(action)
            case ResumeTask():
                draft.resume(action)
            case RemoveTask():
                draft.remove(action.task)
            case StartTask():
                try:
                    draft.start(action)
                except (Conflict, Invalid) as error:
                    blocked.append(Blocked(action.slot, str(error), action.stack))
            case _:
                assert_never(action)
    if len(blocked) == len(plan.actions):  # nothing came of it: no reason to tell the nodes
        return state, tuple(blocked)
    out = evolve(
        state,
        generation=draft.generation,
        tasks=draft.tasks,
        networks=draft.networks,
        volumes=draft.volumes,
        ports=draft.ports,
    )
    return out, tuple(blocked)


def done(plan: Plan, refused: Sequence[Blocked]) -> Plan:
    """What of a plan was enacted: starts that were refused are blocked."""
    slots = {(blocked.stack, blocked.slot) for blocked in refused}
    actions = tuple(
        action
        for action in plan.actions
        if not (isinstance(action, StartTask) and (action.stack, action.slot) in slots)
    )
    return evolve(plan, actions=actions, blocked=(*plan.blocked, *refused))


def absorb(state: State, view: View) -> State:
    """Keep the final report of every task that ended, with the time it was seen."""
    reports = view.reports()
    ended = {}
    for task_id, record in state.tasks.items():
        report = reports.get(task_id)
        if record.final is None and report is not None and is_final(record, report):
            ended[task_id] = evolve(record, final=report, ended=view.now)
    return evolve(state, tasks={**state.tasks, **ended}) if ended else state


def release(state: State, tasks: Collection[str]) -> State:
    """Let `tasks`, whose images have reached their nodes, into the assignments."""
    generation = state.generation + 1
    released = {
        task: evolve(state.tasks[task], released=True, generation=generation)
        for task in tasks
        if task in state.tasks and not state.tasks[task].released
    }
    if not released:
        return state
    return evolve(state, generation=generation, tasks={**state.tasks, **released})


@define
class _Draft:
    """The state as it is being rewritten."""

    generation: int
    view: View
    before: State
    tasks: dict[str, TaskRecord]
    networks: dict[str, NetworkRecord]
    volumes: dict[str, tuple[str, ...]]
    ports: dict[str, int]
    used: dict[str, set[str]] = field(factory=dict)  # network id -> addresses of tasks
    names: set[tuple[str, str]] = field(factory=set)  # (node id, container's name)

    def __attrs_post_init__(self) -> None:
        for record in self.tasks.values():
            self.names.add((record.task.node, record.assigned.name))
            for network, address in record.task.addresses.items():
                self.used.setdefault(network, set()).add(address)

    def create_network(self, name: str) -> None:
        stack, network = self._definition(name)
        used = {record.name: record.subnet for record in self.networks.values()}
        range_ = self.before.identity.range
        subnet = network.subnet or addresses.pick_subnet(range_, used.values())
        if network.subnet:
            addresses.check_subnet(name, subnet, range_, used)
        self.networks[name] = NetworkRecord(
            id=self._digest("network", name),
            name=name,
            stack=stack,
            subnet=subnet,
            gateway=addresses.gateway(subnet),
            internal=network.internal,
        )

    def bind(self, action: CreateVolume) -> None:
        node = next(n.id for n in self.before.nodes.values() if n.name == action.node)
        holders = self.volumes.get(action.volume, ())
        if node not in holders:
            self.volumes[action.volume] = (*holders, node)

    def stop(self, action: StopTask) -> None:
        record = self.tasks[action.task]
        self.tasks[action.task] = evolve(
            record,
            task=evolve(
                record.task,
                stop=True,
                stop_reason=action.because.split("\n")[0],
                held=action.hold,
            ),
            generation=self.generation,
        )

    def resume(self, action: ResumeTask) -> None:
        """Its node starts a container again whose task has a higher restart token."""
        record = self.tasks[action.task]
        token = self.before.stacks[action.stack].restart_tokens.get(action.service, 0)
        self.tasks[action.task] = evolve(
            record,
            task=evolve(record.task, stop=False, stop_reason="", held=False, restart_token=token),
            generation=self.generation,
            final=None,
            ended=0.0,
        )

    def remove(self, task: str) -> None:
        gone = self.tasks.pop(task)
        self.names.discard((gone.task.node, gone.assigned.name))
        for name, network in self.networks.items():
            address = gone.task.addresses.get(network.id)
            if address is not None:
                resting = addresses.still_resting(network.released, self.view.now)
                resting[address] = self.view.now
                self.used[network.id].discard(address)
                self.networks[name] = evolve(network, released=resting)

    def start(self, action: StartTask) -> None:
        record = self.before.stacks[action.stack]
        service = record.stack.services[action.service]
        need = record.images.get(service.image)
        image = self.before.images.get(need.manifest) if need else None
        if need is None or image is None:
            raise Conflict(f"image {service.image} is not known to the controller; `up` again")
        node = self.before.nodes[action.node]
        task_id = self._digest("task", f"{action.stack}/{action.slot}")[:25]
        place = self._place(action, node, task_id)
        marks = fingerprint(record, service)
        digest = spec_hash(marks)
        networks = ask.networks_of(record.stack, service)
        endpoints = [self._endpoint(record, service, network, node) for network in networks]
        spec = expand(record, service, place, image, endpoints, digest)
        token = record.restart_tokens.get(service.name, 0)
        self._pick_ports(record.stack.name, service)
        self.tasks[task_id] = TaskRecord(
            task=Task(
                id=task_id,
                stack=action.stack,
                service=action.service,
                slot=action.slot,
                number=action.number,
                node=action.node,
                spec_hash=digest,
                revision=record.revision,
                created=self.view.now,
                addresses={e.network: e.address for e in endpoints},
                restart_token=token,
            ),
            assigned=AssignedTask(
                id=task_id,
                stack=action.stack,
                service=action.service,
                slot=action.slot,
                name=self._container_name(action, service, node),
                spec=spec,
                image_manifest=need.manifest,
                restart_token=token,
            ),
            fingerprint=marks,
            reserved=service.reservations,
            host_ports=ask.host_ports(service),
            volumes=ask.named_volumes(record.stack, service),
            generation=self.generation,
        )

    def _place(self, action: StartTask, node: NodeRecord, task_id: str) -> Place:
        view = self.view.nodes.get(node.id)
        facts = view.observed.facts if view and view.observed else None
        return Place(
            task=task_id,
            slot=action.slot,
            number=action.number,
            node_id=node.id,
            node_name=node.name,
            node_hostname=facts.hostname if facts else node.name,
            node_os=facts.os if facts else "linux",
            node_architecture=facts.architecture if facts else "",
        )

    def _endpoint(
        self, record: StackRecord, service: Service, network: Network, node: NodeRecord
    ) -> Endpoint:
        """Give the task an address in `network`, its service a VIP and its node a block there."""
        known = self.networks.get(network.name)
        if known is None:
            raise Conflict(f"network {network.name} does not exist")
        block = addresses.pick_block(known.subnet, known.blocks, known.vips.values(), node.index)
        if not block:
            raise Conflict(
                f"network {network.name} ({known.subnet}) has no block left for {node.name}: "
                f"{len(known.blocks)} nodes use it; give it a larger subnet"
            )
        vips = dict(known.vips)
        key = ask.key_of(record.stack.name, service.name)
        if service.endpoint_mode == "vip" and key not in vips:
            vip = addresses.pick_vip(known, self.view.now)
            if vip is None:
                raise Conflict(f"network {network.name} has no virtual address left")
            vips[key] = vip
        wire = next(w for w in service.networks if record.stack.networks[w.network] == network)
        used = self.used.setdefault(known.id, set())
        address = wire.ipv4_address
        if address and address in used:
            raise Conflict(f"address {address} in network {network.name} is in use by another task")
        picked = address or addresses.pick_task_address(block, used, known.released, self.view.now)
        if picked is None:
            raise Conflict(
                f"no address is free for {node.name} in network {network.name} ({block}): "
                f"{addresses.capacity(block)} tasks of it fit on a node, and addresses rest for a "
                "minute after their use; add nodes, divide the services over several networks, or "
                "give the network a larger subnet"
            )
        used.add(picked)
        self.networks[network.name] = evolve(
            known, blocks={**known.blocks, node.index: block}, vips=vips
        )
        return Endpoint(known.id, network.name, picked, wire.aliases, mac_of(picked))

    def _container_name(self, action: StartTask, service: Service, node: NodeRecord) -> str:
        """`stack-service-3`; with a suffix while its predecessor still has that name there."""
        last = str(action.number) if action.number else node.name
        name = service.container_name or f"{action.stack}-{action.service}-{last}"
        if (node.id, name) in self.names:
            name = f"{name}-{self.generation}"
        self.names.add((node.id, name))
        return name

    def _pick_ports(self, stack: str, service: Service) -> None:
        for port in service.ports:
            key = port_key(stack, service.name, port.protocol, port.target)
            if port.published is None and key not in self.ports:
                used = set(self.ports.values()) | self._published()
                free = range(FIRST_PICKED_PORT, LAST_PICKED_PORT + 1)
                picked = next((p for p in free if p not in used), None)
                if picked is None:
                    raise Conflict(
                        f"no port from {FIRST_PICKED_PORT} to {LAST_PICKED_PORT} is free for "
                        f"{stack}/{service.name}"
                    )
                self.ports[key] = picked

    def _published(self) -> set[int]:
        return {
            port.published or 0
            for record in self.before.stacks.values()
            for service in record.stack.services.values()
            for port in service.ports
        }

    def _definition(self, name: str) -> tuple[str, Network]:
        for record in self.before.stacks.values():
            for network in record.stack.networks.values():
                if network.name == name and not network.external:
                    return record.stack.name, network
        raise Conflict(f"no stack defines network {name}")

    def _digest(self, kind: str, name: str) -> str:
        text = f"{self.before.identity.id}/{self.generation}/{kind}/{name}"
        return hashlib.sha256(text.encode()).hexdigest()


def port_key(stack: str, service: str, protocol: str, target: int) -> str:
    """Under which a picked port is remembered."""
    return f"{stack}/{service}/{protocol}/{target}"
