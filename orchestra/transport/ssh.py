"""SSH as trio streams: the only module that knows asyncio and asyncssh.

asyncssh runs in one trio-asyncio loop around the whole application (`ssh_loop`). Its callbacks run
in the trio thread and only fill buffers and set events: sending and receiving never enter asyncio.
Laws: what asyncio raises stays inside; a cancelled or failed operation leaves no channel and no
connection behind; every wait has an end (TCP 10 s, login 20 s, keepalive 15 s x 3).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

import asyncssh
import trio
import trio_asyncio
from attrs import frozen

from orchestra.transport.errors import (
    AuthenticationFailed,
    ChannelRefused,
    HostKeyMismatch,
    HostKeyUnknown,
    TransportError,
    Unreachable,
)
from orchestra.transport.relay import relay_command

log = logging.getLogger(__name__)

T = TypeVar("T")

# 1.5 to 2.7 times the throughput of asyncssh's default, which is ChaCha20.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
)
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
CONNECT_TIMEOUT = 10.0  # seconds to TCP
LOGIN_TIMEOUT = 20.0  # seconds from there to a finished login: small hosts are slow at it
KEEPALIVE_INTERVAL = 15.0
KEEPALIVE_COUNT = 3
CLOSE_TIMEOUT = 5.0
HIGH_WATER = 1 << 20  # received bytes held for a slow reader before the peer is paused
PIECE = 64 << 10
STDERR_LIMIT = 1 << 20


@frozen
class SshTarget:
    """Whom to reach and as whom. `host_key` is the pinned public key ("ssh-ed25519 AAAA...")."""

    host: str
    port: int = 22
    user: str = "root"
    identity: str = ""  # path of a private key; "": the SSH agent and the default files
    host_key: str = ""
    jump: SshTarget | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")


@frozen
class Completed:
    """A command that ended; `exit_status` 255 where the host reported none (killed, cut off)."""

    exit_status: int
    stdout: bytes
    stderr: bytes


Accept = Callable[[str, str], bool]


@asynccontextmanager
async def ssh_loop() -> AsyncIterator[None]:
    """The one asyncio loop; enter it around the application, outside every nursery using SSH."""
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # ten lines a connection at INFO
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a warning per write to a dead peer
    try:
        async with trio_asyncio.open_loop() as loop:
            # Without a handler any failing callback would cancel the whole application.
            loop.set_exception_handler(
                lambda _, context: log.error(
                    "ssh callback failed: %s", context.get("message"), exc_info=_failure(context)
                )
            )
            yield
    except BaseExceptionGroup as group:
        # The loop wraps what passes through it in two groups; give it back as it was.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def _failure(context: dict[str, Any]) -> BaseException | None:
    return cast("BaseException | None", context.get("exception"))


async def _in_asyncio(start: Callable[[], Awaitable[T]]) -> T:
    """Run an asyncio coroutine from trio; cancelling cancels it."""
    return cast(T, await trio_asyncio.aio_as_trio(start)())


class _OneAtATime:
    """Makes a second simultaneous user of one direction a BusyResourceError, as trio's do."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is already {self._what}")
        self._busy = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._busy = False


class ChannelStream(trio.abc.HalfCloseableStream, asyncssh.SSHUNIXSession[bytes]):
    """An SSH channel as a trio stream, with back-pressure both ways."""

    def __init__(self) -> None:
        self._received: deque[bytes] = deque()
        self._size = 0
        self._channel: Any = None
        self._error: Exception | None = None
        self._ended = False  # no more will be received
        self._closed = False  # by us
        self._paused = False
        self.gone = trio.Event()  # the channel is closed on both sides
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._writable.set()
        self._receiving = _OneAtATime("receiving from this stream")
        self._sending = _OneAtATime("sending to this stream")

    # --- asyncssh's side: synchronous callbacks

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc
        self._ended = True
        self.gone.set()
        self._readable.set()
        self._writable.set()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._received.append(data)
        self._size += len(data)
        self._readable.set()
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        self._readable.set()
        return True  # keep our own direction open

    def pause_writing(self) -> None:
        self._writable = trio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- trio's side

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side closed the channel")
        if self.gone.is_set():
            raise trio.BrokenResourceError(str(self._error or "the channel is closed"))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending, memoryview(data) as view:
            await trio.lowlevel.checkpoint()
            self._check_open()
            for start in range(0, len(view), PIECE):
                await self._writable.wait()
                self._check_open()
                try:
                    self._channel.write(bytes(view[start : start + PIECE]))
                except OSError as error:  # asyncssh: the channel is not open for sending
                    raise trio.BrokenResourceError(str(error)) from None

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            await self._writable.wait()
            self._check_open()

    async def send_eof(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            self._channel.write_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while not self._received:
                if self._closed:
                    raise trio.ClosedResourceError("this side closed the channel")
                if self._ended:
                    if self._error:
                        raise trio.BrokenResourceError(str(self._error)) from self._error
                    return b""
                self._readable = trio.Event()
                await self._readable.wait()
            if self._closed:
                raise trio.ClosedResourceError("this side closed the channel")
            data = self._received.popleft()
            if max_bytes is not None and len(data) > max_bytes:
                self._received.appendleft(data[max_bytes:])
                data = data[:max_bytes]
            self._size -= len(data)
            if self._paused and self._size < HIGH_WATER // 2:
                self._paused = False
                self._channel.resume_reading()
            return data

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        self._readable.set()
        self._received.clear()
        if self._channel is None:
            return
        try:
            # asyncssh sends on from a buffer of its own. Its close() would wait for ever for a
            # peer that stopped reading: give the rest a moment, then abort.
            if self._channel.get_write_buffer_size() and not self.gone.is_set():
                self._channel.set_write_buffer_limits(high=0, low=0)
                with trio.move_on_after(CLOSE_TIMEOUT):
                    await self._writable.wait()
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._writable.set()
            self._channel.abort()


class _CommandStream(ChannelStream, asyncssh.SSHClientSession[bytes]):
    """A command's stdin and stdout as a stream; its stderr and exit status aside."""

    def __init__(self) -> None:
        super().__init__()
        self.stderr = bytearray()
        self.exit_status: int | None = None

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is None:
            super().data_received(data, datatype)
        elif len(self.stderr) < STDERR_LIMIT:
            self.stderr += data

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def stderr_text(self) -> str:
        return self.stderr.decode(errors="replace").strip()


class _HostKeyCheck(asyncssh.SSHClient):
    """Decides on the host's key and tells when the connection is gone."""

    def __init__(self, target: SshTarget, accept: Accept | None) -> None:
        self._target = target
        self._accept = accept
        self.closed = trio.Event()
        self.key = ""
        self.refusal: TransportError | None = None

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.key = " ".join(key.export_public_key().decode("ascii").split()[:2])
        fingerprint = key.get_fingerprint()
        target = self._target
        if target.host_key:
            if self.key == " ".join(target.host_key.split()[:2]):
                return True
            expected = _fingerprint(target.host_key)
            self.refusal = HostKeyMismatch(
                f"{target.host} shows the host key {fingerprint}, but {expected} is pinned: it is "
                "another machine, was reinstalled, or someone is in between. If the change is "
                "known, add the node again with --host-key and the new fingerprint",
                fingerprint,
                expected,
            )
            return False
        if self._accept is not None and self._accept(self.key, fingerprint):
            return True
        self.refusal = HostKeyUnknown(
            f"the host key of {target.host} is not known: it shows {fingerprint}; confirm it with "
            f"--host-key {fingerprint}, or trust what it shows with --accept-new",
            self.key,
            fingerprint,
        )
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


def _fingerprint(key_line: str) -> str:
    try:
        return str(asyncssh.import_public_key(key_line).get_fingerprint())
    except asyncssh.KeyImportError:
        return repr(key_line)


@asynccontextmanager
async def connect(
    target: SshTarget, *, accept: Accept | None = None, patience: float = CONNECT_TIMEOUT
) -> AsyncIterator[SshConnection]:
    """Log in at `target` (through its jump host); the connection ends with the context.

    `patience` is seconds for the host to accept a TCP connection.
    Where `target.host_key` is "", `accept(key line, fingerprint)` is asked about the shown key;
    without it the key is HostKeyUnknown. A jump host may show any key unless one is pinned: it
    only carries a connection that is checked end to end. Raises the TransportErrors.
    """
    async with AsyncExitStack() as stack:
        tunnel = None
        if target.jump is not None:
            jump = await stack.enter_async_context(
                connect(target.jump, accept=_anyone, patience=patience)
            )
            tunnel = jump._connection
        check = _HostKeyCheck(target, accept)
        connection = await _log_in(target, check, tunnel, patience)
        try:
            yield SshConnection(target, connection, check)
        finally:
            connection.close()
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
                await _in_asyncio(connection.wait_closed)
            if scope.cancelled_caught:
                connection.abort()


def _anyone(key: str, fingerprint: str) -> bool:
    return True


async def _log_in(target: SshTarget, check: _HostKeyCheck, tunnel: Any, patience: float) -> Any:
    # The pinned kind first, so that the host shows that key if it has it.
    kind = target.host_key.split(" ")[0].replace("ssh-rsa", "rsa-sha2")
    algorithms = sorted(HOST_KEY_ALGORITHMS, key=lambda name: not (kind and kind in name))
    options: dict[str, Any] = {"client_keys": [target.identity]} if target.identity else {}
    if tunnel is not None:
        options["tunnel"] = tunnel
    else:
        options["sock"] = await _open_tcp(target, patience)
    try:
        return await _in_asyncio(
            lambda: asyncssh.connect(
                target.host,
                target.port,
                username=target.user,
                config=None,
                known_hosts=([], [], []),
                client_factory=lambda: check,
                preferred_auth="publickey",
                server_host_key_algs=algorithms,
                encryption_algs=list(CIPHERS),
                compression_algs=["none"],
                login_timeout=LOGIN_TIMEOUT,
                keepalive_interval=KEEPALIVE_INTERVAL,
                keepalive_count_max=KEEPALIVE_COUNT,
                **options,
            )
        )
    except BaseException as error:
        if "sock" in options:
            options["sock"].close()
        if isinstance(error, (OSError, TimeoutError, asyncssh.Error)):
            raise _translated(error, target, check) from None
        raise


async def _open_tcp(target: SshTarget, patience: float) -> socket.socket:
    """Connect; trio tries all of a name's addresses (RFC 8305), which asyncssh does not."""
    try:
        with trio.fail_after(patience):
            stream = await trio.open_tcp_stream(target.host, target.port)
    except trio.TooSlowError:
        reason = f"no answer within {patience:g} s: is the host up and the port open?"
        raise Unreachable(f"cannot reach {target} over SSH: {reason}") from None
    except OSError as error:
        raise Unreachable(f"cannot reach {target} over SSH: {_reason(error)}") from None
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


def _translated(error: Exception, target: SshTarget, check: _HostKeyCheck) -> TransportError:
    """What a login's failure means, in our words."""
    identity = target.identity
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return check.refusal or Unreachable(f"cannot verify {target.host}: {error}")
    if isinstance(error, asyncssh.PermissionDenied):
        with_key = f"the key {identity}" if identity else "the SSH agent's keys"
        return AuthenticationFailed(
            f"{target.host} does not let {target.user} in with {with_key}: add the public key to "
            f"~{target.user}/.ssh/authorized_keys there, or name another with --identity"
        )
    if isinstance(error, asyncssh.KeyImportError):
        return AuthenticationFailed(
            f"cannot use the private key {identity or 'of this user'}: {error}; a key with "
            "a passphrase works through ssh-agent"
        )
    if isinstance(error, FileNotFoundError) and identity:
        return AuthenticationFailed(
            f"the private key {identity} does not exist; name another with --identity"
        )
    return Unreachable(f"cannot reach {target} over SSH: {_reason(error)}")


def _reason(error: BaseException) -> str:
    cause = error.__cause__  # trio says which of a name's addresses failed how
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(_reason(each) for each in cause.exceptions)
    if isinstance(cause, OSError):
        return _reason(cause)
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is sshd running there, on that port?"
    text = getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error)
    return str(text) or type(error).__name__


class SshConnection:
    """A login on a host: streams to its sockets and commands, over one TCP connection."""

    def __init__(self, target: SshTarget, connection: Any, check: _HostKeyCheck) -> None:
        self.target = target
        self.host_key = check.key
        self.closed = check.closed
        self._connection = connection
        self._forwards = False  # whether sshd is known to forward Unix sockets

    async def open_unix(self, path: str) -> trio.abc.HalfCloseableStream:
        """A stream to the Unix socket at `path` of the host.

        Where sshd does not forward Unix sockets, or the user may not open this one, a relay is
        started on the host (for users other than root through password-less sudo). Raises
        ChannelRefused with the reason, Unreachable where the connection is gone.
        """
        try:
            _, stream = await self._open(
                lambda: self._connection.create_unix_connection(ChannelStream, path)
            )
            self._forwards = True
            return cast(ChannelStream, stream)
        except asyncssh.ChannelOpenError:
            # sshd tells neither "forbidden" from "nothing listens" nor why; the relay does.
            if self._forwards and self.target.user == "root":
                raise ChannelRefused(
                    f"cannot open {path} on {self.target.host}: nothing listens there"
                ) from None
        return await self._relay(path)

    async def _relay(self, path: str) -> _CommandStream:
        sudo = self.target.user != "root"
        stream = await self._command(relay_command(path, sudo))
        try:
            if await stream.receive_some(1) == b"+":
                return stream
            with trio.move_on_after(CLOSE_TIMEOUT):
                await stream.gone.wait()
            reason = stream.stderr_text() or "the relay ended at once"
            raise ChannelRefused(f"cannot open {path} on {self.target.host}: {reason}")
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise Unreachable(f"the connection to {self.target.host} is gone: {error}") from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _command(self, command: str) -> _CommandStream:
        try:
            _, stream = await self._open(
                lambda: self._connection.create_session(
                    _CommandStream, command, encoding=None, request_pty=False
                )
            )
        except asyncssh.ChannelOpenError as error:
            raise ChannelRefused(
                f"cannot start a command on {self.target.host}: {error.reason}; sshd's "
                "MaxSessions may be used up"
            ) from None
        return cast(_CommandStream, stream)

    async def run(
        self,
        command: str,
        stdin: bytes = b"",
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a shell command on the host and wait for its end.

        `on_chunk` sees each piece of stdout as it arrives. When cancelled the channel is closed:
        the command sees EOF and broken pipes, but no signal (sshd forwards none for root).
        """
        stream = await self._command(command)
        output: list[bytes] = []
        try:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def feed() -> None:
                    try:
                        if stdin:
                            await stream.send_all(stdin)
                        await stream.send_eof()
                    except trio.BrokenResourceError:
                        pass  # the command ended without reading everything

                try:
                    while chunk := await stream.receive_some():
                        output.append(chunk)
                        if on_chunk is not None:
                            on_chunk(chunk)
                except trio.BrokenResourceError:
                    pass  # the connection is gone: reported below
                await stream.gone.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
        if self.closed.is_set():
            raise Unreachable(f"the connection to {self.target.host} was lost during a command")
        status = 255 if stream.exit_status is None else stream.exit_status
        return Completed(status, b"".join(output), bytes(stream.stderr))

    async def _open(self, start: Callable[[], Coroutine[Any, Any, tuple[Any, Any]]]) -> Any:
        """Open a channel so that cancelling leaves none behind.

        asyncssh forgets a cancelled open, and the host's late confirmation would make a channel
        that nobody closes: the open goes on alone and its channel is closed when it is there.
        """

        async def shielded() -> Any:
            task = asyncio.ensure_future(start())
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(_close_unwanted)
                raise

        if self.closed.is_set():
            raise Unreachable(f"the connection to {self.target.host} is gone")
        try:
            return await _in_asyncio(shielded)
        except asyncssh.ChannelOpenError as error:
            if self.closed.is_set():
                raise Unreachable(
                    f"the connection to {self.target.host} is gone: {error.reason}"
                ) from None
            raise
        except (OSError, asyncssh.Error) as error:
            raise Unreachable(
                f"the connection to {self.target.host} is gone: {_reason(error)}"
            ) from None


def _close_unwanted(task: asyncio.Future[tuple[Any, Any]]) -> None:
    if not task.cancelled() and task.exception() is None:
        channel, _ = task.result()
        channel.abort()
