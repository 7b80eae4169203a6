"""The node's resolver: a small process of its own that answers containers' DNS queries.

It listens on 169.254.1.1 and 127.0.0.11 in the fabric's namespace, UDP and TCP, and asks upstream
from the host's. Who asks is known from the source address (no wire can forge it), which decides
the networks whose names are seen. Its whole state is names.json, replaced by rename and read again
when it changed, so it outlives the agent and is never told anything. What it does not know it
relays unread, from a fresh port with a fresh id for each query, to the next server when one fails.
Stdlib only and one thread: its memory and its time per query are counted.
"""

from __future__ import annotations

import abc
import argparse
import fcntl
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from orchestra.fabric import dns
from orchestra.linux import netns

LISTEN = ("169.254.1.1", "127.0.0.11")
PORT = 53
_DRAIN = 64
_TRY, _ROUNDS = 2.0, 2  # seconds for a server over UDP, times through the list
_TCP_IDLE = 10.0
_MOST_PENDING, _MOST_STREAMS = 1024, 256
_IP_FREEBIND = 15  # the addresses may come after us
_RESOLV_CONF = "/etc/resolv.conf"


class Book:
    """names.json: what each client may see, prepared for lookup by wire format."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: object = None
        self._table: dict[str, Any] = {}
        self._views: dict[tuple[str, ...], View] = {}
        self._node = _Servers()

    def refresh(self) -> None:
        """Read the file again if it was replaced; keep the last good one otherwise."""
        try:
            status = os.stat(self._path)
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            with open(self._path) as file:
                table = json.load(file)
        except FileNotFoundError:
            return
        except ValueError as error:
            print(f"resolver: {self._path} is no JSON, keeping the last: {error}", file=sys.stderr)
            return
        self._stamp, self._table, self._views = stamp, table, {}

    def view(self, client: str) -> View:
        networks = tuple(self._table.get("clients", {}).get(client, ()))
        view = self._views.get(networks)
        if view is None:
            names = self._table.get("names", {})
            layers = [self._table.get("hosts", {}), *(names.get(n, {}) for n in networks)]
            view = self._views[networks] = View(layers)
        return view

    def upstream(self, client: str) -> Sequence[str]:
        """The servers to ask for a client; its own, else the table's, else the host's."""
        upstream = self._table.get("upstream", {})
        if client in upstream:
            return list(upstream[client])
        return list(upstream.get("", ())) or self._node.read()


class View:
    """The names of some networks; of a name in several, the first network's addresses."""

    def __init__(self, layers: Sequence[dict[str, Sequence[str]]]) -> None:
        self.addresses: dict[bytes, list[bytes]] = {}
        self.names: dict[bytes, bytes] = {}
        for layer in layers:
            for name, texts in layer.items():
                raw = dns.wire(name)
                if raw is None or raw in self.addresses:
                    continue
                found = [socket.inet_aton(t) for t in texts if "." in t]
                self.addresses[raw] = found
                if len(found) == 1:
                    self.names.setdefault(found[0], raw)


class _Servers:
    """The host's resolv.conf, read again when it changed."""

    def __init__(self) -> None:
        self._stamp, self._found = -1, list[str]()

    def read(self) -> list[str]:
        try:
            stamp = os.stat(_RESOLV_CONF).st_mtime_ns
            if stamp != self._stamp:
                with open(_RESOLV_CONF) as file:
                    words = [line.split() for line in file]
                self._found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
                self._stamp = stamp
        except OSError:
            return []
        return self._found


class Resolver:
    """The loop and its sockets; `book` decides what is answered here."""

    def __init__(self, book: Book, datagrams: Sequence[socket.socket],
                 listeners: Sequence[socket.socket]) -> None:  # fmt: skip
        self._book = book
        self._selector = selectors.DefaultSelector()
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}
        self._pending = 0
        self._streams = 0
        for datagram in datagrams:
            self._watch(datagram, selectors.EVENT_READ, self._queries(datagram))
        for listener in listeners:
            self._watch(listener, selectors.EVENT_READ, self._connections(listener))

    def run(self) -> None:
        """Answer for ever."""
        while True:
            self.turn(self._next_timeout())

    def turn(self, timeout: float | None) -> None:
        """Wait for something to do once, and do it."""
        for ready, _ in self._selector.select(timeout):
            ready.data()
        now = time.monotonic()
        for key, (deadline, act) in list(self._timers.items()):
            if deadline <= now and self._timers.get(key) == (deadline, act):
                del self._timers[key]
                act()

    # -- questions -------------------------------------------------------------------------

    def _queries(self, datagram: socket.socket) -> Callable[[], None]:
        def read() -> None:
            self._book.refresh()
            for _ in range(_DRAIN):
                try:
                    query, client = datagram.recvfrom(4096)
                except OSError:
                    return  # drained, or an ICMP error of an earlier answer

                def send(reply: bytes, client: Any = client) -> None:
                    try:
                        datagram.sendto(reply, client)
                    except OSError:
                        return  # the client is gone; it would ask again

                self._ask(query, client[0], send, is_stream=False)

        return read

    def _ask(
        self, query: bytes, client: str, send: Callable[[bytes], None], *, is_stream: bool
    ) -> None:
        question = dns.parse(query)
        if question is None:
            if len(query) >= 12 and not query[2] & 0x80:
                send(dns.refusal(query, None, dns.NOTIMP if query[2] & 0x78 else dns.FORMERR))
            return
        own = self._own(query, question, client, None if is_stream else question.size)
        if own is not None:
            send(own)
            return
        servers = self._book.upstream(client)
        if not servers:
            is_short = len(question.name) == question.name[0] + 2
            send(dns.refusal(query, question, dns.NXDOMAIN if is_short else dns.SERVFAIL))
            return
        if self._pending >= _MOST_PENDING:
            send(dns.refusal(query, question, dns.SERVFAIL))
            return
        relay = _StreamRelay if is_stream else _DatagramRelay
        relay(self, query, question, servers, send)

    def _own(
        self, query: bytes, question: dns.Question, client: str, limit: int | None
    ) -> bytes | None:
        """The answer for a name that this node knows, or None."""
        view = self._book.view(client)
        found = view.addresses.get(question.name)
        if found is not None:
            if question.type not in (dns.A, dns.ANY):
                return dns.answer(query, question, ())
            if len(found) > 1:
                found = random.sample(found, len(found))
            return dns.answer(query, question, found, limit=limit)
        if question.type == dns.PTR:
            address = dns.reverse_address(question.name)
            name = view.names.get(address) if address else None
            if name:
                return dns.pointer(query, question, name, limit=limit)
        return None

    # -- TCP clients -----------------------------------------------------------------------

    def _connections(self, listener: socket.socket) -> Callable[[], None]:
        def accept() -> None:
            try:
                stream, client = listener.accept()
            except OSError:
                return
            if self._streams >= _MOST_STREAMS:
                stream.close()
                return
            self._streams += 1
            stream.setblocking(False)
            _Conversation(self, stream, client[0])

        return accept

    # -- plumbing --------------------------------------------------------------------------

    def _watch(self, file: socket.socket, events: int, act: Callable[[], None]) -> None:
        file.setblocking(False)
        self._selector.register(file, events, act)

    def _rewatch(self, file: socket.socket, events: int, act: Callable[[], None]) -> None:
        self._selector.modify(file, events, act)

    def _forget(self, file: socket.socket) -> None:
        self._timers.pop(file, None)
        try:
            self._selector.unregister(file)
        except KeyError:
            pass  # never watched: its connect failed at once
        file.close()

    def _after(self, key: object, seconds: float, act: Callable[[], None]) -> None:
        self._timers[key] = (time.monotonic() + seconds, act)

    def _next_timeout(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(d for d, _ in self._timers.values()) - time.monotonic())


class _Conversation:
    """A TCP client: length-prefixed queries one after the other (RFC 1035 section 4.2.2)."""

    def __init__(self, resolver: Resolver, stream: socket.socket, client: str) -> None:
        self._resolver, self._stream, self._client = resolver, stream, client
        self._input, self._output = b"", b""
        self._is_open = True
        resolver._watch(stream, selectors.EVENT_READ, self._turn)
        resolver._after(stream, _TCP_IDLE, self._close)

    def _turn(self) -> None:
        try:
            if self._output:
                self._output = self._output[self._stream.send(self._output) :]
            data = self._stream.recv(65536)
        except BlockingIOError:
            return self._expect()
        except OSError:
            return self._close()
        if not data:
            return self._close()
        self._input += data
        self._resolver._book.refresh()
        while len(self._input) >= 2:
            length = int.from_bytes(self._input[:2], "big")
            if len(self._input) < 2 + length:
                break
            query, self._input = self._input[2 : 2 + length], self._input[2 + length :]
            self._resolver._ask(query, self._client, self._send, is_stream=True)
        return self._expect()

    def _send(self, reply: bytes) -> None:
        if self._is_open:
            self._output += struct.pack(">H", len(reply)) + reply
            self._expect()

    def _expect(self) -> None:
        if self._is_open:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._output else 0)
            self._resolver._rewatch(self._stream, events, self._turn)
            self._resolver._after(self._stream, _TCP_IDLE, self._close)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._resolver._streams -= 1
            self._resolver._forget(self._stream)


class _Relay(abc.ABC):
    """One query on its way through the upstream servers, each tried in turn."""

    def __init__(
        self,
        resolver: Resolver,
        query: bytes,
        question: dns.Question,
        servers: Sequence[str],
        send: Callable[[bytes], None],
    ) -> None:
        self._resolver, self._original, self._question = resolver, query, question
        self._query = os.urandom(2) + query[2:]
        self._left: Iterator[str] = iter([*servers] * _ROUNDS)
        self._send = send
        self._file: socket.socket | None = None
        self._last = dns.refusal(query, question, dns.SERVFAIL)
        resolver._pending += 1
        self._try_next()

    def _try_next(self) -> None:
        self._drop()
        for server in self._left:
            try:
                self._file = self._start(server)
            except OSError:
                self._drop()
                continue  # no route to it, or no address at all: the next one
            self._resolver._after(self._file, _TRY, self._try_next)
            return
        self._finish(self._last)

    @abc.abstractmethod
    def _start(self, server: str) -> socket.socket:
        """Send the query to a server. Raises OSError."""

    def _got(self, reply: bytes) -> None:
        reply = self._original[:2] + reply[2:]
        if dns.code(reply) in (dns.SERVFAIL, dns.REFUSED):
            self._last = reply
            self._try_next()
        else:
            self._finish(reply)

    def _finish(self, reply: bytes) -> None:
        self._drop()
        self._resolver._pending -= 1
        self._send(reply)

    def _drop(self) -> None:
        if self._file is not None:
            self._resolver._forget(self._file)
            self._file = None


class _DatagramRelay(_Relay):
    def _start(self, server: str) -> socket.socket:
        file = _socket(server, socket.SOCK_DGRAM)
        self._file = file
        file.connect((server, PORT))
        file.send(self._query)
        self._resolver._watch(file, selectors.EVENT_READ, self._read)
        return file

    def _read(self) -> None:
        assert self._file is not None
        try:
            reply = self._file.recv(65535)
        except BlockingIOError:
            return
        except OSError:  # refused: nobody serves there
            self._try_next()
            return
        if dns.answers(self._query, reply):
            self._got(reply)


class _StreamRelay(_Relay):
    def _start(self, server: str) -> socket.socket:
        file = _socket(server, socket.SOCK_STREAM)
        self._file = file
        file.setblocking(False)
        file.connect_ex((server, PORT))
        self._output = struct.pack(">H", len(self._query)) + self._query
        self._input = b""
        self._resolver._watch(file, selectors.EVENT_WRITE, self._turn)
        return file

    def _turn(self) -> None:
        assert self._file is not None
        try:
            if self._output:
                self._output = self._output[self._file.send(self._output) :]
                if not self._output:
                    self._resolver._rewatch(self._file, selectors.EVENT_READ, self._turn)
                return
            data = self._file.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._try_next()
            return
        self._input += data
        length = int.from_bytes(self._input[:2], "big")
        if len(self._input) >= 2 + length >= 14:
            reply = self._input[2 : 2 + length]
            if dns.answers(self._query, reply):
                self._got(reply)
            else:
                self._try_next()
        elif not data:
            self._try_next()


def _socket(server: str, kind: int) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)


def listen(
    addresses: Sequence[str], port: int = PORT
) -> tuple[list[socket.socket], list[socket.socket]]:
    """UDP sockets and TCP listeners in the calling thread's namespace. Raises OSError."""
    datagrams, listeners = [], []
    for address in addresses:
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagram.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for file in (datagram, listener):
            file.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            file.bind((address, port))
        listener.listen(64)
        datagrams.append(datagram)
        listeners.append(listener)
    return datagrams, listeners


def main(argv: Sequence[str] | None = None) -> int:
    """Run the resolver of a fabric: `--run DIR` holds names.json, `--netns NAME` is the fabric."""
    parser = argparse.ArgumentParser(prog="orchestra resolver")
    parser.add_argument("--run", default="/run/orchestra", help="directory of names.json")
    parser.add_argument("--netns", default="orchestra", help="name of the fabric's namespace")
    parser.add_argument("--ready", type=int, help=argparse.SUPPRESS)  # closed when it listens
    options = parser.parse_args(argv)
    namespace = netns.open_named(options.netns)
    if namespace is None:
        print(f"resolver: there is no network namespace {options.netns}", file=sys.stderr)
        return 1
    with locked(options.run) as lock:
        if lock is None:
            print(f"resolver: another one serves {options.run}", file=sys.stderr)
            return 1
        with netns.entered(namespace):
            datagrams, listeners = listen(LISTEN)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {os.fstat(namespace).st_ino}\n".encode(), 0)
        os.close(namespace)
        if options.ready is not None:
            os.write(options.ready, b"1")
            os.close(options.ready)
        Resolver(Book(f"{options.run}/names.json"), datagrams, listeners).run()
    return 0


@contextmanager
def locked(run: str) -> Iterator[int | None]:
    """The descriptor of resolver.lock, locked; None if another process has it.

    The holder writes its process number and the inode of the namespace it serves into it.
    """
    os.makedirs(run, 0o755, exist_ok=True)
    lock = os.open(f"{run}/resolver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main())
