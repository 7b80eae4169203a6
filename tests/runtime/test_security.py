"""What images and clients tried on other engines, tried on ours (see the decisions on security)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra.model.container import ExecSpec, FileContent
from orchestra.model.errors import StartFailed
from orchestra.model.service import Mount, MountType
from orchestra.runtime.rootfs import MASKED, MASKED_IN_SYS
from orchestra.runtime.runtime import EtcFiles, Runtime
from tests.runtime.box import Box, execute, new_id, output, shell, spec, start

ROOT = Path(__file__).parents[2]


async def refused(runtime: Runtime, node: Box, wanted, **more) -> str:  # type: ignore[no-untyped-def]
    container = new_id()
    await runtime.create(container, wanted, node.layers, more.get("volumes", {}))
    with pytest.raises(StartFailed) as caught:
        await runtime.start(container, None, EtcFiles("x"))
    await runtime.delete(container)
    return str(caught.value)


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_an_image_whose_dev_proc_or_sys_is_a_link_is_refused(node: Box, name: str) -> None:
    victim = node.base / "victim"
    victim.mkdir()
    (node.overlay("evil") / name).symlink_to(f"../../../../../../..{victim}")

    async def body(runtime: Runtime) -> None:
        assert f"the image's /{name} is not a directory" in await refused(
            runtime, node, spec("true")
        )
        assert not list(victim.iterdir())

    node.run(body)


@pytest.mark.parametrize("number", range(3, 20))
def test_a_working_directory_through_our_fds_is_refused(node: Box, number: int) -> None:
    async def body(runtime: Runtime) -> None:
        path = f"/proc/self/fd/{number}"
        assert "working directory" in await refused(runtime, node, spec("ls", working_dir=path))
        running = await start(runtime, node, spec("sleep", "100"))
        with pytest.raises(StartFailed, match="working directory"):
            await execute(runtime, running, "ls", working_dir=f"{path}/../../..")

    if number in (3, 7, 12, 19):  # four starts tell as much as seventeen
        node.run(body)


def test_masked_paths_are_masked_whatever_the_image_calls_null(node: Box) -> None:
    evil = node.overlay("evil")
    (evil / "dev").mkdir()
    (evil / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    masked = [f"/proc/{name}" for name in MASKED] + [f"/sys/{name}" for name in MASKED_IN_SYS]
    masked = [path for path in masked if os.path.exists(path)]
    files = [path for path in masked if os.path.isfile(path)]
    written = [p for p in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
                           "/proc/irq/default_smp_affinity", "/proc/sysrq-trigger")
               if os.path.exists(p)]  # fmt: skip
    assert len(files) >= 2 and len(written) >= 2

    async def body(runtime: Runtime) -> None:
        script = f"""
            for f in {" ".join(files)}; do echo bytes $(wc -c <$f); done
            for d in {" ".join(set(masked) - set(files))}; do echo names $(ls -A $d | wc -l); done
            for w in {" ".join(written)}; do echo x >$w; done
            ls -l /dev/null
        """
        _, said = await output(runtime, node, shell(script))
        assert said.count("bytes 0\n") == said.count("bytes") == len(files)
        assert said.count("names 0\n") == said.count("names") == len(masked) - len(files)
        assert said.count("Read-only file system") == len(written)
        assert "crw-rw-rw-" in said

    before = Path("/proc/sys/kernel/core_pattern").read_text()
    node.run(body)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_a_script_that_runs_proc_self_exe_cannot_write_to_the_hosts_interpreter(
    node: Box,
) -> None:
    binary = Path(sys.executable).resolve()
    before = hashlib.sha256(binary.read_bytes()).hexdigest()
    evil = node.overlay("evil")
    (evil / "run.sh").write_text("#!/proc/self/exe\n")
    (evil / "run.sh").chmod(0o755)

    async def body(runtime: Runtime) -> None:
        # The interpreter may fail to load there or run; it must not be opened for writing.
        container = new_id()
        await runtime.create(container, spec("/run.sh"), node.layers, {})
        try:
            pid = await runtime.start(container, None, EtcFiles("x"))
        except StartFailed:
            pid = 0
        if pid:
            await runtime.exits.receive()

    node.run(body)
    shim = node.shim_pid()
    with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
        os.open(f"/proc/{shim}/exe", os.O_WRONLY)
    assert hashlib.sha256(binary.read_bytes()).hexdigest() == before


def test_mount_targets_that_are_links_stay_inside(node: Box) -> None:
    host = node.base / "host"
    host.mkdir()
    evil = node.overlay("evil")
    (evil / "out").symlink_to(f"../../../../..{host}")

    async def body(runtime: Runtime) -> None:
        wanted = shell(
            "ls /out; cat /out/x /out/file",
            mounts=(Mount(MountType.TMPFS, f"{host}"),),
            files=(FileContent("/out/file", b"in"),),
        )
        _, said = await output(runtime, node, wanted)
        assert "in" in said
        assert not list(host.iterdir())

    node.run(body)


def test_a_volume_is_filled_only_from_inside_the_image(node: Box) -> None:
    volume = node.base / "volume"
    volume.mkdir()
    (node.overlay("evil") / "a").symlink_to("/etc")

    async def body(runtime: Runtime) -> None:
        wanted = shell("ls /a", mounts=(Mount(MountType.VOLUME, "/a", "v"),))
        await output(runtime, node, wanted, volumes={"/a": str(volume)})
        # The image's own /etc, and the places of the files that every container gets there.
        places = {"hostname", "hosts", "resolv.conf"}
        assert {p.name for p in volume.iterdir()} - places == {"group", "passwd"}
        assert "odd" in (volume / "passwd").read_text()

    node.run(body)


# renameat2(RENAME_EXCHANGE) for ever: a start meets a directory or the link, never nothing.
_FLIP = """
import ctypes, os, sys
call, names = ctypes.CDLL(None).renameat2, [os.fsencode(name) for name in sys.argv[1:]]
print("flipping", flush=True)
while True:
    if call(-100, names[0], -100, names[1], 2):
        sys.exit("cannot flip")
"""


def test_a_link_that_flips_during_starts_never_leads_a_mount_out(node: Box) -> None:
    shared, host = node.base / "shared", node.base / "host"
    (shared / "dir").mkdir(parents=True)
    host.mkdir()
    (shared / "link").symlink_to(f"../../../../../../..{host}")
    (node.overlay("inside") / str(host)[1:]).mkdir(parents=True)  # where it leads to inside

    async def body(runtime: Runtime) -> None:
        mounts = (
            Mount(MountType.BIND, "/v", str(shared)),
            Mount(MountType.TMPFS, "/v/dir/deep"),
        )
        wanted = shell(f"grep -o ' {host}/deep ' /proc/mounts || echo dir", mounts=mounts)
        met = set()
        for number in range(200):
            container = new_id()
            await runtime.create(container, wanted, node.layers, {})
            try:
                await runtime.start(container, None, EtcFiles("x"))
            except StartFailed:
                met.add("refused")  # it changed in between: fine, led out is not
            else:
                await runtime.exits.receive()
                met.update([r.data.decode().strip() async for r in runtime.logs(container)])
            await runtime.delete(container)
            assert not list(host.iterdir())
            if {"dir", f"{host}/deep"} <= met and number > 20:
                break
        else:
            pytest.fail(f"the starts did not meet both the link and the directory: {met}")

    flip = [sys.executable, "-c", _FLIP, f"{shared}/dir", f"{shared}/link"]
    with subprocess.Popen(flip, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            node.run(body, within=60)
            assert process.poll() is None
        finally:
            process.kill()
    assert not list(host.iterdir())


def test_a_passwd_file_that_is_a_fifo_does_not_stop_us(node: Box) -> None:
    evil = node.overlay("evil")
    (evil / "etc").mkdir()
    os.mkfifo(evil / "etc/passwd")

    async def body(runtime: Runtime) -> None:
        assert (await output(runtime, node, spec("echo", "x")))[1] == "x\n"
        assert "no matching entries" in await refused(runtime, node, spec("echo", user="web"))

    node.run(body)


def test_devices_of_the_host_cannot_be_opened(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        script = "mknod /d b 7 0 && echo made; cat /d; mknod /k c 1 11; cat /k; cat /dev/null"
        _, said = await output(runtime, node, shell(script))
        assert "made" in said
        assert said.count("Operation not permitted") == 2

    node.run(body)


def test_our_processes_cannot_be_looked_into_from_a_container(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        script = (
            "while :; do for p in /proc/[0-9]*; do "
            "case $(readlink $p/exe 2>/dev/null) in *python*) echo SEEN $p;; esac; "
            "done; done"
        )
        container = await start(runtime, node, shell(script))
        for _ in range(20):
            await execute(runtime, container, "true")
        await runtime.kill(container, 9)
        await runtime.exits.receive()
        said = b"".join([r.data async for r in runtime.logs(container)])
        assert b"SEEN" not in said

    node.run(body)


def test_no_module_of_a_container_is_imported_on_the_way_into_it(node: Box) -> None:
    """Python looks for late imports at its own paths: inside, these are the container's files."""
    evil = node.overlay("evil")
    mark = "import os; os.close(os.open('/ran', os.O_CREAT))\n"
    for directory in {path for path in sys.path if path.startswith("/")} | {str(ROOT)}:
        below = evil / directory[1:]
        (below / "encodings").mkdir(parents=True, exist_ok=True)
        (below / "encodings/idna.py").write_text(mark)
        for name in ("traceback", "linecache", "pwd", "grp", "stringprep", "codecs"):
            (below / f"{name}.py").write_text(mark)

    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100"))
        for wanted in (spec("nosuch"), spec("x", user="\udcff"), spec("x", working_dir="/bin/sh")):
            await refused(runtime, node, wanted)
            exec_ = ExecSpec(wanted.args, user=wanted.user, working_dir=wanted.working_dir)
            with pytest.raises(StartFailed):
                await runtime.exec(container, new_id(), exec_)
        code, said = await execute(runtime, container, "ls", "/")
        assert (code, "ran" in said.split()) == (0, False)

    node.run(body)


def test_a_container_has_no_key_of_the_hosts_session(node: Box) -> None:
    """Each process comes with a session keyring of its own, which is new and empty."""

    def empty_sessions() -> set[str]:
        lines = Path("/proc/keys").read_text().splitlines()
        return {line.split()[0] for line in lines if line.endswith("_ses: empty")}

    async def body(runtime: Runtime) -> None:
        before = empty_sessions()
        container = await start(runtime, node, spec("sleep", "100"))
        started = empty_sessions()
        await runtime.exec(container, new_id(), ExecSpec(("sleep", "100")))
        assert started - before
        assert empty_sessions() - started

    node.run(body)


def test_state_directories_are_closed_to_others(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100"))
        for path in (
            f"{node.paths.state}/containers",
            node.paths.container(container),
            node.paths.container_run(container),
        ):
            assert os.stat(path).st_mode & 0o777 == 0o700
        assert os.stat(node.paths.shim_socket).st_mode & 0o777 == 0o600

    node.run(body)
