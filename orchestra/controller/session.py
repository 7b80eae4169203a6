"""The session: a background process through which one user's commands reach one cluster.

Where no controller is installed it is the controller; where one is, it is a wire to that one: one
SSH channel for each connection, over a login that stays open. Either way it serves a Unix socket
of the user and ends by itself after a while without requests. `orchestra.cli.session` starts it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import trio

from orchestra.controller import inventory
from orchestra.controller.main import ControllerConfig, serve_controller
from orchestra.controller.reach import first_of_ours, ssh_target
from orchestra.model.errors import OrchestraError, Unavailable
from orchestra.model.paths import NodePaths
from orchestra.transport.errors import TransportError
from orchestra.transport.ssh import SshConnection, connect, ssh_loop
from orchestra.transport.unix import listen_unix

HOME_SOCKET = NodePaths().controller_socket
PIECE = 64 << 10
PATIENCE = 5.0  # seconds in which the controller's host must take a connection, open a channel


def main(argv: Sequence[str]) -> int:
    """Serve a cluster until idle or told to stop; `--ready` hears "ready", or why it failed."""
    parser = argparse.ArgumentParser(prog="orchestra session", description=main.__doc__)
    parser.add_argument("--cluster", required=True, metavar="NAME")
    parser.add_argument("--inventory", required=True, metavar="FILE")
    parser.add_argument("--state", required=True, metavar="DIR")
    parser.add_argument("--socket", required=True, metavar="PATH")
    parser.add_argument("--home", default="", metavar="NODE", help="where a controller lives")
    parser.add_argument("--idle", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--ready", type=int, required=True, metavar="FD")
    options = parser.parse_args(argv)

    def tell(text: str) -> None:
        with suppress(BrokenPipeError):  # the command that started us is gone; others will come
            os.write(options.ready, text.encode())
        os.close(options.ready)

    told = False

    def ready() -> None:
        nonlocal told
        told = True
        tell("ready")

    os.umask(0o077)
    mark = open(f"{options.socket}.pid", "w")  # noqa: SIM115 - held until the process is gone
    fcntl.flock(mark, fcntl.LOCK_EX)
    mark.write(str(os.getpid()))
    mark.flush()
    try:
        trio.run(_until_signalled, options, ready)
    except BaseException as error:
        reason = first_of_ours(error)
        if not told:
            tell(str(reason) or f"the session failed: {type(reason).__name__}")
        if not isinstance(reason, OrchestraError):
            raise
        return 1
    return 0


async def _until_signalled(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    serve = _forward if options.home else _control
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            nursery.start_soon(_cancel_at, signals, nursery.cancel_scope)
            await serve(options, ready)
            nursery.cancel_scope.cancel()


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _control(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Be the controller."""
    config = ControllerConfig(
        name=options.cluster,
        state_dir=options.state,
        socket=options.socket,
        role="session",
        inventory=inventory.load(options.inventory),
        idle_exit=options.idle,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_controller, config)
        ready()


async def _forward(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Be the wire to the controller on its node."""
    nodes = {node.name: node for node in inventory.load(options.inventory)}
    if options.home not in nodes:
        raise Unavailable(
            f"the controller of {options.cluster} lives on {options.home}, which is not in "
            f"{options.inventory}"
        )
    async with ssh_loop():
        try:
            async with connect(ssh_target(nodes[options.home]), patience=PATIENCE) as ssh:
                await Wire(options.home, ssh, options.idle).serve(options.socket, ready)
        except TransportError as error:
            raise Unavailable(f"cannot reach the controller on {options.home}: {error}") from None


class Wire:
    """Passes connections of a Unix socket on to the controller's, through one login."""

    def __init__(self, home: str, ssh: SshConnection, idle: float) -> None:
        self._home = home
        self._ssh = ssh
        self._idle = idle
        self._open = 0
        self._deadline = trio.current_time() + idle
        self._broken = trio.Event()

    async def serve(self, path: str, ready: Callable[[], None]) -> None:
        """Serve until nobody was connected for a while, or the login is gone: a next session
        makes a new one."""
        async with listen_unix(path) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._pass_on, [listener])
            nursery.start_soon(self._watch_login)
            ready()
            while not self._broken.is_set():
                with trio.move_on_at(self._deadline):
                    await self._broken.wait()
                if not self._open and trio.current_time() >= self._deadline:
                    break
                self._deadline = max(self._deadline, trio.current_time() + 1.0)
            nursery.cancel_scope.cancel()

    async def _watch_login(self) -> None:
        await self._ssh.closed.wait()
        self._broken.set()

    async def _pass_on(self, client: trio.SocketStream) -> None:
        self._open += 1
        try:
            async with client:
                try:
                    with trio.fail_after(PATIENCE):
                        remote = await self._ssh.open_unix(HOME_SOCKET)
                except (TransportError, trio.TooSlowError) as error:
                    with suppress(trio.BrokenResourceError):
                        await client.send_all(self._unavailable(error))
                    if not isinstance(error, TransportError):
                        self._broken.set()
                    return
                async with remote:
                    await join(client, remote)
        finally:
            self._open -= 1
            self._deadline = trio.current_time() + self._idle

    def _unavailable(self, error: Exception) -> bytes:
        """An HTTP answer that the command shows as the reason."""
        reason = str(error) or f"the node did not answer within {PATIENCE:g} s"
        text = f"cannot reach the controller on {self._home}: {reason}"
        body = json.dumps({"message": text}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


async def join(one: trio.abc.HalfCloseableStream, other: trio.abc.HalfCloseableStream) -> None:
    """Copy both ways, half-closes too, until both directions ended or one side broke."""

    async def copy(source: trio.abc.ReceiveStream, target: trio.abc.HalfCloseableStream) -> None:
        try:
            while data := await source.receive_some(PIECE):
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, one, other)
        nursery.start_soon(copy, other, one)
