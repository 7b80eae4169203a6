"""The agent's death, the shim's death, both: containers live, exit codes and log bytes are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestra.linux.cgroups import find_hierarchy
from orchestra.linux.seccomp import running_kernel
from orchestra.model.container import ExecSpec
from orchestra.runtime import link
from orchestra.runtime.runtime import Exited, Runtime
from tests.runtime.box import Box, execute, finish, new_id, output, shell, spec, start, wait_gone

ROOT = Path(__file__).parents[2]


CODES = running_kernel() >= (6, 15)  # of processes that were reaped by a stranger


def agent(
    node: Box, count: int, tail: str = "", tty: bool = False
) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Start an agent-like process; returns it and its containers (id -> number)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.agent_process", str(node.base), node.layers[-1],
         str(count), tail, "tty" if tty else ""],
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


def kill(*pids: int | None) -> None:
    for pid in pids:
        assert pid
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        assert pid
        wait_gone(pid)


def kill_agent(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def written(node: Box, count: int) -> None:
    """Until every container has written its last byte, to whoever holds the other end."""
    deadline = time.monotonic() + 60
    while len(list((node.base / "go").glob("done-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_runs(node: Box) -> None:
    groups = [Path(f"{m}/{node.parent}") for m in find_hierarchy().mounts.values()]
    deadline = time.monotonic() + 60
    while any(
        file.read_text()
        for group in groups
        for file in group.rglob("cgroup.procs")
        if file.parent.name != "shim"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    kill_agent(process)
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
    kill(shim, process.pid)
    process.wait()
    go_on(node)
    written(node, 3)  # while nobody reads

    async def body(runtime: Runtime) -> None:
        assert set(runtime.running()) == set(containers)
        assert node.shim_pid() not in (None, shim)
        for container, number in containers.items():
            got, wanted = b"", expected(number)
            async for record in runtime.logs(container, follow=True):
                got += record.data
                if len(got) >= len(wanted):
                    break
            assert got == wanted
            assert await execute(runtime, container, "echo", "in") == (0, "in\n")
            await runtime.kill(container, signal.SIGKILL)
            exited, _ = await finish(runtime, container)
            # A stranger reaps it. Before 6.15 its zombie tells, if it is met.
            assert exited.code == 137 or (exited.code is None and not CODES)
            await runtime.delete(container)

    node.run(body)


def test_containers_that_end_while_agent_and_shim_are_dead_keep_their_bytes_and_codes(
    node: Box,
) -> None:
    process, containers = agent(node, 4)
    kill(node.shim_pid(), process.pid)
    process.wait()
    go_on(node)
    written(node, 4)
    nothing_runs(node)

    async def body(runtime: Runtime) -> None:
        for container, exited in (await ends(runtime, 4)).items():
            number = containers[container]
            assert exited.code == (number if CODES else None)
            assert await said(runtime, container) == expected(number)
        assert runtime.running() == {}

    node.run(body)


def test_a_terminal_outlives_agent_and_shim_with_all_that_was_written_to_it(node: Box) -> None:
    process, containers = agent(node, 1, "read x; echo got $x; exit 6", tty=True)
    (container,) = containers
    kill(node.shim_pid(), process.pid)
    process.wait()
    go_on(node)

    async def body(runtime: Runtime) -> None:
        assert set(runtime.running()) == {container}
        attachment = await runtime.attach(container, True, True, True)
        await attachment.write(b"hello\n")
        await attachment.aclose()
        exited, text = await finish(runtime, container)
        assert exited.code == 6 or (exited.code is None and not CODES)
        lines = text.replace("\r\n", "\n").replace("hello\n", "", 1)
        assert lines == expected(0).decode() + "got hello\n"

    node.run(body)


def test_with_the_keeper_dead_too_what_lives_is_found_and_the_rest_told(
    node: Box,
) -> None:
    process, containers = agent(node, 2, "[ $CODE = 1 ] || sleep 1000; exit $CODE")
    kill(node.shim_pid(), process.pid, node.keeper_pid())
    process.wait()
    go_on(node)
    written(node, 2)
    lives, ended = sorted(containers, key=lambda each: containers[each])
    group = Path(f"{find_hierarchy().mounts['pids']}/{node.parent}/{ended}/cgroup.procs")
    while group.read_text():
        time.sleep(0.01)

    async def body(runtime: Runtime) -> None:
        exited = (await ends(runtime, 1))[ended]
        assert exited.code in (None, 1)  # 1: whose zombie was still there to ask
        assert set(runtime.running()) == {lives}
        await runtime.kill(lives, signal.SIGKILL)
        await finish(runtime, lives)
        assert await said(runtime, lives) == expected(0)

    node.run(body)


def test_a_keeper_that_is_killed_is_replaced_and_given_everything(node: Box) -> None:
    async def first(runtime: Runtime) -> str:
        terminal = await start(
            runtime, node, shell("read x; echo $x; exit 5", tty=True, open_stdin=True)
        )
        shim, keeper = node.shim_pid(), node.keeper_pid()
        kill(keeper)
        assert (await output(runtime, node, spec("echo", "new")))[1] == "new\n"
        assert node.keeper_pid() != keeper
        assert node.shim_pid() == shim
        return terminal

    terminal = node.run(first)
    kill(node.shim_pid())

    async def second(runtime: Runtime) -> None:
        attachment = await runtime.attach(terminal, True, True, True)
        await attachment.write(b"kept\n")
        await attachment.aclose()
        _, text = await finish(runtime, terminal)
        assert text == "kept\r\nkept\r\n"

    node.run(second)


def test_a_keeper_that_hangs_is_replaced(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        shim, keeper = node.shim_pid(), node.keeper_pid()
        os.kill(keeper, signal.SIGSTOP)
        while node.keeper_pid() == keeper:  # what is sent to it has filled its socket
            assert (await output(runtime, node, spec("true")))[0] == 0
        assert node.shim_pid() == shim

    node.run(body, within=90)


def test_a_shim_that_hangs_is_replaced_by_the_next_agent(
    node: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(runtime: Runtime) -> str:
        return await start(runtime, node, shell("read x; exit 4", open_stdin=True))

    container = node.run(first)
    shim = node.shim_pid()
    assert shim
    os.kill(shim, signal.SIGSTOP)
    monkeypatch.setattr(link, "_PATIENCE", 1.0)

    async def second(runtime: Runtime) -> None:
        attachment = await runtime.attach(container, True, True, True)
        await attachment.write(b"\n")
        await attachment.aclose()
        exited, _ = await finish(runtime, container)
        assert exited.code == 4 or (exited.code is None and not CODES)
        assert node.shim_pid() != shim
        wait_gone(shim)

    node.run(second)


def test_execs_and_stdin_outlive_the_shim_under_a_living_agent(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        cat = await start(runtime, node, spec("cat", open_stdin=True, stdin_once=True))
        attachment = await runtime.attach(cat, True, True, True)
        await attachment.write(b"before ")
        process = await runtime.exec(cat, new_id(), ExecSpec(("cat",), stdin=True))
        kill(node.shim_pid())
        await process.attachment.write(b"through")
        await process.attachment.close_stdin()
        assert [data async for _, data in process.attachment.output()] == [b"through"]
        assert await process.wait() in ((0,) if CODES else (0, 137))
        await attachment.write(b"after")
        await attachment.close_stdin()
        exited, text = await finish(runtime, cat)
        assert (exited.code, text) == (0 if CODES else exited.code, "before after")

    node.run(body)


def test_starts_wait_for_the_next_shim(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        for _ in range(5):
            kill(node.shim_pid())
            code, text = await output(runtime, node, shell("echo again; exit 3"))
            assert (code, text) == (3, "again\n")

    node.run(body)


def test_a_shim_killed_under_a_living_agent_is_replaced_and_containers_go_on(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("while :; do echo x; sleep 0.01; done"))
        terminal = await start(runtime, node, shell("read x; exit 5", tty=True, open_stdin=True))
        kill(node.shim_pid())
        assert (await output(runtime, node, spec("echo", "new")))[1] == "new\n"
        attachment = await runtime.attach(terminal, True, True, True)
        await attachment.write(b"\n")
        exited, _ = await finish(runtime, terminal)
        assert exited.code == 5 or (exited.code is None and not CODES)
        await attachment.aclose()
        assert set(runtime.running()) == {container}
        await runtime.kill(container, 9)
        exited, _ = await finish(runtime, container)
        assert exited.code == 137 or (exited.code is None and not CODES)

    node.run(body)


def test_an_exit_that_only_the_dead_shim_saw_is_on_record(node: Box) -> None:
    process, containers = agent(node, 1, "exit 9")
    kill_agent(process)
    go_on(node)
    written(node, 1)
    nothing_runs(node)
    kill(node.shim_pid())

    async def body(runtime: Runtime) -> None:
        (container,) = containers
        assert (await ends(runtime, 1))[container].code == 9
        assert await said(runtime, container) == expected(0)

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
