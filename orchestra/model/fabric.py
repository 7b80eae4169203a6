"""What one node's network shall be: the input of `fabric.render`, made by the agent.

The agent merges the controller's assignment with the node's own networks and containers into one
`FabricState`; rendering it is pure and applying it is a diff against the kernel. Addresses are
IPv4 text; a network's traffic between nodes is routed over the tunnel by block.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from orchestra.model.assignment import ClusterNet


@frozen
class FabricNetwork:
    id: str
    name: str
    subnet: str
    gateway: str
    internal: bool = False
    local: bool = False  # exists on this node only
    block: str = ""  # this node's share; of a local network the subnet
    remote_blocks: Mapping[int, str] = field(factory=dict)  # node index -> block
    remote_addresses: Mapping[str, int] = field(factory=dict)  # /32s outside a block -> node


@frozen
class FabricEndpoint:
    """One wire on this node. `interface` is its name inside the container: eth0, eth1, ..."""

    container: str  # container id
    network: str  # network id
    address: str
    interface: str
    mac: str

    @property
    def device(self) -> str:
        """Name of the wire's host side in the fabric namespace (at most 15 characters)."""
        return f"t{self.container[:10]}{self.interface[3:]}"


@frozen
class FabricService:
    """A virtual address and the serving endpoints behind it (none: connections are refused)."""

    name: str
    vip: str
    targets: tuple[str, ...] = ()


@frozen
class FabricPort:
    """A published port of this node. `host_ip` "" = every address of the host."""

    protocol: str
    port: int
    target_port: int
    host_ip: str = ""
    targets: tuple[str, ...] = ()  # addresses; order is kept
    label: str = ""  # who publishes it, for error texts


@frozen
class NameTable:
    """What the resolver answers, by who asks.

    `clients` maps a container's address to the networks whose names it sees (in order);
    `names` maps network id -> lower-case name -> addresses. `hosts` are names for everybody.
    `upstream` maps a client's address to its own DNS servers, "" holds the node's.
    """

    clients: Mapping[str, tuple[str, ...]] = field(factory=dict)
    names: Mapping[str, Mapping[str, tuple[str, ...]]] = field(factory=dict)
    hosts: Mapping[str, tuple[str, ...]] = field(factory=dict)
    upstream: Mapping[str, tuple[str, ...]] = field(factory=dict)


@frozen
class FabricState:
    generation: int
    cluster: ClusterNet
    networks: tuple[FabricNetwork, ...] = ()
    endpoints: tuple[FabricEndpoint, ...] = ()
    services: tuple[FabricService, ...] = ()
    ports: tuple[FabricPort, ...] = ()
    names: NameTable = NameTable()
