"""The resolver as a process: who asks decides what is answered, the rest goes upstream."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.fabric import dns, resolver_process
from orchestra.fabric.fabric import write_names
from orchestra.linux import netns
from orchestra.model.fabric import NameTable
from orchestra.model.paths import NodePaths
from tests.fabric.lab import Space
from tests.fabric.test_dns import ADDRESSES, ask, edns, query

pytestmark = pytest.mark.root

SERVERS = ("127.0.0.53", "127.0.0.54", "127.0.0.55")
MANY = tuple(f"10.18.1.{n}" for n in range(1, 101))
TABLE = NameTable(
    clients={"127.0.0.1": ("one", "two"), "127.0.0.2": ("two",)},
    names={
        "one": {"web": ("10.18.0.10",), "both": ("10.18.0.1",), "many": MANY, "gone": ()},
        "two": {"db": ("10.19.0.10",), "both": ("10.19.0.1",)},
    },
    hosts={"host.docker.internal": ("10.16.0.1",)},
    upstream={"": SERVERS, "127.0.0.3": (), "127.0.0.4": (SERVERS[1],)},
)


class Upstream:
    """A DNS server of the outside: answers by `rule`, over UDP and TCP."""

    def __init__(self, space: Space, address: str, rule: Any) -> None:
        self.rule = rule
        self.asked: list[bytes] = []
        self.datagram, self.stream = space.socket(socket.SOCK_DGRAM), space.socket()
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for file in (self.datagram, self.stream):
            file.bind((address, 53))
            file.settimeout(None)
        self.stream.listen()
        self.threads = [threading.Thread(target=w) for w in (self.datagrams, self.streams)]
        for thread in self.threads:
            thread.start()

    def datagrams(self) -> None:
        while True:
            message, client = self.datagram.recvfrom(4096)
            if client is None:
                return
            self.asked.append(message)
            reply = self.rule(message)
            if reply is not None:
                self.datagram.sendto(reply, client)

    def streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self.stream.accept()
                with stream:
                    message = stream.recv(4096)[2:]
                    self.asked.append(message)
                    reply = self.rule(message)
                    if reply is not None:
                        stream.sendall(struct.pack(">H", len(reply)) + reply)

    def close(self) -> None:
        for file in (self.datagram, self.stream):
            with contextlib.suppress(OSError):
                file.shutdown(socket.SHUT_RDWR)  # wakes its thread, which must let go of the port
        for thread in self.threads:
            thread.join()
        for file in (self.datagram, self.stream):
            file.close()


class Lab:
    def __init__(self, run: Path, space: Space, name: str) -> None:
        self.run, self.space, self.name = str(run), space, name
        self.paths = NodePaths(run=self.run)
        self.identity = os.fstat(space.descriptor).st_ino

    def ensure(self) -> None:
        # the resolver's upstream side is where it is started: here the same namespace
        with netns.entered(self.space.descriptor):
            resolver_process.ensure(self.run, self.name, self.identity)

    def ask(self, message: bytes, source: str = "127.0.0.1") -> bytes:
        with self.space.socket(socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            client.connect(("127.0.0.11", 53))
            client.send(message)
            return client.recv(65535)

    def ask_stream(self, *messages: bytes, source: str = "127.0.0.1") -> list[bytes]:
        replies = []
        with self.space.socket() as client:
            client.bind((source, 0))
            client.connect(("127.0.0.11", 53))
            client.sendall(b"".join(struct.pack(">H", len(m)) + m for m in messages))
            with client.makefile("rb") as file:
                for _ in messages:
                    replies.append(file.read(int.from_bytes(file.read(2), "big")))
        return replies

    def names(self, name: str, source: str = "127.0.0.1") -> list[str]:
        return addresses(self.ask(query(name), source))


def addresses(reply: bytes) -> list[str]:
    count = struct.unpack_from(">H", reply, 6)[0]
    records = reply[len(reply) - 16 * count :]
    return [socket.inet_ntoa(records[i * 16 + 12 : i * 16 + 16]) for i in range(count)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name = f"orc-test-dns-{os.getpid()}"
    space = Space(netns.make_named(name))
    made = Lab(tmp_path_factory.mktemp("run"), space, name)
    try:
        space.ip("ip link set lo up")
        write_names(made.paths, TABLE)
        made.ensure()
        yield made
    finally:
        resolver_process.stop(made.run)
        netns.delete_named(name)
        space.close()


@pytest.fixture
def upstream(lab: Lab) -> Iterator[list[Upstream]]:
    def known(message: bytes) -> bytes:
        return dns.answer(message, ask(message), ADDRESSES[:1])

    servers = [Upstream(lab.space, address, known) for address in SERVERS[:2]]
    yield servers
    for server in servers:
        server.close()


def test_a_client_sees_the_names_of_its_networks_only(lab: Lab, upstream) -> None:
    assert lab.names("web") == ["10.18.0.10"]
    assert lab.names("WEB.") == ["10.18.0.10"]
    assert lab.names("db", "127.0.0.2") == ["10.19.0.10"]
    assert lab.names("web", "127.0.0.2") == ["10.18.1.1"]  # upstream's answer
    assert lab.names("host.docker.internal", "127.0.0.9") == ["10.16.0.1"]


def test_of_a_name_in_two_networks_the_first_network_answers(lab: Lab) -> None:
    assert lab.names("both") == ["10.18.0.1"]
    assert lab.names("both", "127.0.0.2") == ["10.19.0.1"]


def test_a_known_name_has_no_data_of_other_types_and_is_not_asked_upstream(lab: Lab) -> None:
    for message in (query("web", 28), query("web", 65), query("gone")):
        reply = lab.ask(message)
        assert dns.code(reply) == dns.NOERROR
        assert reply[6:8] == b"\0\0"


def test_addresses_have_names(lab: Lab) -> None:
    reply = lab.ask(query("10.0.18.10.in-addr.arpa", dns.PTR))
    assert reply.endswith(b"\x03web\0")


def test_many_addresses_are_cut_over_udp_whole_over_tcp_and_in_any_order(lab: Lab) -> None:
    assert lab.ask(query("many"))[2] & 2
    assert sorted(addresses(lab.ask(query("many", extra=edns(4096), extras=1)))) == sorted(MANY)
    one, two = lab.ask_stream(query("many"), query("many"))
    assert sorted(addresses(one)) == sorted(MANY) == sorted(addresses(two))
    assert addresses(one) != addresses(two)


def test_what_is_not_known_is_relayed_under_another_id(lab: Lab, upstream) -> None:
    assert lab.names("example.org") == ["10.18.1.1"]
    assert addresses(lab.ask_stream(query("example.org"))[0]) == ["10.18.1.1"]
    asked = upstream[0].asked
    assert len(asked) == 2
    assert asked[0][2:] == query("example.org")[2:]
    assert len({query()[:2], asked[0][:2], asked[1][:2]}) > 1


def test_a_server_that_refuses_or_fails_hands_over_to_the_next(lab: Lab, upstream) -> None:
    upstream[0].rule = lambda m: dns.refusal(m, dns.parse(m), dns.SERVFAIL)
    assert lab.names("example.org") == ["10.18.1.1"]
    assert addresses(lab.ask_stream(query("example.org"))[0]) == ["10.18.1.1"]
    upstream[0].close()  # now its port is closed
    assert lab.names("example.org") == ["10.18.1.1"]
    assert addresses(lab.ask_stream(query("example.org"))[0]) == ["10.18.1.1"]


def test_a_server_that_is_silent_hands_over_to_the_next(lab: Lab, upstream) -> None:
    upstream[0].rule = lambda m: None
    assert lab.names("example.org") == ["10.18.1.1"]


def test_an_answer_to_another_question_is_not_passed_on(lab: Lab, upstream) -> None:
    def forged(message: bytes) -> bytes:
        evil = query("evil.org")
        return message[:2] + dns.answer(evil, ask(evil), ADDRESSES[5:6])[2:]

    upstream[0].rule = forged
    assert lab.names("example.org") == ["10.18.1.1"]


def test_the_last_refusal_is_passed_on_when_every_server_fails(lab: Lab, upstream) -> None:
    for server in upstream:
        server.rule = lambda m: dns.refusal(m, dns.parse(m), dns.REFUSED)
    assert dns.code(lab.ask(query("example.org"))) == dns.REFUSED


def test_a_client_with_its_own_servers_asks_those(lab: Lab, upstream) -> None:
    assert lab.names("example.org", "127.0.0.4") == ["10.18.1.1"]
    assert not upstream[0].asked


def test_without_servers_short_names_do_not_exist_and_others_fail(lab: Lab) -> None:
    assert dns.code(lab.ask(query("nosuch"), "127.0.0.3")) == dns.NXDOMAIN
    assert dns.code(lab.ask(query("no.such"), "127.0.0.3")) == dns.SERVFAIL


def test_broken_messages_are_refused_and_do_no_harm(lab: Lab) -> None:
    with lab.space.socket(socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.11", 53))
        client.send(b"\0\1")
        client.send(b"\x12\x34\x28\0" + bytes(8))  # an UPDATE
        assert dns.code(client.recv(100)) == dns.NOTIMP
        client.send(b"\x12\x34\0\0\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1")
        assert dns.code(client.recv(100)) == dns.FORMERR
    with lab.space.socket() as client:
        client.connect(("127.0.0.11", 53))
        client.sendall(b"\0\5abc")  # and no more
    assert lab.names("web") == ["10.18.0.10"]


def test_a_replaced_table_is_read_and_a_broken_one_is_not(lab: Lab) -> None:
    changed = NameTable(clients={"127.0.0.1": ("one",)}, names={"one": {"web": ("10.18.0.99",)}})
    write_names(lab.paths, changed)
    assert lab.names("web") == ["10.18.0.99"]
    Path(lab.paths.names).write_text("{")
    assert lab.names("web") == ["10.18.0.99"]
    write_names(lab.paths, TABLE)
    assert lab.names("web") == ["10.18.0.10"]
    assert json.loads(Path(lab.paths.names).read_text())["hosts"]


def test_one_resolver_serves_a_directory_and_a_dead_one_is_replaced(lab: Lab) -> None:
    first = resolver_process.serving(lab.run)
    assert first is not None
    lab.ensure()
    assert resolver_process.serving(lab.run) == first
    ended = os.pidfd_open(first[0])
    os.kill(first[0], signal.SIGKILL)
    select.select([ended], [], [])
    os.close(ended)
    lab.ensure()
    second = resolver_process.serving(lab.run)
    assert second is not None
    assert second[0] != first[0]
    assert lab.names("web") == ["10.18.0.10"]


def test_a_resolver_that_cannot_start_says_why(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no network namespace nosuch"):
        resolver_process.ensure(str(tmp_path), "nosuch", 1)
