"""What the command line does on hosts itself, over SSH: nodes made and unmade, controllers placed.

Each function is one command's whole work on one cluster: the hosts first, then the inventory, then
the controller's knowledge, so that a failure leaves nothing that claims more than there is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import trio
from attrs import evolve, frozen

from orchestra.api.blocking import ClusterClient
from orchestra.cli import context, session
from orchestra.cli.context import Context
from orchestra.controller import bootstrap, home, inventory
from orchestra.controller.login import Report
from orchestra.controller.reach import read_target as read_target
from orchestra.controller.reach import run_with_ssh
from orchestra.controller.vagrant import machines as machines
from orchestra.model.errors import Conflict, Invalid, NotFound, Unavailable
from orchestra.model.node import InventoryNode, NodeState

T = TypeVar("T")

FIRST_LOOK = 20.0  # seconds for a controller that just started to hear every node once


@frozen
class Trust:
    """What to do with a host key that is not pinned: ask on a terminal where neither is given."""

    accept_new: bool = False
    fingerprint: str = ""  # "SHA256:..."

    def __call__(self, key: str, fingerprint: str) -> bool:
        if self.fingerprint and fingerprint != self.fingerprint:
            raise Unavailable(
                f"the host shows the key {fingerprint}, not {self.fingerprint} as --host-key says: "
                "it is another machine, or someone is in between"
            )
        if self.fingerprint or self.accept_new:
            return True
        if not sys.stdin.isatty():
            return False
        print(f"The host shows the key {key.split()[0]} {fingerprint}.", file=sys.stderr)
        print("Is that its key (yes/no)? ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def report(name: str) -> Report:
    return lambda text: print(f"{name}: {text}", file=sys.stderr)


def over_ssh(cluster: Context, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the network that reaches the cluster's hosts."""
    with _network(cluster.netns):
        return run_with_ssh(work)


@contextmanager
def _network(netns: str) -> Iterator[None]:
    if not netns:
        yield
        return
    from orchestra.testing.lab.namespaces import enter_netns

    with open("/proc/thread-self/ns/net") as own:
        enter_netns(netns)
        try:
            yield
        finally:
            enter_netns(f"/proc/self/fd/{own.fileno()}")


def client(cluster: Context) -> ClusterClient:
    return ClusterClient(session.to_cluster(cluster))


def find(cluster: Context, name: str) -> InventoryNode:
    """A node of the inventory. NotFound names the ones there are."""
    nodes = inventory.load(cluster.inventory)
    for node in nodes:
        if node.name == name:
            return node
    names = ", ".join(node.name for node in nodes) or "none"
    raise NotFound(f"cluster {cluster.name} has no node {name!r}; its nodes: {names}")


def forget(cluster: Context) -> None:
    """Drop what this user knows of a cluster; its nodes go on as they are."""
    session.stop(cluster)
    context.forget(cluster.name)


# --- nodes ----------------------------------------------------------------------------------


def add(cluster: Context, node: InventoryNode, trust: Trust, install: bool) -> bootstrap.Added:
    """Make a host a node of the cluster, or upgrade it in place; a failure leaves no trace."""
    nodes = inventory.load(cluster.inventory)
    before = next((n for n in nodes if n.name == node.name), None)
    if before is not None:
        node = _again(before, node, keep_key=not (trust.accept_new or trust.fingerprint))
    tell = report(node.name)
    work = bootstrap.add_node(
        node,
        nodes,
        trust=trust,
        controller_key=cluster.controller_key,
        install=install,
        report=tell,
    )
    added = over_ssh(cluster, work)
    is_new = cluster.name not in context.names()
    context.save(cluster)
    try:
        status = client(cluster).put_node(_for_controller(cluster, added.node))
    except BaseException:
        if not added.upgraded:
            over_ssh(
                cluster, bootstrap.remove_host(added.node, purge=True, comment=_comment(cluster))
            )
        if is_new:
            forget(cluster)
        raise
    inventory.save(cluster.inventory, inventory.with_node(nodes, added.node))
    if not status.id:
        tell("it belongs to a cluster whose controller is lost: `orchestra cluster adopt`")
    return added


def _again(before: InventoryNode, now: InventoryNode, keep_key: bool) -> InventoryNode:
    """Added again: what the command line leaves out stays as it was."""
    same_host = (before.address, before.port) == (now.address, now.port)
    return evolve(
        now,
        identity=now.identity or before.identity,
        underlay=now.underlay or (before.underlay if same_host else ""),
        jump=now.jump or before.jump,
        labels={**before.labels, **now.labels},
        host_key=before.host_key if keep_key and same_host else "",
    )


def _for_controller(cluster: Context, node: InventoryNode) -> InventoryNode:
    return home.as_seen_by_controller(node) if cluster.controller else node


def _comment(cluster: Context) -> str:
    """What marks the controller's key on the nodes; "" where the session is the controller."""
    return home.key_comment(cluster.name) if cluster.controller else ""


def add_all(cluster: Context, nodes: Sequence[InventoryNode]) -> list[bootstrap.Added]:
    """Add several hosts at once to a cluster that no controller serves yet; keys are pinned."""

    async def work() -> list[bootstrap.Added]:
        added: dict[str, bootstrap.Added] = {}

        async def one(node: InventoryNode) -> None:
            added[node.name] = await bootstrap.add_node(node, nodes, report=report(node.name))

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)
        return [added[node.name] for node in nodes]

    done = over_ssh(cluster, work())
    context.save(cluster)
    inventory.save(cluster.inventory, [a.node for a in done])
    return done


def remove(cluster: Context, name: str, *, purge: bool, force: bool) -> None:
    """Take a node out of the cluster and make its host a plain host again.

    `force`: forget it even where it runs tasks or cannot be reached.
    """
    node = find(cluster, name)
    if name == cluster.controller:
        raise Conflict(
            f"{name} is the controller's home; `orchestra controller uninstall` (or install it on "
            "another node) first"
        )
    with suppress(NotFound):  # it left the cluster before, and only its host is to be cleaned
        client(cluster).remove_node(name, force)
    work = bootstrap.remove_host(node, purge=purge, comment=_comment(cluster), report=report(name))
    try:
        over_ssh(cluster, work)
    except Unavailable as error:
        if not force:
            raise Unavailable(
                f"{name} left the cluster, but its host could not be cleaned: {error}. Run this "
                "again when it is back, or with --force to forget the host as it is"
            ) from None
        report(name)(f"forgotten as it is: {error}")
    rest = [n for n in inventory.load(cluster.inventory) if n.name != name]
    inventory.save(cluster.inventory, rest)


def label(cluster: Context, name: str, labels: dict[str, str | None]) -> None:
    """Set labels (None removes one) in the controller's knowledge and in the inventory."""
    node = find(cluster, name)
    client(cluster).set_labels(name, labels)
    merged = {**node.labels, **labels}
    kept = {key: value for key, value in merged.items() if value is not None}
    nodes = inventory.load(cluster.inventory)
    inventory.save(cluster.inventory, inventory.with_node(nodes, evolve(node, labels=kept)))


# --- controllers ----------------------------------------------------------------------------


def install_controller(cluster: Context, name: str) -> Context:
    """Move the cluster's controller to a node, or upgrade it there."""
    node = find(cluster, name)
    if cluster.controller not in ("", name):
        raise Conflict(
            f"the controller of {cluster.name} lives on {cluster.controller}; `orchestra "
            f"controller uninstall` first, then install it on {name}"
        )
    nodes = inventory.load(cluster.inventory)
    session.stop(cluster)  # two controllers on the same nodes would be two minds
    work = home.install_controller(cluster.name, node, nodes, report=report("controller"))
    moved = evolve(cluster, controller=name, controller_key=over_ssh(cluster, work))
    context.save(moved)
    return moved


def uninstall_controller(cluster: Context) -> list[str]:
    """Go back to the CLI's own session; nodes where the controller's key could not be removed."""
    if not cluster.controller:
        raise Invalid(f"cluster {cluster.name} has no controller on a node")
    node = find(cluster, cluster.controller)
    nodes = inventory.load(cluster.inventory)
    session.stop(cluster)
    unreached = over_ssh(cluster, home.uninstall_controller(cluster.name, node, nodes))
    context.save(evolve(cluster, controller="", controller_key=""))
    return unreached


def hand_over(cluster: Context) -> Sequence[str]:
    """Let the controller in charge now take over what the one before left on the nodes, as text.

    Right only where both are this user's: a controller that moved.
    """
    asked = client(cluster)
    deadline = time.monotonic() + FIRST_LOOK
    while time.monotonic() < deadline and any(
        status.state is NodeState.UNKNOWN for status in asked.nodes()
    ):
        time.sleep(0.05)
    return asked.adopt() if asked.info().orphaned_generation else ()


def options(values: Any) -> dict[str, str]:
    """Read KEY=VALUE words."""
    found = {}
    for text in values or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Invalid(f"cannot read the label {text!r}: write KEY=VALUE")
        found[key] = value
    return found
