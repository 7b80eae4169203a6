"""SSH streams against a real sshd: what they carry, what they refuse, what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from orchestra.transport import ssh
from orchestra.transport.errors import (
    AuthenticationFailed,
    ChannelRefused,
    HostKeyMismatch,
    HostKeyUnknown,
    Unreachable,
)
from orchestra.transport.ssh import connect

from .conftest import echoing, run
from .sshd import Sshd, make_key, running_sshd


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def channels(connection: ssh.SshConnection) -> int:
    return len(connection._connection._channels)


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


def test_a_stream_carries_bytes_and_half_closes_both_ways(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path, connect(sshd.target()) as connection:
            async with await connection.open_unix(path) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
                await stream.send_eof()
                assert await everything(stream) == b"."
            assert connection.host_key == sshd.target().host_key.rsplit(" ", 1)[0]

    run(main)


def test_megabytes_pass_unchanged_in_both_directions_at_once(sshd: Sshd, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)

    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path, connect(sshd.target()) as connection:
            async with await connection.open_unix(path) as stream, trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    for _ in range(16):
                        await stream.send_all(block)
                    await stream.send_eof()

                assert await everything(stream) == block * 16 + b"."

    run(main)


def test_a_reader_that_stops_holds_up_its_own_channel_only(sshd: Sshd, tmp_path: Path) -> None:
    async def flood(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                while True:
                    await stream.send_all(bytes(65536))
            except trio.BrokenResourceError:
                return

    async def main() -> None:
        async with (
            echoing(f"{tmp_path}/flood", flood) as flooding,
            echoing(f"{tmp_path}/echo") as path,
            connect(sshd.target()) as connection,
        ):
            stuck = await connection.open_unix(flooding)
            assert isinstance(stuck, ssh.ChannelStream)
            await stuck.receive_some()
            while not stuck._paused:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert stuck._size < 2 * ssh.HIGH_WATER
            async with await connection.open_unix(path) as other:
                await other.send_all(b"x")
                assert await other.receive_some() == b"x"
            await stuck.aclose()

    run(main)


def test_a_peer_that_stops_reading_blocks_the_sender_and_closing_ends(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CLOSE_TIMEOUT", 0.2)

    async def deaf(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with (
            echoing(f"{tmp_path}/s", deaf) as path,
            connect(sshd.target()) as connection,
        ):
            stream = await connection.open_unix(path)
            with trio.move_on_after(1) as scope:
                while True:
                    await stream.send_all(bytes(1 << 20))
            assert scope.cancelled_caught
            await stream.aclose()
            async with await connection.open_unix(path):
                pass  # the connection itself works on

    run(main)


def test_two_receivers_of_one_stream_are_told_so(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path, connect(sshd.target()) as connection:
            async with await connection.open_unix(path) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await stream.receive_some()
                nursery.cancel_scope.cancel()

    run(main)


def test_closing_wakes_a_waiting_receiver(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path, connect(sshd.target()) as connection:
            stream = await connection.open_unix(path)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def receive() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.receive_some()

                await trio.testing.wait_all_tasks_blocked()
                await stream.aclose()

    run(main)


def test_cancelled_opens_leave_no_channel_and_no_descriptor(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path, connect(sshd.target()) as connection:
            await (await connection.open_unix(path)).aclose()
            before = fds()
            for delay in range(60):
                with trio.move_on_after(delay * 0.00005):
                    await (await connection.open_unix(path)).aclose()
                with trio.move_on_after(delay * 0.0005):
                    await connection.run("cat; true", b"x")
                while channels(connection):
                    await trio.sleep(0.001)
            assert fds() <= before + 2

    run(main)


def test_cancelled_connects_leave_no_descriptor(sshd: Sshd) -> None:
    async def main() -> None:
        async with connect(sshd.target()):
            pass
        before = fds()
        for delay in (0, 0.001, 0.005, 0.01, 0.02, 0.03):
            with trio.move_on_after(delay):
                async with connect(sshd.target()):
                    pass
        assert fds() == before

    run(main)


def test_a_killed_session_breaks_its_streams_and_sets_closed(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with echoing(f"{tmp_path}/s") as path:
            others = set(sshd.sessions())
            async with connect(sshd.target()) as connection:
                stream = await connection.open_unix(path)
                (session,) = set(sshd.sessions()) - others
                os.kill(session, signal.SIGKILL)
                with pytest.raises(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
                await connection.closed.wait()
                with pytest.raises(Unreachable):
                    await connection.open_unix(path)
                with pytest.raises(Unreachable):
                    await connection.run("true")

    run(main)


def test_a_stopped_peer_is_given_up_after_the_keepalives(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "KEEPALIVE_INTERVAL", 0.2)
    monkeypatch.setattr(ssh, "KEEPALIVE_COUNT", 2)

    async def main() -> None:
        others = set(sshd.sessions())
        async with connect(sshd.target()) as connection:
            (session,) = set(sshd.sessions()) - others
            os.kill(session, signal.SIGSTOP)
            try:
                await connection.closed.wait()
            finally:
                os.kill(session, signal.SIGCONT)

    run(main)


def test_a_command_gives_output_errors_and_status(sshd: Sshd) -> None:
    async def main() -> None:
        async with connect(sshd.target()) as connection:
            seen: list[bytes] = []
            done = await connection.run("cat; echo no >&2; exit 3", b"x" * 300_000, seen.append)
            assert (done.exit_status, done.stderr) == (3, b"no\n")
            assert done.stdout == b"".join(seen) == b"x" * 300_000
            assert (await connection.run("kill -9 $$")).exit_status == 255
            assert (await connection.run("exec true", b"unread" * 100_000)).exit_status == 0

    run(main)


def test_an_unknown_key_is_shown_and_can_be_accepted(sshd: Sshd) -> None:
    async def main() -> None:
        unknown = sshd.target(host_key="")
        with pytest.raises(HostKeyUnknown, match="--accept-new") as caught:
            async with connect(unknown):
                pass
        asked: list[tuple[str, str]] = []

        def accept(key: str, fingerprint: str) -> bool:
            asked.append((key, fingerprint))
            return True

        async with connect(unknown, accept=accept) as connection:
            assert asked == [(connection.host_key, caught.value.fingerprint)]
        assert caught.value.key == connection.host_key

    run(main)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_another_key_than_the_pinned_one_is_refused(sshd: Sshd, tmp_path: Path, kind: str) -> None:
    make_key(tmp_path / "other", kind)
    other = (tmp_path / "other.pub").read_text()

    async def main() -> None:
        with pytest.raises(HostKeyMismatch, match="another machine"):
            async with connect(sshd.target(host_key=other), accept=lambda *_: True):
                pass

    run(main)


def test_a_login_is_refused_with_the_remedy(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "key")

    async def main() -> None:
        with pytest.raises(AuthenticationFailed, match="authorized_keys"):
            async with connect(sshd.target(identity=str(tmp_path / "key"))):
                pass
        with pytest.raises(AuthenticationFailed, match="does not exist"):
            async with connect(sshd.target(identity=str(tmp_path / "none"))):
                pass

    run(main)


def test_nobody_there_is_unreachable_with_the_reason(sshd: Sshd) -> None:
    async def main() -> None:
        with pytest.raises(Unreachable, match="is sshd running"):
            async with connect(sshd.target(port=1)):
                pass
        with pytest.raises(Unreachable, match=r"no-such-host\.invalid"):
            async with connect(sshd.target(host="no-such-host.invalid")):
                pass

    run(main)


def test_a_jump_host_is_passed_through(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        with running_sshd() as bastion:
            target = sshd.target(jump=bastion.target())
            async with echoing(f"{tmp_path}/s") as path, connect(target) as connection:
                async with await connection.open_unix(path) as stream:
                    await stream.send_all(b"far")
                    assert await stream.receive_some() == b"far"

    run(main)


def test_a_missing_socket_is_named(sshd: Sshd, tmp_path: Path) -> None:
    async def main() -> None:
        async with connect(sshd.target()) as connection:
            with pytest.raises(ChannelRefused, match="No such file"):
                await connection.open_unix(f"{tmp_path}/none")

    run(main)


def test_where_forwarding_is_off_a_relay_carries_the_stream(tmp_path: Path) -> None:
    block = os.urandom(1 << 20)

    async def main() -> None:
        with running_sshd({"AllowStreamLocalForwarding": "no"}) as server:
            async with echoing(f"{tmp_path}/s") as path, connect(server.target()) as connection:
                async with (
                    await connection.open_unix(path) as stream,
                    trio.open_nursery() as nursery,
                ):

                    @nursery.start_soon
                    async def send() -> None:
                        await stream.send_all(block)
                        await stream.send_eof()

                    assert await everything(stream) == block + b"."
                async with await connection.open_unix(path):
                    pass
                while channels(connection):
                    await trio.sleep(0.01)
                (session,) = server.sessions()
                while set(server.descendants()) - {session}:
                    await trio.sleep(0.01)  # the relays have ended

    run(main)


def test_a_user_without_rights_reaches_the_socket_through_sudo(
    sshd: Sshd, guest: str, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)

    async def main() -> None:
        async with (
            echoing(f"{private}/s") as path,
            connect(sshd.target(user=guest)) as connection,
        ):
            if shutil.which("sudo") is None:
                with pytest.raises(ChannelRefused, match="sudo"):
                    await connection.open_unix(path)
                return
            rule = Path(f"/etc/sudoers.d/{guest}")
            with pytest.raises(ChannelRefused, match="password"):
                await connection.open_unix(path)
            rule.write_text(f"{guest} ALL=(ALL) NOPASSWD: ALL\n")
            try:
                async with await connection.open_unix(path) as stream:
                    await stream.send_all(b"by sudo")
                    assert await stream.receive_some() == b"by sudo"
            finally:
                rule.unlink()

    run(main)


def test_a_host_that_takes_no_connection_is_given_up_after_the_patience(sshd: Sshd) -> None:
    async def main() -> None:
        before = fds()
        with socket.socket() as full, ExitStack() as waiting:
            full.bind(("127.0.0.1", 0))
            full.listen(0)  # room for one; the kernel drops what comes after (listen(2))
            port = full.getsockname()[1]
            for _ in range(4):
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            with pytest.raises(Unreachable, match=r"no answer within 0\.5 s: is the host up"):
                async with connect(sshd.target(port=port), patience=0.5):
                    pass
        assert fds() == before

    run(main)


def test_a_listener_that_says_nothing_is_given_up_after_the_login_limit(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT", 0.5)

    async def main() -> None:
        before = fds()
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen(5)
            with pytest.raises(Unreachable, match="cannot reach root@127"):
                async with connect(sshd.target(port=mute.getsockname()[1])):
                    pass
        await trio.testing.wait_all_tasks_blocked()
        assert fds() == before

    run(main)


def test_a_name_is_tried_at_all_its_addresses(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: object, *_: object) -> list[object]:
            kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            dead = (socket.AF_INET6, *kind, ("::1", sshd.port, 0, 0))
            return [dead, (socket.AF_INET, *kind, ("127.0.0.1", sshd.port))]

        async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
            raise NotImplementedError

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        async with connect(sshd.target(host="two.example")) as connection:
            assert (await connection.run("echo here")).stdout == b"here\n"

    run(main)
