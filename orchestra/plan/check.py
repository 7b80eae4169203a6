"""What is wrong with a stack before anything is planned: refused whole, with names and remedies.

These are the errors that waiting cannot cure: cycles, unknown templates and constraints, two
services that want one port, a subnet that is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from orchestra.model.errors import Conflict, Invalid
from orchestra.model.service import Port, PortMode, Stack
from orchestra.plan import constraints
from orchestra.plan.addresses import check_subnet
from orchestra.plan.expand import check_templates
from orchestra.plan.graph import start_order
from orchestra.plan.state import State, View


def check_stack(state: State, view: View, stack: Stack) -> None:
    """Raise Invalid or Conflict for the first thing that forbids `stack` on this cluster."""
    start_order(stack.services)
    check_templates(stack)
    for service in stack.services.values():
        for text in service.placement.constraints:
            constraints.parse(text)
        for wire in service.networks:
            if wire.network not in stack.networks:
                raise Invalid(f"service {service.name}: network {wire.network} is not defined")
    _check_ports(state, view, stack)
    _check_subnets(state, stack)


@frozen
class _Claim:
    """Somebody's wish for a port of the nodes; `node` "" = of every node."""

    owner: str
    port: Port
    stack: str
    service: str

    def clashes(self, other: _Claim) -> bool:
        mine, its = self.port, other.port
        if (mine.published, mine.protocol) != (its.published, its.protocol):
            return False
        if mine.mode is PortMode.HOST and its.mode is PortMode.HOST:
            return False  # the scheduler keeps them on different nodes
        addresses = {mine.host_ip, its.host_ip}
        return len(addresses) == 1 or bool(addresses & {"", "0.0.0.0"})


def _claims(stack: Stack) -> Iterator[_Claim]:
    for service in stack.services.values():
        if service.network_mode == "host":
            continue
        for port in service.ports:
            if port.published is not None:
                yield _Claim(f"{stack.name}/{service.name}", port, stack.name, service.name)


def _check_ports(state: State, view: View, stack: Stack) -> None:
    others = [
        claim
        for record in state.stacks.values()
        if record.stack.name != stack.name and not record.removing
        for claim in _claims(record.stack)
    ]
    mine: list[_Claim] = []
    for claim in _claims(stack):
        text = f"cannot publish {claim.port.published}/{claim.port.protocol} for {claim.owner}"
        for other in (*others, *mine):
            if claim.clashes(other) and other.owner != claim.owner:
                raise Conflict(
                    f"{text}: {other.owner} publishes it already; choose another published port "
                    f"for one of them, or remove stack {other.stack}"
                )
        mine.append(claim)
        if claim.port.mode is not PortMode.INGRESS:
            continue
        for node in view.nodes.values():
            used = node.observed.ports if node.observed else ()
            if f"{claim.port.protocol}/{claim.port.published}" in used:
                raise Conflict(
                    f"{text} on {node.record.name}: a container that was started on that node "
                    "itself uses it; stop that container or choose another published port"
                )


def _check_subnets(state: State, stack: Stack) -> None:
    if not state.identity.range:
        return
    used = {name: network.subnet for name, network in state.networks.items()}
    for network in stack.networks.values():
        if network.external or not network.subnet:
            continue
        known = state.networks.get(network.name)
        if known is None:
            check_subnet(network.name, network.subnet, state.identity.range, used)
        elif known.subnet != network.subnet:
            raise Conflict(
                f"network {network.name} has subnet {known.subnet} and cannot change it to "
                f"{network.subnet} while it exists; take the stack down first (`orchestra down`)"
            )
