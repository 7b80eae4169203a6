"""The agent as a process: one per node, it may die and come back at any time.

Its death touches no container: the shim holds their processes, the fabric is in the kernel, the
resolver is a process of its own. So an end on SIGTERM is just that, an end: nothing is stopped,
and the next agent takes over what it finds.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import trio

from orchestra.agent import assigned
from orchestra.agent.containers import Containers
from orchestra.agent.creation import Parts
from orchestra.agent.engine import Engine
from orchestra.agent.events import Events
from orchestra.agent.facts import collect_facts
from orchestra.agent.images import NodeImages
from orchestra.agent.lifecycle import Lifecycle
from orchestra.agent.node import Changes, Node
from orchestra.agent.plumbing import Plumbing
from orchestra.agent.reconcile import Reconciler
from orchestra.agent.state import State
from orchestra.api.server import agent_app, serve_unix
from orchestra.fabric import resolver
from orchestra.fabric.fabric import Fabric, open_fabric
from orchestra.model.errors import OrchestraError, Unavailable
from orchestra.model.node import NodeFacts
from orchestra.model.paths import NodePaths
from orchestra.runtime.runtime import Runtime, open_runtime
from orchestra.runtime.volumes import Volumes

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
RANGE = "standalone-range"  # setting: the range chosen while in no cluster, kept for good


def main(argv: Sequence[str]) -> int:
    """Run `agent [options]` or `resolver [options]`; the exit code."""
    if argv and argv[0] == "resolver":
        return int(resolver.main(list(argv[1:])) or 0)
    parser = argparse.ArgumentParser(prog="orchestra agent", description=__doc__)
    parser.add_argument("word", choices=("agent",), help="which process to be")
    parser.add_argument("--state", default=NodePaths().state, help="what survives reboots")
    parser.add_argument("--run", default=NodePaths().run, help="sockets and what does not")
    parser.add_argument("--fabric", default="orchestra", help="name of the network namespace")
    parser.add_argument("--cgroup-parent", default="orchestra", help="cgroup above all containers")
    parser.add_argument("--log-file", default="", help="append log lines here, not to stderr")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, filename=options.log_file or None)
    # A thread that waits for the interpreter gets it soon: the network's thread and the event loop
    # work side by side in every start, which 5 ms (the default) would make one after the other.
    sys.setswitchinterval(0.0002)
    paths = NodePaths(options.state, options.run)
    status = 0
    try:
        trio.run(_until_signal, paths, options.fabric, options.cgroup_parent)
    except* OrchestraError as errors:
        for error in _leaves(errors):
            print(f"orchestra agent: {error}", file=sys.stderr)
        status = 1
    return status


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _until_signal(paths: NodePaths, fabric_name: str, cgroup_parent: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: serve_agent(paths, fabric_name=fabric_name, cgroup_parent=cgroup_parent)
            )
            async for number in signals:
                log.info("%s: ending; containers go on", signal.Signals(number).name)
                nursery.cancel_scope.cancel()
                return


async def serve_agent(
    paths: NodePaths,
    *,
    fabric_name: str = "orchestra",
    cgroup_parent: str = "orchestra",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be the agent of `paths` until cancelled; started when its socket answers.

    Raises Unavailable where another agent serves these paths, or the kernel lacks what is needed.
    """
    _make_directories(paths)
    lock = _only_one(paths)
    try:
        async with open_agent(paths, fabric_name, cgroup_parent) as (engine, node):
            app = agent_app(engine, node)
            await serve_unix(paths.agent_socket, app, task_status=task_status)
    finally:
        os.close(lock)


@asynccontextmanager
async def open_agent(
    paths: NodePaths, fabric_name: str, cgroup_parent: str
) -> AsyncIterator[tuple[Engine, Node]]:
    """Open everything a node is made of and take over what runs; yields what routes call."""
    facts = collect_facts(paths, fabric_name)
    state = State(paths.database)
    try:
        async with (
            open_runtime(paths, cgroup_parent=cgroup_parent) as runtime,
            open_fabric(paths, name=fabric_name) as fabric,
            trio.open_nursery() as nursery,
        ):
            engine, node = await _assemble(paths, facts, state, runtime, fabric, nursery)
            yield engine, node
            nursery.cancel_scope.cancel()
    finally:
        state.close()


async def _assemble(
    paths: NodePaths,
    facts: NodeFacts,
    state: State,
    runtime: Runtime,
    fabric: Fabric,
    nursery: trio.Nursery,
) -> tuple[Engine, Node]:
    events, changes = Events(), Changes()
    containers = Containers(state, changes.note)
    images = NodeImages(paths.images, events, changes.note)
    volumes = Volumes(paths)
    stored = assigned.load(paths.assignment) or _standalone(facts, state)
    plumbing = Plumbing(fabric, containers, state, stored.assignment, changes.note)
    parts = Parts(containers, runtime, images, volumes, events)
    lifecycle = Lifecycle(paths, containers, runtime, volumes, plumbing, events, nursery)
    reconciler = Reconciler(parts, lifecycle, lambda: plumbing.assignment, changes.note)
    changes.subscribe(reconciler.wake)
    changes.subscribe(plumbing.changed)

    await _sweep(paths, containers, runtime)
    booted = _first_since_boot(paths)
    if booted:
        _repair(parts)
    lifecycle.resume(booted=booted)
    nursery.start_soon(plumbing.run)
    await plumbing.settle()
    await fabric.ensure_resolver()
    nursery.start_soon(lifecycle.watch_exits)
    nursery.start_soon(reconciler.run)
    engine = Engine(paths, parts, lifecycle, plumbing, facts)
    node = Node(paths, facts, stored, containers, volumes, plumbing, reconciler, lifecycle, changes)
    return engine, node


async def _sweep(paths: NodePaths, containers: Containers, runtime: Runtime) -> None:
    """Delete containers' directories that no record knows: an agent died between the two."""
    try:
        found = os.listdir(paths.container(""))
    except FileNotFoundError:
        return
    for container_id in found:
        if container_id in containers:
            continue
        if container_id in runtime.running():
            log.error("container %s runs and has no record: left alone", container_id)
            continue
        log.info("deleting container %s, which was never finished", container_id[:12])
        await runtime.delete(container_id)


def _repair(parts: Parts) -> None:
    """Give the runtime what a power cut may have taken: the records are safe, its files were not
    waited for."""
    for live in parts.containers:
        container = live.container
        try:
            lowers = parts.images.lowers(container.spec.image_id)
            volumes = {t: parts.volumes.path(v) for t, v in container.volumes.items()}
        except OrchestraError as error:
            log.error("container %s lost what it is made of: %s", container.name, error)
            continue
        parts.runtime.repair(live.id, container.spec, lowers, volumes)


def _standalone(facts: NodeFacts, state: State) -> assigned.Stored:
    assignment = assigned.standalone(facts, state.setting(RANGE))
    state.set_setting(RANGE, assignment.cluster.range)
    return assigned.Stored(assignment)


def _make_directories(paths: NodePaths) -> None:
    for path, mode in ((paths.state, 0o700), (paths.run, 0o755)):
        os.makedirs(path, mode, exist_ok=True)
    os.chmod(paths.state, 0o700)


def _only_one(paths: NodePaths) -> int:
    """Hold the node's lock: two agents on one state would be two minds (flock(2))."""
    lock = os.open(f"{paths.run}/agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Unavailable(f"another agent serves {paths.run} already") from None
    return lock


def _first_since_boot(paths: NodePaths) -> bool:
    """Whether no agent has run since the host came up: `run` does not survive a reboot."""
    try:
        os.close(os.open(f"{paths.run}/booted", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
