"""Who gets which address: a subnet for each network, blocks in it for nodes, addresses in them.

A network is a /16 (later ones a /20 when those run low, or the user's own subnet), cut into blocks
of a /24 or a sixteenth of it. Block 0 holds the gateway (.1) and the services' virtual addresses;
every node that runs a member gets one of the others, from below (virtual addresses beyond block 0
come from above). In a node's block the lower three quarters are the controller's, for tasks; the
rest is the node's own. An address that was given back rests
for `QUARANTINE` seconds, so that a stale translation on some node cannot reach its next owner.
All functions are pure: they take what is used and return what to use.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from orchestra.model.errors import Conflict
from orchestra.plan.state import NetworkRecord

QUARANTINE = 60.0
CANDIDATE_RANGES = ("10.16.0.0/12", "10.176.0.0/12", "172.24.0.0/14")
_RESERVED_16 = 2  # node addresses, node-local networks
_WIDE_SHARE = 2  # half of the range goes out as /16s, the other half as /20s

Net = ipaddress.IPv4Network


def pick_range(routes: Iterable[str]) -> str:
    """Return the first candidate range that overlaps no route of any node.

    Raises Conflict where all of them do.
    """
    used = [net for net in map(_network, routes) if net is not None and net.prefixlen > 0]
    for candidate in CANDIDATE_RANGES:
        net = Net(candidate)
        if not any(net.overlaps(other) for other in used):
            return candidate
    raise Conflict(
        f"cannot pick an address range for the cluster: the nodes have routes into each of "
        f"{', '.join(CANDIDATE_RANGES)}"
    )


def pick_subnet(range_: str, used: Collection[str]) -> str:
    """Return a free subnet of the cluster's range. Raises Conflict where none is left."""
    taken = [Net(text) for text in used]
    blocks = list(Net(range_).subnets(new_prefix=16))[_RESERVED_16:]
    wide = max(1, len(blocks) // _WIDE_SHARE)
    small = [s for block in blocks[wide:] for s in block.subnets(new_prefix=20)]
    for candidate in [*blocks[:wide], *small]:
        if not any(candidate.overlaps(other) for other in taken):
            return str(candidate)
    raise Conflict(
        f"no free subnet is left in the cluster's range {range_}: {len(taken)} networks are in "
        "use; remove one (`orchestra network ls`) or give this one a subnet of its own"
    )


def check_subnet(name: str, subnet: str, range_: str, used: Mapping[str, str]) -> None:
    """Refuse a user's subnet that overlaps another network's, or the nodes' own addresses."""
    net = _network(subnet)
    if net is None or net.prefixlen > 26:
        raise Conflict(f"network {name}: {subnet!r} is not an IPv4 subnet of at least a /26")
    for other, text in used.items():
        if net.overlaps(Net(text)):
            raise Conflict(f"network {name}: subnet {subnet} overlaps {text} of network {other}")
    for reserved in list(Net(range_).subnets(new_prefix=16))[:_RESERVED_16]:
        if net.overlaps(reserved):
            raise Conflict(
                f"network {name}: subnet {subnet} overlaps {reserved}, which holds the nodes' "
                "own addresses"
            )


def gateway(subnet: str) -> str:
    """The first address of the subnet; nothing answers there, clients only want to see one."""
    return str(Net(subnet).network_address + 1)


def pick_block(subnet: str, blocks: Mapping[int, str], vips: Collection[str], node: int) -> str:
    """Return the node's block in a network: the one it has, else a free one, the lowest first.

    Returns "" where all are given out. A block with virtual addresses in it is not free.
    """
    if node in blocks:
        return blocks[node]
    taken = {*blocks.values(), *_blocks_of(subnet, vips)}
    return next((str(b) for b in islice(_blocks(subnet), 1, None) if str(b) not in taken), "")


def pick_task_address(
    block: str, used: Collection[str], released: Mapping[str, float], now: float
) -> str | None:
    """Return a free address for a task in a node's block; None where all are used or resting."""
    return _first_free(Net(block), _for_tasks(block), used, released, now)


def capacity(block: str) -> int:
    """How many tasks a node can have in a network at once."""
    return len(_for_tasks(block))


def _for_tasks(block: str) -> range:
    return range(2, Net(block).num_addresses * 3 // 4)


def pick_vip(network: NetworkRecord, now: float) -> str | None:
    """Return a free virtual address of a network; None where all are used or resting.

    Block 0 holds them; when it is full (many services in one network), blocks that no node has,
    the highest first.
    """
    used = set(network.vips.values())
    blocks = iter(_blocks(network.subnet))
    first = next(blocks)
    within = range(2, first.num_addresses - 1)
    found = _first_free(first, within, used, network.released, now)
    if found is not None:
        return found
    taken = set(network.blocks.values())
    for block in reversed(list(blocks)):
        if str(block) not in taken:
            whole = range(block.num_addresses)
            found = _first_free(block, whole, used, network.released, now)
            if found is not None:
                return found
    return None


def still_resting(released: Mapping[str, float], now: float) -> dict[str, float]:
    """Return the released addresses that may not be given out yet."""
    return {address: at for address, at in released.items() if now - at < QUARANTINE}


def _first_free(
    net: Net,
    offsets: range,
    used: Collection[str],
    released: Mapping[str, float],
    now: float,
) -> str | None:
    resting = still_resting(released, now)
    for offset in offsets:
        address = str(net.network_address + offset)
        if address not in used and address not in resting:
            return address
    return None


def _blocks(subnet: str) -> Iterable[Net]:
    net = Net(subnet)
    return net.subnets(new_prefix=_block_prefix(net))


def _block_prefix(net: Net) -> int:
    return max(24, net.prefixlen + 4)


def _blocks_of(subnet: str, members: Collection[str]) -> set[str]:
    """The blocks of the subnet in which `members` lie."""
    prefix = _block_prefix(Net(subnet))
    return {str(Net(f"{address}/{prefix}", strict=False)) for address in members}


def _network(text: str) -> Net | None:
    try:
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    return net if isinstance(net, Net) else None
