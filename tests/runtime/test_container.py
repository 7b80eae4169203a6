"""What a container is: its namespaces, root, identity, limits and end, looked at from inside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from orchestra.linux.cgroups import find_hierarchy
from orchestra.model.container import ExecSpec, FileContent, Limits
from orchestra.model.errors import Conflict, Invalid, NotFound, StartFailed
from orchestra.model.service import Mount, MountType, Ulimit
from orchestra.runtime.runtime import EtcFiles, Runtime
from tests.runtime.box import Box, execute, finish, new_id, output, shell, spec, start


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_a_container_has_its_own_processes_name_and_root(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        script = "echo $$; hostname; cat /etc/hostname /etc/hosts; ls /; echo $HOME $HOSTNAME"
        code, said = await output(runtime, node, shell(script))
        assert code == 0
        lines = said.split()
        assert lines[:3] == ["1", "boxy", "boxy"]
        assert "localhost" in lines
        assert {"proc", "dev", "sys", "bin"} <= set(lines)
        assert lines[-2:] == ["/root", "boxy"]

    node.run(body)


def test_a_running_process_has_dockers_capabilities_and_a_seccomp_filter(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100"))
        seen = status(Path(f"/proc/{runtime.running()[container]}/status").read_text())
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert seen[name] == "00000000a80425fb"
        assert seen["CapInh"] == seen["CapAmb"] == "0" * 16
        assert seen["Seccomp"] == "2"
        assert seen["NoNewPrivs"] == "0"
        code, said = await execute(runtime, container, "cat", "/proc/self/status")
        inside = status(said)
        assert (code, inside["CapEff"], inside["Seccomp"]) == (0, "00000000a80425fb", "2")
        assert inside["CapInh"] == "0" * 16

    node.run(body)


def test_capabilities_are_dropped_and_added_by_name(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        wanted = spec(
            "cat", "/proc/self/status", cap_drop=("ALL",), cap_add=("CAP_NET_ADMIN", "chown")
        )
        _, said = await output(runtime, node, wanted)
        assert status(said)["CapBnd"] == f"{1 << 12 | 1:016x}"
        wanted = spec("cat", "/proc/self/status", no_new_privileges=True, user="web")
        _, said = await output(runtime, node, wanted)
        assert status(said)["NoNewPrivs"] == "1"
        assert status(said)["CapEff"] == "0" * 16
        with pytest.raises(Invalid, match="BOGUS"):
            await runtime.create(new_id(), spec("x", cap_add=("BOGUS",)), node.layers, {})

    node.run(body)


def test_fds_in_a_container_are_0_1_and_2_only(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, spec("sleep", "100", open_stdin=True))
        pid = runtime.running()[container]
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        process = await runtime.exec(container, new_id(), ExecSpec(("sleep", "100")))
        assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2"]

    node.run(body)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/nosuch",), 127, "no such file or directory"),
        (("/etc/passwd",), 126, 'exec: "/etc/passwd": permission denied'),
        (("/etc",), 126, "is a directory"),
    ],
)
def test_a_program_that_cannot_run_is_told_with_the_shells_code(
    node: Box, args: tuple[str, ...], code: int, text: str
) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        await runtime.create(container, spec(*args), node.layers, {})
        with pytest.raises(StartFailed) as caught:
            await runtime.start(container, None, EtcFiles("x"))
        assert caught.value.exit_code == code
        assert text in str(caught.value)
        assert container not in runtime.running()
        await runtime.delete(container)
        running = await start(runtime, node, spec("sleep", "100"))
        with pytest.raises(StartFailed) as caught:
            await execute(runtime, running, *args)
        assert caught.value.exit_code == code

    node.run(body)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 42", 42), ("kill -9 $$; sleep 9", 0), ("sh -c 'kill -9 $$'; exit $?", 137)],
)
def test_the_exit_code_is_the_programs(node: Box, script: str, code: int) -> None:
    async def body(runtime: Runtime) -> None:
        if code == 0:  # PID 1 cannot kill itself: only we can
            container = await start(runtime, node, shell("sleep 100"))
            await runtime.kill(container, signal.SIGKILL)
            exited, _ = await finish(runtime, container)
            assert exited.code == 137
        else:
            assert (await output(runtime, node, shell(script)))[0] == code

    node.run(body)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 0"),
        ("web", "1000 1000 1000 2000"),
        ("1000", "1000 1000 1000 2000"),
        ("web:tape", "1000 26 26"),
        ("4321:5", "4321 5 5"),
        ("4321", "4321 0 0"),
    ],
)
def test_users_are_resolved_by_the_images_files(node: Box, user: str, expected: str) -> None:
    async def body(runtime: Runtime) -> None:
        script = "echo $(id -u) $(id -g) $(id -G)"
        code, said = await output(runtime, node, shell(script, user=user))
        assert (code, said.strip()) == (0, expected)

    node.run(body)


@pytest.mark.parametrize("user", ["1000:0x", "-1", "nobody", "0x10", "odd", "web:", ":web", "1 "])
def test_a_user_that_is_none_never_becomes_root(node: Box, user: str) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        await runtime.create(container, shell("id", user=user), node.layers, {})
        with pytest.raises(StartFailed):
            await runtime.start(container, None, EtcFiles("x"))
        running = await start(runtime, node, spec("sleep", "100"))
        with pytest.raises(StartFailed):
            await execute(runtime, running, "id", user=user)

    node.run(body)


def test_memory_and_process_limits_really_limit(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        limits = Limits(memory=32 << 20, memory_swap=32 << 20, pids=20, cpus=0.5, cpu_shares=512)
        hog = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; tail /dev/zero"
        container = await start(runtime, node, shell(hog, limits=limits))
        exited, _ = await finish(runtime, container)
        assert exited.code != 0
        assert exited.oom
        many = "for i in 1 2 3 4 5 6 7 8 9 10 1 2 3 4 5 6 7 8 9 10 1 2 3; do sleep 9 & done; wait"
        container = await start(runtime, node, shell(many, limits=limits))
        _, said = await finish(runtime, container)
        assert "can't fork" in said
        container = await start(runtime, node, shell("sleep 100", limits=limits))
        hierarchy = find_hierarchy()
        if hierarchy.version == 1:
            at = f"{hierarchy.mounts['cpu']}/{node.parent}/{container}"
            assert Path(f"{at}/cpu.cfs_quota_us").read_text() == "50000\n"
            assert Path(f"{at}/cpu.shares").read_text() == "512\n"
        assert runtime.pids(container)
        assert runtime.stats(container).memory_limit == 32 << 20

    node.run(body)


def test_a_refused_ulimit_is_named_and_an_equal_one_is_fine(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        code, said = await output(
            runtime, node, shell("ulimit -n; ulimit -Hn", ulimits={"nofile": Ulimit(100, 200)})
        )
        assert (code, said.split()) == (0, ["100", "200"])
        container = new_id()
        ulimits = {"nofile": Ulimit(1 << 31, 1 << 31)}
        await runtime.create(container, shell("true", ulimits=ulimits), node.layers, {})
        with pytest.raises(StartFailed, match="ulimit nofile"):
            await runtime.start(container, None, EtcFiles("x"))

    node.run(body)


def test_sysctls_are_set_in_the_containers_namespaces_only(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        before = Path("/proc/sys/kernel/msgmax").read_text()
        wanted = shell("cat /proc/sys/kernel/msgmax", sysctls={"kernel.msgmax": "4321"})
        assert (await output(runtime, node, wanted))[1] == "4321\n"
        assert Path("/proc/sys/kernel/msgmax").read_text() == before
        with pytest.raises(Invalid, match=r"kernel\.panic"):
            wanted = shell("true", sysctls={"kernel.panic": "1"})
            await runtime.create(new_id(), wanted, node.layers, {})

    node.run(body)


def test_a_read_only_container_writes_only_to_its_mounts(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        wanted = shell(
            "touch /x; touch /run/y && ls /run; df -m /run | tail -1",
            read_only=True,
            mounts=(Mount(MountType.TMPFS, "/run", tmpfs_size=5 << 20, tmpfs_mode=0o755),),
        )
        code, said = await output(runtime, node, wanted)
        assert code == 0
        assert "touch: /x: Read-only file system" in said
        assert "y" in said.splitlines()
        assert " 5 " in said

    node.run(body)


def test_binds_are_mounted_read_only_and_made_on_request(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        made, kept = node.base / "made/here", node.base / "kept"
        kept.write_text("kept\n")
        wanted = shell(
            "cat /k; echo no >/k; touch /m/new",
            mounts=(
                Mount(MountType.BIND, "/k", str(kept), read_only=True),
                Mount(MountType.BIND, "/m", str(made), create_host_path=True),
            ),
        )
        code, said = await output(runtime, node, wanted)
        assert (code, kept.read_text()) == (0, "kept\n")
        assert "kept\n" in said
        assert "Read-only file system" in said
        assert (made / "new").exists()
        container = new_id()
        missing = Mount(MountType.BIND, "/m", str(node.base / "missing"))
        await runtime.create(container, shell("true", mounts=(missing,)), node.layers, {})
        with pytest.raises(StartFailed, match=r"mount /m: source .*/missing: no such file"):
            await runtime.start(container, None, EtcFiles("x"))

    node.run(body)


def test_an_empty_volume_is_filled_from_the_image_once(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        volume = node.base / "volume"
        volume.mkdir()
        wanted = shell(
            "cat /data/file; stat -c %u /data/file; echo mine >/data/file; readlink /data/link",
            mounts=(Mount(MountType.VOLUME, "/data", "v"),),
        )
        volumes = {"/data": str(volume)}
        code, said = await output(runtime, node, wanted, volumes=volumes)
        assert (code, said) == (0, "from the image\n1000\n/etc/passwd\n")
        assert os.path.samefile(volume / "file", volume / "deep/again")
        assert "mine" in (await output(runtime, node, wanted, volumes=volumes))[1]

    node.run(body)


def test_files_are_injected_with_owner_and_mode_and_touch_no_disk(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        file = FileContent("/run/secrets/deep/s", b"shh", uid="web", gid="tape", mode=0o440)
        wanted = shell(
            "(echo no >/run/secrets/deep/s) 2>&1 | sed 's/.*: //';"
            "stat -c '%a %u %g' /run/secrets/deep/s; cat /run/secrets/deep/s; echo; sleep 100",
            files=(file,),
        )
        container = await start(runtime, node, wanted)
        said = b""
        async for record in runtime.logs(container, follow=True):
            said += record.data
            if b"shh" in said:
                break
        assert said == b"Read-only file system\n440 1000 26\nshh\n"
        upper = Path(node.paths.container(container)) / "upper"
        assert (upper / "run/secrets/deep/s").read_bytes() == b""
        below = [path.read_bytes() for path in upper.rglob("*") if path.is_file()]
        assert below and not any(b"shh" in content for content in below)

    node.run(body)


def test_init_reaps_forwards_and_returns_the_code(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        script = "trap 'exit 9' TERM; (sleep 0 &) ; echo $$; while :; do sleep 1; done"
        container = await start(runtime, node, shell(script, init=True))
        async for record in runtime.logs(container, follow=True):
            assert record.data == b"2\n"
            break
        rss = Path(f"/proc/{runtime.running()[container]}/statm").read_text().split()[1]
        assert int(rss) <= 4  # pages
        await runtime.kill(container, signal.SIGTERM)
        exited, _ = await finish(runtime, container)
        assert exited.code == 9

    node.run(body)


def test_pause_stops_everything_and_unpause_goes_on(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("while :; do echo x; done"))
        await runtime.pause(container)
        state = Path(f"/proc/{runtime.running()[container]}/stat").read_text().split()[2]
        assert state in "DS"
        await runtime.unpause(container)
        await runtime.kill(container, 9)
        await finish(runtime, container)
        with pytest.raises(Conflict, match="is not running"):
            await runtime.pause(container)

    node.run(body)


def test_delete_leaves_no_mount_cgroup_or_directory(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        mounts = Path("/proc/self/mountinfo").read_text()
        container = await start(runtime, node, shell("sleep 100"))
        with pytest.raises(Conflict):
            await runtime.delete(container)
        await runtime.kill(container, 9)
        await finish(runtime, container)
        await runtime.delete(container)
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert not os.path.exists(node.paths.container(container))
        assert not os.path.exists(node.paths.container_run(container))
        for mount in find_hierarchy().mounts.values():
            assert not os.path.exists(f"{mount}/{node.parent}/{container}")
        with pytest.raises(NotFound):
            await runtime.start(container, None, EtcFiles("x"))

    node.run(body)


def test_a_container_can_be_started_again_with_what_it_wrote(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        container = await start(runtime, node, shell("cat /n 2>/dev/null; echo x >>/n"))
        await finish(runtime, container)
        await runtime.start(container, None, EtcFiles("x"))
        _, said = await finish(runtime, container)
        assert said == "x\n"

    node.run(body)


def test_privileged_sees_the_hosts_devices_and_has_every_capability(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        wanted = shell("cat /proc/self/status; ls /dev; touch /proc/sys/x", privileged=True)
        _, said = await output(runtime, node, wanted)
        own = status(Path("/proc/self/status").read_text())["CapBnd"]
        assert status(said)["CapBnd"] == own
        assert status(said)["Seccomp"] == "0"
        assert "loop0" in said or "vda" in said or "kmsg" in said

    node.run(body)


def test_twenty_containers_start_at_once(node: Box) -> None:
    async def body(runtime: Runtime) -> None:
        found = []

        async def one(number: int) -> None:
            container = await start(runtime, node, shell(f"echo {number}"))
            found.append(container)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
        ended = {(await runtime.exits.receive()).container for _ in range(20)}
        assert ended == set(found)

    node.run(body)
