"""A soak of transport/ssh.py: three hosts, 50 channels each, cancels, kills and stopped peers.

`make soak SECONDS=3600`. It runs in rounds. In a round every host's connection carries 50 workers
that open channels, exchange data, are cancelled at random moments and close in every manner, while
the nemesis kills and stops sshd processes; whatever connection dies is made anew. After each round
everything is closed, and what then remains of descriptors, tasks and memory is compared with the
first rounds: a leak fails. A watchdog thread fails a loop that hangs, and a worker that stays
without progress although its host is well. Errors are expected; only known kinds of them are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import trio
import trio_asyncio
from attrs import define, field, frozen

sys.path.insert(0, str(Path(__file__).parents[1]))

from transport.sshd import Sshd, running_sshd

from orchestra.transport import ssh
from orchestra.transport.errors import ChannelRefused, Unreachable
from orchestra.wire.client import HttpClient
from orchestra.wire.message import Disconnected, Request, Response
from orchestra.wire.server import serve_connection

HOSTS = 3
CHANNELS = 50
COMMANDS = 4  # at once on one connection; sshd's MaxSessions is 10
STUCK = 60.0  # seconds without progress on a host that is well
LOOP_STUCK = 20.0  # seconds without a turn of the loop
WARM_UP = 2  # rounds
FD_SLACK = 2
MEMORY_SLACK = 24 << 20
# What a dying connection may look like to its users; anything else ends the soak.
EXPECTED = (
    Unreachable,
    ChannelRefused,
    Disconnected,
    trio.BrokenResourceError,
)


@frozen
class Rest:
    """What is left when everything is closed."""

    fds: int
    tasks: int
    asyncio_tasks: int
    memory: int

    def __str__(self) -> str:
        return (
            f"{self.fds} fds, {self.tasks} tasks, {self.asyncio_tasks} asyncio tasks, "
            f"{self.memory >> 20} MiB"
        )


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def rest() -> Rest:
    gc.collect()
    loop = trio_asyncio.current_loop.get()
    assert loop is not None
    return Rest(
        fds=len(os.listdir("/proc/self/fd")),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        asyncio_tasks=len(asyncio.all_tasks(loop)),
        memory=memory(),
    )


@define
class Host:
    server: Sshd
    progress: float = 0.0  # trio time of the last completed exchange
    harmed: float = 0.0  # until then it may be silent


@define
class Soak:
    random: random.Random
    hosts: list[Host]
    echo: str
    http: str
    opened: int = 0
    connects: int = 0
    cancelled: int = 0
    harm: Counter[str] = field(factory=Counter)
    errors: Counter[str] = field(factory=Counter)
    turned: float = field(factory=time.monotonic)

    # --- work

    async def exchange(self, connection: ssh.SshConnection) -> None:
        """One channel's life: echo some bytes and end in one of several manners."""
        stream = await connection.open_unix(self.echo)
        self.opened += 1
        async with stream:
            size = self.random.choice((1, 100, 5_000, 70_000, 300_000))
            block = self.random.randbytes(size)

            async with trio.open_nursery() as nursery:
                broken: list[Exception] = []

                @nursery.start_soon
                async def send() -> None:
                    try:
                        await stream.send_all(block)
                        await stream.send_eof()
                    except trio.BrokenResourceError as error:
                        broken.append(error)

                received = b""
                try:
                    while chunk := await stream.receive_some():
                        received += chunk
                        if self.random.random() < 0.002:
                            nursery.cancel_scope.cancel()
                except trio.BrokenResourceError as error:
                    broken.append(error)
                nursery.cancel_scope.cancel()
            if broken:
                raise broken[0]
            if not block.startswith(received):
                raise AssertionError("the echo differs from what was sent")

    async def ask(self, connection: ssh.SshConnection) -> None:
        """A few requests on one kept connection, one of them streamed."""
        client = HttpClient(partial(connection.open_unix, self.http))
        self.opened += 1
        try:
            for path in ("/short", "/long", "/short"):
                async with client.request("GET", path) as answer:
                    await answer.read()
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()

    async def command(self, connection: ssh.SshConnection) -> None:
        done = await connection.run("cat", self.random.randbytes(10_000))
        if done.exit_status == 0 and len(done.stdout) != 10_000:
            raise AssertionError("a command's output is incomplete")

    async def worker(self, host: Host, connection: ssh.SshConnection, number: int) -> None:
        while not connection.closed.is_set():
            work = self.exchange if self.random.random() < 0.8 else self.ask
            if number < COMMANDS and self.random.random() < 0.2:
                work = self.command
            patience = self.random.choice((0.002, 0.01, 0.05, 1.0, 10.0))
            try:
                with trio.move_on_after(patience) as scope:
                    await work(connection)
                if scope.cancelled_caught:
                    self.cancelled += 1
                else:
                    host.progress = trio.current_time()
            except EXPECTED as error:
                self.errors[type(error).__name__] += 1
                await trio.sleep(0.02)

    async def live(self, host: Host) -> None:
        """Hold one connection with all its workers; a new one when it dies or enough is done."""
        while True:
            try:
                with trio.move_on_after(self.random.uniform(0.01, 20)):
                    async with ssh.connect(host.server.target()) as connection:
                        self.connects += 1
                        async with trio.open_nursery() as nursery:
                            for number in range(CHANNELS):
                                nursery.start_soon(self.worker, host, connection, number)
            except EXPECTED as error:
                self.errors[f"connect: {type(error).__name__}"] += 1
                await trio.sleep(0.1)

    # --- harm

    async def nemesis(self, host: Host) -> None:
        """Kill and stop processes of one host's sshd, now and then."""
        while True:
            await trio.sleep(self.random.uniform(0.2, 4))
            sessions = host.server.sessions()
            if not sessions:
                continue
            victim = self.random.choice(sessions)
            deed = self.random.choice(("kill", "stop briefly", "stop long", "stop sshd"))
            self.harm[deed] += 1
            with contextlib.suppress(ProcessLookupError):
                if deed == "kill":
                    os.kill(victim, signal.SIGKILL)
                else:
                    # Beyond the keepalives' patience in one case, within it in the other.
                    seconds = self.random.uniform(0.1, 1) if deed == "stop briefly" else 6.0
                    victim = host.server.process.pid if deed == "stop sshd" else victim
                    await self.stopped(host, victim, seconds)

    async def stopped(self, host: Host, victim: int, seconds: float) -> None:
        host.harmed = trio.current_time() + seconds
        os.kill(victim, signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)

    # --- watching

    async def turn(self) -> None:
        """Show the watchdog that the loop turns, and that each host that is well gets on."""
        while True:
            self.turned = time.monotonic()
            for host in self.hosts:
                well_since = max(host.progress, host.harmed)
                if trio.current_time() - well_since > STUCK:
                    raise AssertionError(f"no progress on port {host.server.port} for {STUCK} s")
            await trio.sleep(0.5)

    def watchdog(self) -> None:
        while True:
            time.sleep(1)
            if time.monotonic() - self.turned > LOOP_STUCK:
                print(f"FAILED: the loop has not turned for {LOOP_STUCK:g} s", flush=True)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(2)

    def report(self, began: float, what: str) -> None:
        errors = ", ".join(f"{kind} {count}" for kind, count in self.errors.most_common())
        harm = ", ".join(f"{kind} {count}" for kind, count in self.harm.most_common())
        print(
            f"{trio.current_time() - began:7.0f} s  {self.opened} channels, {self.connects} "
            f"connections, {self.cancelled} cancelled | {harm or 'no harm'} | "
            f"errors: {errors or 'none'} | {what}",
            flush=True,
        )

    async def round(self, seconds: float) -> None:
        now = trio.current_time()
        for host in self.hosts:
            host.progress = now
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for host in self.hosts:
                    nursery.start_soon(self.live, host)
                    nursery.start_soon(self.nemesis, host)
                nursery.start_soon(self.turn)
        self.turned = time.monotonic()

    async def settle(self, first: Rest | None) -> Rest:
        """Wait until what the last round left has gone, 10 s at most."""
        left = rest()
        for _ in range(100):
            self.turned = time.monotonic()
            if first is not None and left.fds <= first.fds and left.tasks <= first.tasks:
                break
            await trio.sleep(0.1)
            left = rest()
        return left


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)


async def app(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(10_000)

    return Response(200, (), body() if request.path == "/long" else b"short")


@contextlib.asynccontextmanager
async def serving(folder: str) -> AsyncIterator[tuple[str, str]]:
    """The sockets of (an echo, an HTTP server), as hosts would have them."""
    async with trio.open_nursery() as nursery:
        paths = (f"{folder}/echo", f"{folder}/http")
        for path, handler in zip(paths, (echo, partial(serve_connection, app=app))):
            listener = trio.socket.socket(trio.socket.AF_UNIX)
            await listener.bind(path)
            listener.listen(1000)
            nursery.start_soon(trio.serve_listeners, handler, [trio.SocketListener(listener)])
        yield paths
        nursery.cancel_scope.cancel()


def leaks(first: Rest, last: Rest) -> list[str]:
    """What grew from the first rounds to the last."""
    found = []
    if last.fds > first.fds + FD_SLACK:
        found.append(f"descriptors grew from {first.fds} to {last.fds}")
    if last.tasks > first.tasks:
        found.append(f"tasks grew from {first.tasks} to {last.tasks}")
    if last.asyncio_tasks > first.asyncio_tasks:
        found.append(f"asyncio tasks grew from {first.asyncio_tasks} to {last.asyncio_tasks}")
    if last.memory > first.memory + MEMORY_SLACK:
        found.append(f"memory grew from {first.memory >> 20} to {last.memory >> 20} MiB")
    return found


async def soak(seconds: float, seed: int) -> list[str]:
    # Shorter than in production, so that many peers are given up within the time.
    ssh.KEEPALIVE_INTERVAL = 1.0
    ssh.LOGIN_TIMEOUT = 5.0
    length = max(8.0, min(60.0, seconds / 7))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestra-soak-"))
        settings = {"MaxStartups": "500", "LogLevel": "QUIET"}
        hosts = [Host(stack.enter_context(running_sshd(settings))) for _ in range(HOSTS)]
        async with ssh.ssh_loop(), serving(folder) as (echo_path, http_path):
            it = Soak(random.Random(seed), hosts, echo_path, http_path)
            threading.Thread(target=it.watchdog, daemon=True).start()
            began = trio.current_time()
            first: Rest | None = None
            rounds = 0
            while True:
                await it.round(length)
                left = await it.settle(first)
                rounds += 1
                it.report(began, f"at rest: {left}")
                if rounds <= WARM_UP:
                    # The best state seen while warming up; memory as high as it got.
                    peak = left.memory if first is None else max(first.memory, left.memory)
                    first = Rest(left.fds, left.tasks, left.asyncio_tasks, peak)
                    continue
                assert first is not None
                found = leaks(first, left)
                if found or trio.current_time() - began + length > seconds:
                    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"soak of {args.seconds:g} s, seed {args.seed}", flush=True)
    faulthandler.enable()
    found = trio.run(soak, args.seconds, args.seed)
    for leak in found:
        print(f"FAILED: {leak}")
    print("failed" if found else "passed: no leak, no hang")
    return 1 if found else 0


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # also where a shell had SIGINT ignored
        signal.signal(ending, signal.default_int_handler)
    sys.exit(main())
