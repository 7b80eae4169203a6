"""The agent's end of the shim's socket: requests with replies, and events, on one SEQPACKET link.

Law: a link that is lost fails everything that waits on it with LinkLost and sets `closed`; nobody
waits for an answer that cannot come. fds that arrive are owned by whoever gets the reply.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

import trio
from attrs import frozen

from orchestra.linux.syscalls import peer_pidfd, pidfd_send_signal

_PACKET = 64 << 10
_MAX_FDS = 16
_PATIENCE = 20.0  # seconds for a shim to greet
PROTOCOL = 1


class LinkLost(Exception):
    """The shim is gone, or was never there."""


class NotSent(LinkLost):
    """It was gone before the request: nothing came of that."""


@frozen
class Reply:
    body: Mapping[str, Any]
    fds: Mapping[str, int]


class Link:
    """One connection; `serve` must run in a nursery for replies and events to arrive."""

    def __init__(self, socket_: socket.socket, pid: int, gates: bool = False) -> None:
        self.pid = pid  # the shim's
        self.gates = gates  # whether its children wait at a gate before they exec
        self.closed = trio.Event()
        self._socket = socket_
        self._next = 0
        self._waiting: dict[int, trio.MemorySendChannel[Reply]] = {}

    async def request(self, op: str, fds: Mapping[str, int] = {}, **body: Any) -> Reply:
        """Send one request and return its one reply. The sent fds stay the caller's."""
        return (await self.request_all(op, fds, **body))[-1]

    async def request_all(self, op: str, fds: Mapping[str, int] = {}, **body: Any) -> list[Reply]:
        """Send a request and return its replies up to the last one."""
        if self.closed.is_set():
            raise NotSent("the shim is gone")
        self._next += 1
        number = self._next
        send, receive = trio.open_memory_channel[Reply](float("inf"))
        self._waiting[number] = send
        message = {**body, "op": op, "n": number, "fds": list(fds)}
        try:
            await self._send(json.dumps(message).encode(), list(fds.values()))
            replies = []
            while True:
                replies.append(await receive.receive())
                if op != "list" or "end" in replies[-1].body:
                    return replies
        except (OSError, trio.ClosedResourceError):
            raise NotSent("the shim is gone") from None
        except trio.EndOfChannel:
            raise LinkLost("the shim is gone") from None
        finally:
            self._waiting.pop(number, None)

    async def _send(self, data: bytes, fds: list[int]) -> None:
        while True:
            try:
                socket.send_fds(self._socket, [data], fds)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    async def serve(self, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        """Read until the shim is gone."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                while True:
                    try:
                        data, fds, _, _ = socket.recv_fds(
                            self._socket, _PACKET, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
                        )
                    except BlockingIOError:
                        break
                    if not data:
                        return
                    body = json.loads(data)
                    if "n" in body:
                        reply = Reply(body, dict(zip(body.get("fds", ()), fds)))
                        if waiting := self._waiting.get(body["n"]):
                            waiting.send_nowait(reply)
                        else:  # whoever asked was cancelled
                            for fd in fds:
                                os.close(fd)
                    else:
                        on_event(body)
        except (OSError, trio.ClosedResourceError):
            return
        finally:
            self.close()

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            for waiting in self._waiting.values():
                waiting.close()


async def connect(path: str) -> Link:
    """Connect and hear the greeting. LinkLost where nobody listens.

    One that listens and does not greet is ended: what it holds is with the keeper, and the next one
    goes on with it.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(path)
        link.setblocking(False)
        with trio.fail_after(_PATIENCE):
            await trio.lowlevel.wait_readable(link)
        hello = json.loads(link.recv(_PACKET) or b"{}")
    except trio.TooSlowError:
        _end_owner(link)
        link.close()
        raise LinkLost(f"{path}: hung, and was killed") from None
    except (OSError, ValueError) as error:
        link.close()
        raise LinkLost(f"{path}: {error}") from None
    if hello.get("hello", 0) < PROTOCOL:
        link.close()
        raise LinkLost(f"{path}: speaks protocol {hello.get('hello')}, not {PROTOCOL}")
    return Link(link, hello["pid"], bool(hello.get("gate")))


def _end_owner(link: socket.socket) -> None:
    """SIGKILL to the process that listens at the other end."""
    try:
        pidfd = peer_pidfd(link)
    except ProcessLookupError:
        return
    try:
        pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
