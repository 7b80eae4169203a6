"""The agent's death, the shim's death, both: containers live, exit codes and log bytes are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from orchestra.linux.seccomp import running_kernel
from orchestra.runtime.runtime import Exited, Runtime
from tests.runtime.box import Box, execute, finish, output, shell, spec, start, wait_gone

ROOT = Path(__file__).parents[2]


def agent(node: Box, count: int, tail: str = "") -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Start an agent-like process; returns it and its containers (id -> number)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.agent_process", str(node.base), node.layers[-1],
         str(count), tail],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    found: dict[str, int] = {}
    for line in process.stdout:
        if line == "all\n":
            break
        number, container = line.split()
        found[container] = int(number)
    assert len(found) == count
    return process, found


def go_on(node: Box) -> None:
    (node.base / "go/on").touch()


def expected(number: int) -> bytes:
    return b"".join(b"c%d line %d\n" % (number, i) for i in range(3000))


async def ends(runtime: Runtime, count: int) -> dict[str, Exited]:
    found: dict[str, Exited] = {}
    while len(found) < count:
        exited = await runtime.exits.receive()
        assert exited.container not in found
        found[exited.container] = exited
    return found


async def said(runtime: Runtime, container: str) -> bytes:
    return b"".join([r.data async for r in runtime.logs(container)])


def test_an_agent_killed_while_twenty_containers_write_loses_no_byte_and_no_code(
    node: Box,
) -> None:
    process, containers = agent(node, 20)
    process.kill()
    process.wait()
    go_on(node)

    async def body(runtime: Runtime) -> None:
        for container, exited in (await ends(runtime, 20)).items():
            assert exited.code == containers[container]
            assert await said(runtime, container) == expected(containers[container])

    node.run(body)


def test_agent_and_shim_killed_together_leave_containers_running_and_lose_no_byte(
    node: Box,
) -> None:
    process, containers = agent(node, 3, "sleep 1000")
    shim = node.shim_pid()
    assert shim
    os.kill(shim, signal.SIGKILL)
    process.kill()
    process.wait()
    wait_gone(shim)
    go_on(node)

    async def body(runtime: Runtime) -> None:
        assert set(runtime.running()) == set(containers)
        assert node.shim_pid() not in (None, shim)
        for container, number in containers.items():
            got = b""
            async for record in runtime.logs(container, follow=True):
                got += record.data
                if len(got) >= len(expected(number)):
                    break
            assert got == expected(number)
            assert await execute(runtime, container, "echo", "in") == (0, "in\n")
            await runtime.kill(container, signal.SIGKILL)
            exited, _ = await finish(runtime, container)
            assert exited.code == (137 if running_kernel() >= (6, 15) else None)
            await runtime.delete(container)

    node.run(body)


def test_a_shim_killed_under_a_living_agent_is_replaced_and_containers_go_on(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("while :; do echo x; sleep 0.01; done"))
        terminal = await start(runtime, node, shell("read x; exit 5", tty=True, open_stdin=True))
        shim = node.shim_pid()
        assert shim
        os.kill(shim, signal.SIGKILL)
        wait_gone(shim)
        while node.shim_pid() is None:
            await trio.sleep(0.01)
        assert (await output(runtime, node, spec("echo", "new")))[1] == "new\n"
        attachment = await runtime.attach(terminal, True, True, True)
        await attachment.write(b"\n")
        exited, _ = await finish(runtime, terminal)
        assert exited.code == (5 if running_kernel() >= (6, 15) else None)
        await attachment.aclose()
        assert set(runtime.running()) == {container}
        await runtime.kill(container, 9)
        exited, _ = await finish(runtime, container)
        assert exited.code == (137 if running_kernel() >= (6, 15) else None)

    node.run(body)


def test_an_exit_that_only_the_dead_shim_saw_is_on_record(node: Box) -> None:
    process, containers = agent(node, 1)
    process.kill()
    process.wait()
    go_on(node)
    (container,) = containers
    record = Path(node.paths.container_run(container)) / "process.exit"

    async def appears() -> None:
        while not record.exists():
            await trio.sleep(0.01)

    trio.run(appears)
    shim = node.shim_pid()
    assert shim
    os.kill(shim, signal.SIGKILL)
    wait_gone(shim)

    async def body(runtime: Runtime) -> None:
        assert (await ends(runtime, 1))[container].code == 0

    node.run(body)


def test_a_runtime_that_closes_leaves_all_running_for_the_next_one(node: Box) -> None:
    async def first(runtime: Runtime) -> str:
        return await start(runtime, node, spec("cat", open_stdin=True, stdin_once=True))

    container = node.run(first)

    async def second(runtime: Runtime) -> None:
        assert container in runtime.running()
        attachment = await runtime.attach(container, True, True, True)
        await attachment.write(b"still here")
        await attachment.close_stdin()
        exited, text = await finish(runtime, container)
        assert (exited.code, text) == (0, "still here")

    node.run(second)


def test_bytes_that_arrived_just_before_a_death_are_indexed_at_the_next_opening(
    node: Box,
) -> None:
    async def first(runtime: Runtime) -> str:
        container = await start(runtime, node, shell("echo told"))
        await finish(runtime, container)
        return container

    container = node.run(first)
    with open(f"{node.paths.container(container)}/stdout.log", "ab") as file:
        file.write(b"untold\n")

    async def second(runtime: Runtime) -> None:
        assert await said(runtime, container) == b"told\nuntold\n"

    node.run(second)
