"""A scratch node for runtime tests: a busybox layer, unique paths, a cleanup that checks itself."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from orchestra.linux.cgroups import find_hierarchy, remove_tree
from orchestra.model.container import ContainerSpec, ExecSpec
from orchestra.model.paths import NodePaths
from orchestra.runtime.runtime import EtcFiles, Exited, Runtime, open_runtime

PASSWD = """root:x:0:0:root:/root:/bin/sh
web:x:1000:1000::/home/web:/bin/sh
odd:x:0x:0::/:/bin/sh
"""
GROUP = """root:x:0:
web:x:1000:
extra:x:2000:web
tape:x:26:
"""


def make_layer(path: Path) -> None:
    """The smallest image: busybox and its names."""
    for name in ("bin", "etc", "tmp", "data/deep"):
        (path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin/busybox")
    listed = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    (path / "data/file").write_text("from the image\n")
    os.link(path / "data/file", path / "data/deep/again")
    os.chown(path / "data/file", 1000, 1000)
    (path / "data/link").symlink_to("/etc/passwd")
    (path / "tmp").chmod(0o1777)


class Box:
    """Paths of one scratch node, its layers, and shorthands; used inside `trio.run`."""

    def __init__(self, base: Path, layer: Path) -> None:
        self.base = base
        self.paths = NodePaths(str(base / "state"), str(base / "run"))
        self.parent = f"orchestra-test-{base.name}"
        self.layers = [str(layer)]

    def open(self) -> contextlib.AbstractAsyncContextManager[Runtime]:
        return open_runtime(self.paths, cgroup_parent=self.parent)

    def run(self, body: Callable[[Runtime], Awaitable[Any]], within: float = 30) -> Any:
        """Run `body` with an open runtime."""

        async def main() -> Any:
            with trio.fail_after(within):
                async with self.open() as runtime:
                    return await body(runtime)

        return trio.run(main)

    def overlay(self, name: str) -> Path:
        """A further layer on top, empty."""
        path = self.base / name
        path.mkdir()
        self.layers.insert(0, str(path))
        return path

    def shim_pid(self) -> int | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            try:
                link.connect(self.paths.shim_socket)
            except OSError:
                return None
            return int(json.loads(link.recv(4096))["pid"])

    def keeper_pid(self) -> int:
        """By what ps shows, which is its only name."""
        wanted = f"orchestra.runtime.keeper {self.paths.keeper_socket}".encode()
        (found,) = (
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and _command(name).startswith(wanted)
        )
        return found

    def end_processes(self) -> None:
        """Kill the shim, the keeper and whatever runs in a cgroup of this node."""
        hierarchy = find_hierarchy()
        if pid := self.shim_pid():
            os.kill(pid, 9)
            wait_gone(pid)
        groups = {Path(f"{mount}/{self.parent}") for mount in hierarchy.mounts.values()}
        for _ in range(500):
            pids = {
                int(pid)
                for group in groups
                for file in group.rglob("cgroup.procs")
                for pid in file.read_text().split()
            }
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
                wait_gone(pid)

    def close(self) -> None:
        """End everything of this node; a mount or process that stays is an error."""
        self.end_processes()
        remove_tree(find_hierarchy(), self.parent)
        for extra in ("systemd", "unified"):
            for path, _, _ in os.walk(f"/sys/fs/cgroup/{extra}/{self.parent}", topdown=False):
                os.rmdir(path)
        assert str(self.base) not in Path("/proc/self/mountinfo").read_text()
        shutil.rmtree(self.base)


def _command(pid: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def wait_gone(pid: int) -> None:
    """Until the process is dead (a zombie's pidfd is readable too)."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, 1)
        poll.poll(5000)
        os.close(pidfd)


@contextlib.contextmanager
def box(layer: Path) -> Iterator[Box]:
    base = Path(f"/tmp/orchestra-runtime-{secrets.token_hex(4)}")
    base.mkdir()
    made = Box(base, layer)
    try:
        yield made
    finally:
        made.close()


def spec(*args: str, **values: Any) -> ContainerSpec:
    return ContainerSpec(
        image="box",
        image_id="sha256:0",
        args=args,
        env=("PATH=/bin:/usr/bin", *values.pop("env", ())),
        **values,
    )


def shell(script: str, **values: Any) -> ContainerSpec:
    return spec("sh", "-c", script, **values)


def new_id() -> str:
    return secrets.token_hex(32)


async def start(
    runtime: Runtime,
    box_: Box,
    wanted: ContainerSpec,
    volumes: Mapping[str, str] | None = None,
    netns: int | None = None,
) -> str:
    container = new_id()
    await runtime.create(container, wanted, box_.layers, volumes or {})
    await runtime.start(container, netns, EtcFiles("boxy", "127.0.0.1 localhost\n", ""))
    return container


async def finish(runtime: Runtime, container: str) -> tuple[Exited, str]:
    """Its end and all that it said."""
    async for exited in runtime.exits:
        if exited.container == container:
            break
    said = [record.data async for record in runtime.logs(container)]
    return exited, b"".join(said).decode()


async def output(
    runtime: Runtime, box_: Box, wanted: ContainerSpec, **more: Any
) -> tuple[int | None, str]:
    """Run to the end, delete; (exit code, output)."""
    container = await start(runtime, box_, wanted, **more)
    exited, said = await finish(runtime, container)
    await runtime.delete(container)
    return exited.code, said


async def execute(runtime: Runtime, container: str, *args: str, **values: Any) -> tuple[int, str]:
    process = await runtime.exec(container, new_id(), ExecSpec(args, **values))
    said = b"".join([data async for _, data in process.attachment.output()])
    return await process.wait(), said.decode()
