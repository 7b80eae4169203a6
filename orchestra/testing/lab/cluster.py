"""The lab as a cluster: its hosts become nodes over real SSH and a controller moves in.

Nothing here is special to the lab but that the host keys are known already and that the operator
stands on the lab's client: the way is `node add` and `controller install`, as for any host.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from orchestra.cli import context, hosts, session
from orchestra.cli.context import Context
from orchestra.model.errors import Failed, NotFound, OrchestraError
from orchestra.model.node import InventoryNode, NodeState
from orchestra.testing.lab import hosts as lab_hosts
from orchestra.testing.lab import making
from orchestra.testing.lab.hosts import Lab, LabHost

PATIENCE = 60.0  # seconds for all nodes to become ready


def up(name: str, count: int, *, controller: bool = True) -> Lab:
    """Make a lab, its cluster and the controller on node1, and wait until all nodes are ready.

    Without `controller` the user's session is it.
    A failure leaves nothing behind. A lab of that name that is there with as many nodes is
    switched on where it is off, and its nodes are brought up to date.
    """
    existing = _existing(name, count)
    lab = existing or making.create(name, count)
    try:
        off = [host for host in lab.hosts if lab_hosts.pid(lab, host) is None]
        lab_hosts.over_all(Lab(lab.name, tuple(off)), lambda _, host: lab_hosts.boot(lab, host))
        cluster = context_of(lab)
        hosts.add_all(cluster, [as_node(lab, host) for host in lab.hosts])
        if controller:
            cluster = hosts.install_controller(cluster, lab.hosts[0].name)
        context.use(name)
        wait_until_ready(cluster, count)
    except BaseException:
        if existing is None:
            down(name)
        raise
    return lab


def _existing(name: str, count: int) -> Lab | None:
    """The lab of that name, if it is whole and as large as wished; else `create` will refuse."""
    try:
        lab = lab_hosts.load(name)
    except NotFound:
        return None
    return lab if len(lab.hosts) == count else None


def context_of(lab: Lab) -> Context:
    """The lab's cluster as the user knows it already, or a new one."""
    if lab.name in context.names():
        known = context.load(lab.name)
        if known.netns != lab.client:
            raise OrchestraError(
                f"there is a cluster {lab.name!r} that is no lab; `orchestra lab up --name OTHER`"
            )
        return known
    path = context.fresh(lab.name).inventory
    return Context(lab.name, path, netns=lab.client)


def as_node(lab: Lab, host: LabHost) -> InventoryNode:
    return InventoryNode(
        name=host.name,
        address=host.address,
        identity=lab.identity,
        underlay=host.address,
        host_key=host.host_key,
    )


def wait_until_ready(cluster: Context, count: int) -> None:
    """Failed names the nodes that are not ready after a minute, and why."""
    client = hosts.client(cluster)
    deadline = time.monotonic() + PATIENCE
    while True:
        statuses = client.nodes()
        lacking = [s for s in statuses if s.state is not NodeState.READY]
        if len(statuses) == count and not lacking:
            return
        if time.monotonic() > deadline:
            reasons = "; ".join(f"{s.node.name}: {s.reason or s.state.value}" for s in lacking)
            raise Failed(f"not all nodes of lab {cluster.name} are ready: {reasons}")
        time.sleep(0.05)


def down(name: str) -> bool:
    """Take the lab and its cluster away; False where there was nothing of either."""
    there = False
    with suppress(NotFound):
        known = context.load(name)
        if known.netns.startswith(f"{lab_hosts.RUN}/"):
            session.stop(known)
            context.forget(name)
            there = True
    if making.destroy(name):
        there = True
    print(f"lab {name}: {'gone' if there else 'was not there'}", file=sys.stderr)
    return there
