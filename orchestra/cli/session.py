"""How a command reaches its cluster's controller: through a background process of this user.

The session is a controller of its own, or, where one is installed on a node, a wire to that one
through SSH. It starts with the first command, keeps its connections for the next ones and ends
after ten idle minutes; commands speak to its Unix socket with the standard library only, so they
stay quick. `connect` is the command's side, `main` the process.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from orchestra.cli import context
from orchestra.cli.context import Context
from orchestra.model.errors import OrchestraError, Unavailable

if TYPE_CHECKING:
    import trio

    from orchestra.transport.ssh import SshConnection

IDLE = 600.0  # seconds
HERE = "/run/orchestra/controller.sock"  # where a controller on this very machine listens
PIECE = 64 << 10


# --- the command's side ---------------------------------------------------------------------


def connect(args: argparse.Namespace) -> Callable[[], socket.socket]:
    """A function that opens a connection to the chosen cluster's controller.

    It raises Unavailable where no session can be started, with the session's own words.
    """
    if not (args.cluster or os.environ.get("ORCHESTRA_CLUSTER") or context.current()) and (
        os.path.exists(HERE)
    ):
        return lambda: _dial(HERE)
    return to_cluster(context.chosen(args))


def to_cluster(cluster: Context) -> Callable[[], socket.socket]:
    def open_socket() -> socket.socket:
        if cluster.socket:
            return _dial(cluster.socket)
        try:
            return _dial(socket_path(cluster))
        except (FileNotFoundError, ConnectionRefusedError):
            _start(cluster)
            return _dial(socket_path(cluster))

    return open_socket


def _dial(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _run_directory() -> str:
    """A directory that only this user can write. Unavailable where someone else made it."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = f"{base}/orchestra" if base else f"/tmp/orchestra-{os.getuid()}"
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Unavailable(f"{path} is not a directory of this user alone (0700); remove it")
    return path


def _key(cluster: Context) -> str:
    """Names the session; two users' or two configurations' clusters of one name stay apart."""
    mark = hashlib.sha256(f"{context.root()}\0{cluster.inventory}".encode()).hexdigest()[:8]
    return f"{cluster.name[:40]}-{mark}"


def socket_path(cluster: Context) -> str:
    return f"{_run_directory()}/{_key(cluster)}.sock"


def log_path(cluster: Context) -> str:
    return f"{_run_directory()}/{_key(cluster)}.log"


@contextmanager
def _starting(cluster: Context) -> Iterator[None]:
    """One process at a time starts or ends a cluster's session (flock(2))."""
    path = f"{_run_directory()}/{_key(cluster)}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _start(cluster: Context) -> None:
    with _starting(cluster):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            _dial(socket_path(cluster)).close()
            return  # another command was quicker
        reading, writing = os.pipe()
        with open(log_path(cluster), "wb") as log, open(reading, "rb") as ready:
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "orchestra.cli.main", "session"),
                    *("--cluster", cluster.name, "--inventory", cluster.inventory),
                    *("--ready", str(writing)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=[writing],
            )
            os.close(writing)
            said = ready.read().decode(errors="replace")
    if said != "ready":
        raise Unavailable(
            said or f"the session of cluster {cluster.name} ended at once; see {log_path(cluster)}"
        )


def stop(cluster: Context, patience: float = 10.0) -> bool:
    """End the cluster's session if one runs, for example because its controller moved."""
    path = socket_path(cluster)
    try:
        _dial(path).close()
        with open(f"{path}.pid") as file:
            pid = int(file.read())
    except (FileNotFoundError, ConnectionRefusedError):
        _tidy(cluster)
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
    _tidy(cluster)
    return True


def _tidy(cluster: Context) -> None:
    path = socket_path(cluster)
    for name in (path, f"{path}.pid", log_path(cluster), path.removesuffix("sock") + "lock"):
        with suppress(FileNotFoundError):
            os.unlink(name)
    with suppress(OSError):
        os.rmdir(_run_directory())  # stays while another session is in it


# --- the process -----------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Be the session of a cluster until idle; tells on `--ready` when its socket answers."""
    parser = argparse.ArgumentParser(prog="orchestra session", description=main.__doc__)
    parser.add_argument("--cluster", required=True, metavar="NAME")
    parser.add_argument("--inventory", required=True, metavar="FILE")
    parser.add_argument("--ready", type=int, default=-1, metavar="FD")
    parser.add_argument("--idle", type=float, default=IDLE, metavar="SECONDS")
    options = parser.parse_args(argv)
    known = options.cluster in context.names()
    cluster = (
        context.load(options.cluster)
        if known
        else Context(options.cluster, os.path.abspath(options.inventory))
    )
    os.umask(0o077)
    path = socket_path(cluster)

    def tell(text: str) -> None:
        if options.ready >= 0:
            os.write(options.ready, text.encode())
            os.close(options.ready)
            options.ready = -1

    with suppress(FileNotFoundError):
        os.unlink(path)
    with open(f"{path}.pid", "w") as file:
        file.write(str(os.getpid()))
    try:
        if cluster.netns:
            from orchestra.testing.lab.namespaces import enter_netns

            enter_netns(cluster.netns)
        import trio

        trio.run(_serve, cluster, path, options.idle, lambda: tell("ready"))
    except BaseException as error:
        leaves = list(_leaves(error))
        for leaf in leaves:
            if isinstance(leaf, OrchestraError):
                tell(str(leaf))
        if not all(isinstance(leaf, OrchestraError) for leaf in leaves):
            tell(f"the session of cluster {cluster.name} failed: {leaves[0]}")
            raise
        return 1
    finally:
        for name in (path, f"{path}.pid"):
            with suppress(FileNotFoundError):
                os.unlink(name)
    return 0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _serve(cluster: Context, path: str, idle: float, ready: Callable[[], None]) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            nursery.start_soon(_cancel_at, signals, nursery.cancel_scope)
            if cluster.controller:
                await _forward(cluster, path, idle, ready)
            else:
                await _control(cluster, path, idle, ready)
            nursery.cancel_scope.cancel()


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _control(cluster: Context, path: str, idle: float, ready: Callable[[], None]) -> None:
    """Be a controller."""
    import trio

    from orchestra.controller import inventory
    from orchestra.controller.main import ControllerConfig, serve_controller

    config = ControllerConfig(
        name=cluster.name,
        state_dir=f"{cluster.directory}/state",
        socket=path,
        role="session",
        inventory=inventory.load(cluster.inventory),
        idle_exit=idle,
    )

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve_controller(config, task_status=task_status))
        ready()


async def _forward(cluster: Context, path: str, idle: float, ready: Callable[[], None]) -> None:
    """Be a wire to the controller on its node: one SSH channel for each connection."""

    from orchestra.controller import inventory
    from orchestra.controller.bootstrap import ssh_target
    from orchestra.transport.errors import TransportError
    from orchestra.transport.ssh import connect as ssh_connect
    from orchestra.transport.ssh import ssh_loop

    nodes = {node.name: node for node in inventory.load(cluster.inventory)}
    if cluster.controller not in nodes:
        raise Unavailable(
            f"the controller of {cluster.name} lives on {cluster.controller}, which is not in "
            f"{cluster.inventory}"
        )
    async with ssh_loop():
        try:
            async with ssh_connect(ssh_target(nodes[cluster.controller])) as ssh:
                listener = await _listen(path)
                ready()
                await _until_idle_or_gone(listener, ssh, idle)
        except TransportError as error:
            raise Unavailable(
                f"cannot reach the controller on {cluster.controller}: {error}"
            ) from None


async def _listen(path: str) -> trio.SocketListener:
    import trio

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(path)
    listening.listen(128)
    return trio.SocketListener(listening)


async def _until_idle_or_gone(
    listener: trio.SocketListener, ssh: SshConnection, idle: float
) -> None:
    """Serve until nobody was connected for `idle` seconds, or the SSH connection ends."""
    import trio

    open_now = 0
    deadline = trio.current_time() + idle

    async def serve(client: trio.SocketStream) -> None:
        nonlocal open_now, deadline
        open_now += 1
        try:
            await _pump(client, ssh)
        finally:
            open_now -= 1
            deadline = trio.current_time() + idle

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        while not ssh.closed.is_set():
            with trio.move_on_at(max(deadline, trio.current_time() + 1.0)):
                await ssh.closed.wait()
            if not open_now and trio.current_time() >= deadline:
                break
        nursery.cancel_scope.cancel()


async def _pump(client: trio.SocketStream, ssh: SshConnection) -> None:
    import trio

    from orchestra.transport.errors import TransportError

    async def copy(source: trio.abc.ReceiveStream, target: trio.abc.HalfCloseableStream) -> None:
        try:
            while data := await source.receive_some(PIECE):
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            nursery.cancel_scope.cancel()

    async with client:
        try:
            remote = await ssh.open_unix(HERE)
        except TransportError as error:
            with suppress(trio.BrokenResourceError):
                await client.send_all(_unavailable(f"the controller does not answer: {error}"))
            return
        async with remote, trio.open_nursery() as nursery:
            nursery.start_soon(copy, client, remote)
            nursery.start_soon(copy, remote, client)


def _unavailable(text: str) -> bytes:
    """An HTTP answer that the command shows as the reason."""
    body = json.dumps({"message": text}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
