"""What a service of a stack asks for, derived once: slots, placement demand, volumes, order.

Small pure questions about a service in its stack that more than one part of the planner asks.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.model.cluster import StackRecord
from orchestra.model.service import (
    MountType,
    Network,
    PortMode,
    Resources,
    Service,
    ServiceMode,
    Stack,
    UpdateOrder,
)
from orchestra.plan.expand import volume_name
from orchestra.plan.schedule import Demand
from orchestra.plan.state import State, View

NOTHING = Resources()


def is_global(service: Service) -> bool:
    return service.mode in (ServiceMode.GLOBAL, ServiceMode.GLOBAL_JOB)


def replicas(record: StackRecord, service: Service) -> int:
    """How many slots a replicated service has: the file's number, or `scale`'s."""
    if record.removing:
        return 0
    return record.scale.get(service.name, service.replicas)


def key_of(stack: str, service: str) -> str:
    return f"{stack}/{service}"


def named_volumes(stack: Stack, service: Service) -> tuple[str, ...]:
    """Full names of the named volumes that the service's containers mount."""
    return tuple(
        volume_name(stack, mount.source)
        for mount in service.mounts
        if mount.type is MountType.VOLUME and mount.source
    )


def external_volumes(stack: Stack, service: Service) -> tuple[str, ...]:
    """Those of its named volumes that must exist already."""
    names = {volume.name for volume in stack.volumes.values() if volume.external}
    return tuple(name for name in named_volumes(stack, service) if name in names)


def host_ports(service: Service) -> tuple[str, ...]:
    """Ports that a task occupies on its own node: "tcp/8080"."""
    if service.network_mode == "host":
        return ()
    return tuple(
        f"{port.protocol}/{port.published}"
        for port in service.ports
        if port.mode is PortMode.HOST and port.published is not None
    )


def networks_of(stack: Stack, service: Service) -> tuple[Network, ...]:
    """The networks of a service in the order of its wires: the first has the default route.

    By priority, then those that lead outside before internal ones, then as the file has them.
    """
    if service.network_mode:
        return ()
    wires = sorted(
        (wire for wire in service.networks if wire.network in stack.networks),
        key=lambda wire: (-wire.priority, stack.networks[wire.network].internal),
    )
    return tuple(stack.networks[wire.network] for wire in wires)


def demand_of(state: State, view: View, record: StackRecord, service: Service) -> Demand:
    """What one slot of the service asks of a node."""
    need = record.images.get(service.image)
    facts = state.images.get(need.manifest) if need else None
    return Demand(
        service=key_of(record.stack.name, service.name),
        constraints=service.placement.constraints,
        preferences=service.placement.preferences,
        architecture=facts.architecture if facts else "",
        reserved=service.reservations,
        ports=host_ports(service),
        max_per_node=service.placement.max_replicas_per_node,
        pinned={} if is_global(service) else pinned(state, view, record.stack, service),
    )


def pinned(
    state: State, view: View, stack: Stack, service: Service
) -> Mapping[str, tuple[str, ...]]:
    """Where the service's named volumes are: bound by the store, or seen on a node.

    A volume that is nowhere yet pins nothing, unless it is external: then it pins to no node.
    """
    out: dict[str, tuple[str, ...]] = {}
    external = external_volumes(stack, service)
    for name in named_volumes(stack, service):
        holders = state.volumes.get(name) or tuple(
            node.record.id
            for node in view.nodes.values()
            if node.observed is not None and name in node.observed.volumes
        )
        if holders or name in external:
            out[name] = holders
    return out


def update_order(record: StackRecord, service: Service) -> tuple[UpdateOrder, str]:
    """Whether a replacement starts before or after its predecessor stops, and why."""
    if service.update is not None:
        if service.update.order is not None:
            return service.update.order, "update_config says so"
        return UpdateOrder.STOP_FIRST, "update_config without an order"
    if host_ports(service):
        return UpdateOrder.STOP_FIRST, "it has a host port"
    if service.network_mode == "host":
        return UpdateOrder.STOP_FIRST, "it uses the host's network"
    if service.container_name:
        return UpdateOrder.STOP_FIRST, "its container has a fixed name"
    single = not is_global(service) and replicas(record, service) == 1
    if named_volumes(record.stack, service) and (single or is_global(service)):
        return UpdateOrder.STOP_FIRST, "it has a named volume"
    return UpdateOrder.START_FIRST, "nothing forbids two at once"


def parallelism(service: Service) -> int:
    """How many slots of a service may be replaced at the same time (0 in the file: all)."""
    count = service.update.parallelism if service.update else 1
    return count or 1 << 30
