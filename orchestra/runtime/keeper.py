"""The keeper: a second holder of every descriptor the shim holds, so that its death closes none.

A terminal whose last master closes hangs up its programs, a FIFO that nobody has open forgets what
was written, and the exit code of a process is known only through a pidfd from before its end. So
the shim puts a copy of each, with a note of what it is, into this process, which does nothing else
and outlives it; the next shim asks for all of them. It has no opinions and no code that could fail:
what is put under a name replaces what was there. Stdlib only; a fork of the shim, so that it costs
little memory.

On a SEQPACKET socket, one JSON object per packet: {"op": "put", "name", "note", "fds": names} with
the fds beside it, {"op": "drop", "name"}, and {"op": "list"}, which is answered by one
{"name", "note", "fds"} each and {} at the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys

from orchestra.linux import syscalls as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PACKET = 64 << 10
_MAX_FDS = 16
_PATIENCE = 5.0  # seconds for a keeper to answer; then it is replaced


class Kept:
    """The shim's side: its connection to a keeper, which is started where none answers."""

    def __init__(self, path: str) -> None:
        """Connect, or fork a keeper that listens at `path`."""
        self._path = path
        self._pidfd = -1
        self._socket = self._connect() or self._start()

    def take_all(self) -> list[tuple[dict[str, Any], dict[str, int]]]:
        """(note, fds) of everything that the keeper has; the fds are copies, and ours."""
        found: list[tuple[dict[str, Any], dict[str, int]]] = []
        try:
            self._send({"op": "list"}, [])
            while True:
                assert self._socket is not None
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _PACKET, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
                body = json.loads(data)
                if not body:
                    return found
                found.append((body["note"], dict(zip(body["fds"], fds))))
        except (OSError, ValueError) as error:
            print(f"the keeper does not tell what it has: {error}", file=sys.stderr)
            self._replace()
            return found

    def put(self, name: str, note: Mapping[str, object], fds: Mapping[str, int]) -> bool:
        """Keep copies of `fds` under `name`. False: it is a new keeper, which has nothing yet."""
        return self._tell(
            {"op": "put", "name": name, "note": note, "fds": list(fds)}, list(fds.values())
        )

    def drop(self, name: str) -> bool:
        """Close what is under `name`. False: as for `put`."""
        return self._tell({"op": "drop", "name": name}, [])

    def _tell(self, message: dict[str, object], fds: list[int]) -> bool:
        try:
            self._send(message, fds)
            return True
        except OSError:  # it was killed, or hangs
            return not self._replace()

    def _send(self, message: dict[str, object], fds: list[int]) -> None:
        if self._socket is None:
            raise OSError("there is no keeper")
        socket.send_fds(self._socket, [json.dumps(message).encode()], fds)

    def _replace(self) -> bool:
        """End the one that does not answer, and start another; False where that fails."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            try:
                k.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self._pidfd)
        try:
            self._socket = self._start()
            return True
        except OSError as error:  # the containers do not need it: only our own death would tell
            print(f"cannot start a keeper: {error}", file=sys.stderr)
            return False

    def _start(self) -> socket.socket | None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        new = f"{self._path}.new"
        if os.path.exists(new):
            os.unlink(new)
        listener.bind(new)
        os.chmod(new, 0o600)
        ready, listens = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if os.fork() == 0:  # nobody's child
                    listener.listen(4)  # by itself: the kernel then knows it as the socket's owner
                    os.rename(new, self._path)
                    _become_keeper(listener, self._path)  # closes `listens`
            finally:
                os._exit(0)
        os.close(listens)
        listener.close()
        os.waitpid(pid, 0)
        os.read(ready, 1)
        os.close(ready)
        connected = self._connect()
        if connected is None:
            raise OSError(f"the keeper at {self._path} does not answer")
        return connected

    def _connect(self) -> socket.socket | None:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connected.settimeout(_PATIENCE)
        try:
            connected.connect(self._path)
            self._pidfd = k.peer_pidfd(connected)
            return connected
        except OSError:
            connected.close()
            return None


def _become_keeper(listener: socket.socket, path: str) -> None:
    """Forget that this was a shim: its descriptors, its name, its garbage."""
    os.setsid()
    number = listener.fileno()
    os.closerange(3, number)
    os.closerange(number + 1, 1 << 20)
    k.set_process_name(b"orchestra-keep")
    _rename_command(f"orchestra.runtime.keeper {path}".encode())
    k.prctl(k.PR_SET_DUMPABLE, 0)
    _Keeper(listener).run()


def _rename_command(text: bytes) -> None:
    """What /proc/PID/cmdline shows, in the place where the kernel put the shim's (proc(5))."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    if 0 < begin < end:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, text, min(len(text), end - begin - 1))


class _Keeper:
    """The process itself."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.poll = select.epoll()
        self.poll.register(listener.fileno(), select.EPOLLIN)
        self.shims: dict[int, socket.socket] = {}
        self.kept: dict[str, tuple[object, dict[str, int]]] = {}

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.listener.fileno():
                    shim, _ = self.listener.accept()
                    self.shims[shim.fileno()] = shim
                    self.poll.register(shim.fileno(), select.EPOLLIN)
                elif fd in self.shims:
                    self._read(self.shims[fd])

    def _read(self, shim: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(shim, _PACKET, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, fds = b"", []
        if not data:
            self.poll.unregister(shim.fileno())
            del self.shims[shim.fileno()]
            shim.close()
            return
        message = json.loads(data)
        if message["op"] == "put":
            self._drop(message["name"])
            self.kept[message["name"]] = message["note"], dict(zip(message["fds"], fds))
        elif message["op"] == "drop":
            self._drop(message["name"])
        else:
            self._list(shim)

    def _drop(self, name: str) -> None:
        _, fds = self.kept.pop(name, (None, {}))
        for fd in fds.values():
            os.close(fd)

    def _list(self, shim: socket.socket) -> None:
        try:
            for name, (note, fds) in self.kept.items():
                body = {"name": name, "note": note, "fds": list(fds)}
                socket.send_fds(shim, [json.dumps(body).encode()], list(fds.values()))
            shim.send(b"{}")
        except OSError:
            pass  # that shim died too; the next one asks again
