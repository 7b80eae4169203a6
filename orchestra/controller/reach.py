"""How SSH reaches a node of the inventory: the one place that turns its fields into a target."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import trio
from attrs import evolve

from orchestra.model.errors import Invalid, OrchestraError
from orchestra.model.node import InventoryNode
from orchestra.transport.ssh import SshTarget, ssh_loop

T = TypeVar("T")

TARGET = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:@\s\[\]]+))"
    r"(?::(?P<port>\d{1,5}))?"
)


def read_target(text: str) -> tuple[str, str, int]:
    """(user, host, port) of "user@host:port", "host", "user@[v6]:port". Invalid says how."""
    match = TARGET.fullmatch(text)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise Invalid(f"cannot read {text!r}: write USER@HOST[:PORT], an IPv6 address in []")
    return match["user"] or "root", match["v6"] or match["host"], int(match["port"] or 22)


def ssh_target(node: InventoryNode) -> SshTarget:
    """Whom to log in as, and where. Invalid where its jump host cannot be read.

    The jump host lets us in with the same key.
    """
    target = SshTarget(node.address, node.port, node.user, node.identity, node.host_key)
    if not node.jump:
        return target
    user, host, port = read_target(node.jump)
    return evolve(target, jump=SshTarget(host, port, user, node.identity))


def run_with_ssh(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop of its own, with SSH; of several failures the first of ours.

    SIGINT and SIGTERM cancel it, so that it can undo what it began, and then are KeyboardInterrupt;
    the second one ends the process at once. (Python's own KeyboardInterrupt would come up in the
    middle of an asyncio callback, after which its loop never ends.)
    """
    done: list[T] = []

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(_cancel_at_signal, signals, scope)
                with scope:
                    async with ssh_loop():
                        done.append(await work)
                nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from None
    finally:
        work.close()  # where the loop itself could not start
    if not done:
        raise KeyboardInterrupt
    return done[0]


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        if scope.cancel_called:
            os._exit(130)
        scope.cancel()


def first_of_ours(error: BaseException) -> BaseException:
    """Of an exception group's leaves the first that is meant for users, else the first."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, OrchestraError)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
