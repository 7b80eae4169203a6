"""What goes in and out: attach, stdin, terminals, execs, and logs line by line."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import trio.testing

from orchestra.model.container import ExecSpec
from orchestra.model.errors import Conflict
from orchestra.runtime.runtime import EtcFiles, Runtime
from tests.runtime.box import Box, execute, finish, new_id, shell, spec, start


async def read_all(attachment) -> list[tuple[int, bytes]]:  # type: ignore[no-untyped-def]
    return [item async for item in attachment.output()]


def test_attach_before_the_start_gets_the_first_byte_and_the_last(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        script = "echo first; echo problem >&2; seq 1 20000; echo last"
        await runtime.create(container, shell(script), node.layers, {})
        attachment = await runtime.attach(container, False, True, True)
        await runtime.start(container, None, EtcFiles("x"))
        items = await read_all(attachment)
        out = b"".join(data for stream, data in items if stream == 1)
        assert out == b"first\n" + b"".join(b"%d\n" % n for n in range(1, 20001)) + b"last\n"
        assert b"".join(data for stream, data in items if stream == 2) == b"problem\n"

    node.run(body)


def test_stdin_written_before_the_start_arrives_and_its_end_ends_the_program(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        wanted = spec("cat", open_stdin=True, stdin_once=True)
        await runtime.create(container, wanted, node.layers, {})
        attachment = await runtime.attach(container, True, True, True)
        await attachment.write(b"early ")
        await runtime.start(container, None, EtcFiles("x"))
        await attachment.write(b"late")
        await attachment.close_stdin()
        assert b"".join(data for _, data in await read_all(attachment)) == b"early late"
        exited, _ = await finish(runtime, container)
        assert exited.code == 0

    node.run(body)


def test_a_client_that_does_not_read_never_stops_the_container(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        script = "head -c 20000000 /dev/zero"
        await runtime.create(container, shell(script), node.layers, {})
        slow = await runtime.attach(container, False, True, True)
        await runtime.start(container, None, EtcFiles("x"))
        exited = await runtime.exits.receive()
        assert exited.code == 0
        assert sum(len(data) for _, data in await read_all(slow)) == 20_000_000

    node.run(body)


def test_a_terminal_has_its_size_one_stream_and_job_control(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        wanted = shell(
            "tty; stty size; ls -l /dev/console; read line; echo got $line; stty size",
            tty=True,
            open_stdin=True,
            console_size=(33, 99),
        )
        await runtime.create(container, wanted, node.layers, {})
        attachment = await runtime.attach(container, True, True, True)
        with pytest.raises(Conflict):
            await runtime.resize(container, 1, 1)
        await runtime.start(container, None, EtcFiles("x"))
        items = []
        async for item in attachment.output():
            items.append(item)
            if b"/dev/console" in item[1]:  # the last that it says before it reads
                await runtime.resize(container, 20, 40)
                await attachment.write(b"hello\n")
        assert {stream for stream, _ in items} == {1}
        text = b"".join(data for _, data in items).decode()
        assert "/dev/pts/0" in text
        assert "33 99" in text
        assert "20 40" in text
        assert "got hello" in text

    node.run(body)


def test_interrupt_on_a_terminal_reaches_the_program_once_under_init(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        script = "trap 'echo int' INT; echo ready; read line; read line; echo end"
        wanted = shell(script, tty=True, open_stdin=True, init=True)
        await runtime.create(container, wanted, node.layers, {})
        attachment = await runtime.attach(container, True, True, True)
        await runtime.start(container, None, EtcFiles("x"))
        seen = b""
        async for _, data in attachment.output():
            if b"ready" in data and b"ready" not in seen:
                await attachment.write(b"\x03")
            if b"int" in data:
                await attachment.write(b"\n\n\n")
            seen += data
        assert seen.count(b"int\r\n") == 1

    node.run(body)


def test_stdout_can_be_opened_again_also_after_a_change_of_user(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        for user in ("", "web"):
            container = await start(
                runtime, node, shell("echo a >/dev/stdout; echo b >/dev/stderr", user=user)
            )
            exited, said = await finish(runtime, container)
            assert (exited.code, sorted(said.split())) == (0, ["a", "b"])

    node.run(body)


def test_an_exec_has_the_containers_world_and_its_own_streams(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(
            runtime, node, spec("sleep", "100", env=("A=1",), working_dir="/tmp/made/here")
        )
        script = "pwd; echo $A $B; hostname; ps | grep -c sleep; cat /proc/self/cgroup; exit 3"
        code, said = await execute(runtime, container, "sh", "-c", script, env=("B=2",))
        assert code == 3
        assert said.startswith("/tmp/made/here\n1 2\nboxy\n")
        assert f"{node.parent}/{container}" not in said  # its own cgroup namespace
        code, said = await execute(runtime, container, "id", "-u", user="web", working_dir="/")
        assert (code, said) == (0, "1000\n")
        process = await runtime.exec(container, new_id(), ExecSpec(("cat",), stdin=True))

        async def feed() -> None:
            await process.attachment.write(b"x" * 300_000)
            await process.attachment.close_stdin()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            assert sum(len(d) for _, d in await read_all(process.attachment)) == 300_000
        assert await process.wait() == 0
        pids = runtime.pids(container)
        assert len(pids) == 1

    node.run(body)


def test_an_exec_can_have_a_terminal(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100"))
        wanted = ExecSpec(
            ("sh", "-c", "tty; stty size; echo $TERM; read x; echo $x"),
            tty=True,
            stdin=True,
            console_size=(10, 20),
        )
        process = await runtime.exec(container, new_id(), wanted)
        await process.attachment.write(b"hey\n")
        text = b"".join([d for _, d in await read_all(process.attachment)]).decode()
        assert await process.wait() == 0
        assert "/dev/pts/0" in text
        assert "10 20" in text
        assert "xterm" in text
        assert text.rstrip().endswith("hey")

    node.run(body)


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_exec(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100"))
        began = time.monotonic()
        code, said = await execute(runtime, container, "sh", "-c", "echo x; sleep 50 & exit 4")
        assert (code, said) == (4, "x\n")
        assert time.monotonic() - began < 20
        process = await runtime.exec(container, new_id(), ExecSpec(("yes",)))
        await process.attachment.aclose()
        await runtime.kill(container, 9)
        assert await process.wait() == 137

    node.run(body)


def test_logs_are_lines_in_order_with_tail_since_and_until(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        lines = "for i in 1 2 3; do echo out$i; sleep 0.05; echo err$i >&2; sleep 0.05; done"
        script = f"{lines}; printf end"
        container = await start(runtime, node, shell(script))
        await finish(runtime, container)

        async def get(**options):  # type: ignore[no-untyped-def]
            return [r async for r in runtime.logs(container, **options)]

        everything = await get()
        assert [r.data for r in everything] == [
            b"out1\n",
            b"err1\n",
            b"out2\n",
            b"err2\n",
            b"out3\n",
            b"err3\n",
            b"end",
        ]
        assert [r.stream for r in everything] == [1, 2, 1, 2, 1, 2, 1]
        times = [r.time_ns for r in everything]
        assert times == sorted(times)
        assert [r.data for r in await get(tail=2)] == [b"err3\n", b"end"]
        assert [r.data for r in await get(tail=1, stderr=True, stdout=False)] == [b"err3\n"]
        assert await get(tail=0) == []
        assert len(await get(tail=100)) == 7
        middle = times[3] / 1e9
        assert [r.data for r in await get(since=middle)][-3:] == [b"out3\n", b"err3\n", b"end"]
        assert [r.data for r in await get(until=middle - 0.02)][:2] == [b"out1\n", b"err1\n"]
        assert [r.data for r in await get(follow=True)] == [r.data for r in everything]

    node.run(body)


def test_following_logs_ends_with_the_container_and_misses_nothing(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        script = "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done; sleep 0.2; printf rest"
        container = await start(runtime, node, shell(script))
        seen = [r.data async for r in runtime.logs(container, follow=True)]
        assert b"".join(seen) == b"".join(b"%d\n" % n for n in range(500)) + b"rest"

    node.run(body)


def test_very_long_lines_come_in_pieces_and_whole(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("head -c 100000 /dev/zero | tr '\\0' y; echo"))
        await finish(runtime, container)
        records = [r async for r in runtime.logs(container)]
        assert b"".join(r.data for r in records) == b"y" * 100_000 + b"\n"
        assert max(len(r.data) for r in records) <= 16 << 10

    node.run(body)


def test_a_follower_that_leaves_early_closes_the_log(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("echo x; sleep 100"))
        attachment = await runtime.attach(container, False, True, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, attachment)
            await trio.testing.wait_all_tasks_blocked()
            await attachment.aclose()
        await runtime.kill(container, 9)
        await finish(runtime, container)
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        opened = [os.readlink(link) for link in links if os.path.islink(link)]
        assert not [path for path in opened if node.paths.container(container) in path]

    node.run(body)


def test_a_full_disk_makes_output_wait_and_loses_nothing(node: Box) -> None:
    state = Path(node.paths.state)
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "full", state], check=True)
    count = 100_000
    told: list[str] = []

    async def body(runtime: Runtime) -> None:
        script = f"i=0; while [ $i -lt {count} ]; do echo $i is a line of it; i=$((i+1)); done"
        container = await start(runtime, node, shell(script))
        while os.statvfs(state).f_bavail:
            await trio.sleep(0.02)
        await trio.sleep(0.2)
        assert container in runtime.running()  # the log and the pipe are full: it waits
        told.append(container)

    async def rest(runtime: Runtime) -> None:
        (container,) = told
        remount = ["mount", "-o", "remount,size=9m", state]
        await trio.to_thread.run_sync(lambda: subprocess.run(remount, check=True))
        exited, said = await finish(runtime, container)
        assert exited.code == 0
        assert said == "".join(f"{n} is a line of it\n" for n in range(count))

    try:
        node.run(body, within=60)
        node.run(rest, within=60)  # another one, as after a restart: a full disk keeps nobody here
    finally:
        node.end_processes()
        subprocess.run(["umount", "--lazy", state], check=True)
