"""The desired state, seen from one node: its assignment.

Every node hears of all networks that any of its tasks is in (with every endpoint there), of every
ingress port, and of its own tasks only. Endpoints carry whether they serve; those of lost nodes
and of tasks that stop do not. The section `stacks` holds what a lost store is rebuilt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

from orchestra.model.assignment import (
    AssignedNetwork,
    AssignedTask,
    Assignment,
    ClusterNet,
    EndpointState,
    NetworkService,
    Peer,
    Published,
)
from orchestra.model.cluster import StackRecord
from orchestra.model.codec import to_json
from orchestra.model.node import ObservedTask
from orchestra.model.service import Port, PortMode, Service
from orchestra.plan import demand as ask
from orchestra.plan.enact import port_key
from orchestra.plan.standing import Standing, standing
from orchestra.plan.state import (
    ClusterIdentity,
    ImageFacts,
    NetworkRecord,
    NodeRecord,
    State,
    TaskRecord,
    View,
)


@frozen
class Testament:
    """What every node keeps of the cluster, so that a lost store can be rebuilt from any of them.

    Tasks are not in it: each node's own assignment has them.
    """

    identity: ClusterIdentity
    nodes: Mapping[str, NodeRecord] = field(factory=dict)
    stacks: Mapping[str, StackRecord] = field(factory=dict)
    networks: Mapping[str, NetworkRecord] = field(factory=dict)
    volumes: Mapping[str, tuple[str, ...]] = field(factory=dict)
    ports: Mapping[str, int] = field(factory=dict)
    images: Mapping[str, ImageFacts] = field(factory=dict)


def testament(state: State) -> dict[str, Any]:
    """The body of the section `stacks`."""
    body: dict[str, Any] = to_json(
        Testament(
            state.identity,
            state.nodes,
            state.stacks,
            {name: evolve(n, released={}) for name, n in state.networks.items()},
            state.volumes,
            state.ports,
            state.images,
        )
    )
    return body


def assign(
    state: State, view: View, will: Mapping[str, Any] | None = None
) -> dict[str, Assignment]:
    """Return the assignment of every node, by node id, under the state's generation.

    `will` is the state's testament where it is known already. Parts that several nodes have in
    common are the same objects.
    """
    reports = view.reports()
    peers = tuple(
        Peer(n.index, n.id, n.name, n.underlay)
        for n in sorted(state.nodes.values(), key=lambda n: n.index)
    )
    will = testament(state) if will is None else will
    tasks: dict[str, list[AssignedTask]] = {node: [] for node in state.nodes}
    members: dict[str, set[str]] = {node: set() for node in state.nodes}
    shown: list[tuple[TaskRecord, bool]] = []
    for record in state.tasks.values():
        if not record.released or record.task.node not in state.nodes:
            continue
        mine = evolve(
            record.assigned, stop=record.task.stop, restart_token=record.task.restart_token
        )
        tasks[record.task.node].append(mine)
        members[record.task.node].update(record.task.addresses)
        if record.final is None:
            shown.append((record, _serves(record, view, reports)))
    networks = {n.id: _network(state, n, shown) for n in state.networks.values()}
    published = _published(state, shown)
    return {
        node.id: Assignment(
            generation=state.generation,
            cluster=ClusterNet(
                id=state.identity.id,
                range=state.identity.range,
                vni=state.identity.vni,
                self_index=node.index,
                peers=peers,
            ),
            tasks=tuple(sorted(tasks[node.id], key=lambda t: t.id)),
            networks=tuple(networks[n] for n in sorted(networks) if n in members[node.id]),
            published=published,
            stacks=will,
        )
        for node in state.nodes.values()
    }


def _serves(record: TaskRecord, view: View, reports: Mapping[str, ObservedTask]) -> bool:
    return not record.task.stop and standing(record, view, reports) is Standing.SERVING


def _network(
    state: State, network: NetworkRecord, shown: list[tuple[TaskRecord, bool]]
) -> AssignedNetwork:
    services: dict[tuple[str, str], list[EndpointState]] = {}
    for record, serving in shown:
        address = record.task.addresses.get(network.id)
        if address is None:
            continue
        services.setdefault((record.task.stack, record.task.service), []).append(
            EndpointState(
                task=record.task.id,
                slot=record.task.slot,
                container_name=record.assigned.name,
                node=state.nodes[record.task.node].index,
                address=address,
                aliases=(),
                serving=serving,
            )
        )
    for key in network.vips:  # a service without tasks keeps its name and address
        stack, _, service = key.partition("/")
        known = state.stacks.get(stack)
        if known and service in known.stack.services and not known.removing:
            services.setdefault((stack, service), [])
    return AssignedNetwork(
        id=network.id,
        name=network.name,
        subnet=network.subnet,
        gateway=network.gateway,
        internal=network.internal,
        blocks=network.blocks,
        services=tuple(
            NetworkService(
                stack,
                service,
                network.vips.get(ask.key_of(stack, service), ""),
                _aliases(state, stack, service, network.name),
                tuple(sorted(endpoints, key=lambda e: e.task)),
            )
            for (stack, service), endpoints in sorted(services.items())
        ),
    )


def _aliases(state: State, stack: str, service: str, network: str) -> tuple[str, ...]:
    record = state.stacks.get(stack)
    known = record.stack.services.get(service) if record else None
    if record is None or known is None:
        return ()
    for wire in known.networks:
        definition = record.stack.networks.get(wire.network)
        if definition is not None and definition.name == network:
            return wire.aliases
    return ()


def _published(state: State, shown: list[tuple[TaskRecord, bool]]) -> tuple[Published, ...]:
    out: list[Published] = []
    by_service: dict[str, list[tuple[TaskRecord, bool]]] = {}
    for task, serving in shown:
        key = ask.key_of(task.task.stack, task.task.service)
        by_service.setdefault(key, []).append((task, serving))
    for record in state.stacks.values():
        if record.removing:
            continue
        for service in record.stack.services.values():
            if service.network_mode or service.name in record.stopped:
                continue
            tasks = by_service.get(ask.key_of(record.stack.name, service.name), [])
            for port in service.ports:
                out += _one_port(state, record, service, port, tasks)
    return tuple(sorted(out, key=lambda p: (p.port, p.protocol, p.host_ip, p.node, p.service)))


def _one_port(
    state: State,
    record: StackRecord,
    service: Service,
    port: Port,
    tasks: list[tuple[TaskRecord, bool]],
) -> list[Published]:
    """A port of the nodes: on each for `ingress`, on the tasks' own nodes for `host`."""
    stack = record.stack.name
    number = port.published or state.ports.get(
        port_key(stack, service.name, port.protocol, port.target)
    )
    networks = ask.networks_of(record.stack, service)
    known = state.networks.get(networks[0].name) if networks else None
    if number is None or known is None:
        return []
    label = ask.key_of(stack, service.name)
    serving = [
        (state.nodes[t.task.node].index, t.task.addresses[known.id])
        for t, serves in tasks
        if serves and known.id in t.task.addresses
    ]
    if port.mode is PortMode.INGRESS:
        targets = tuple(sorted(address for _, address in serving))
        return [Published(port.protocol, number, port.target, label, port.host_ip, 0, targets)]
    return [
        Published(port.protocol, number, port.target, label, port.host_ip, node, (address,))
        for node, address in serving
    ]
