"""The overlay and the resolver, on the networking lab's namespaces.

TCP from a container on one node to a container on another, beside the same two namespaces joined
by hand with vxlan, bridge and veth; rounds alternate. A DNS query from a container beside a bare
UDP echo over the same wire, which is what any resolver costs at least.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

from orchestra.linux import netns
from orchestra.model.fabric import NameTable
from tests.fabric.lab import Host, Space, endpoint, state, underlay
from tests.fabric.test_dns import query

SECONDS = 0.4
BUFFER = 1 << 20


def measure(rounds: int) -> list[dict[str, Any]]:
    with underlay(2) as (hosts, _), contextlib.ExitStack() as stack:
        spaces = _containers(hosts)
        for space in spaces:
            stack.callback(space.close)
        by_hand = _by_hand(hosts)
        for space in by_hand:
            stack.callback(space.close)
        ours, theirs = [], []
        for _ in range(max(3, min(rounds, 8))):
            ours.append(_gigabits(*spaces, "10.18.2.2"))
            theirs.append(_gigabits(*by_hand, "10.99.0.2"))
        dns, echo = _queries(hosts[0], spaces[0], rounds * 50)
    speed, hand = statistics.median(ours), statistics.median(theirs)
    return [
        _row("overlay TCP, container to container", "Gbit/s", speed, 0.95 * hand,
             "hand-made vxlan", hand, "higher"),
        _row("DNS query in a container, p50", "us", dns, 50.0, "bare UDP echo", echo, "lower"),
    ]  # fmt: skip


def _row(
    name: str, unit: str, ours: float, budget: float, peer: str, value: float, better: str
) -> dict[str, Any]:
    return {
        "group": "cluster",
        "name": name,
        "unit": unit,
        "ours": ours,
        "budget": budget,
        "peer": peer,
        "peer_value": value,
        "better": better,
    }


def _containers(hosts: list[Host]) -> tuple[Space, Space]:
    made = []
    for host in hosts:
        one = endpoint(f"c{host.index}", f"10.18.{host.index}.2")
        names = NameTable({one.address: ("net",)}, {"net": {"web": ("10.18.0.10",)}})
        wanted = state(host.index, len(hosts), (one,), names=names)
        host.apply(wanted)
        made.append(host.attach([one], wanted))
        host.apply(wanted)
        host.do("resolver")
    return made[0], made[1]


def _by_hand(hosts: list[Host]) -> tuple[Space, Space]:
    """A container on each host, joined as one would with ip(8) alone."""
    made = []
    for host in hosts:
        with netns.fresh() as inside:
            space = Space(inside)
        other = 3 - host.index
        path = f"/proc/{os.getpid()}/fd/{inside}"
        host.space.ip(
            f"ip link add hand0 type vxlan id 99 local 192.0.2.{host.index} "
            f"remote 192.0.2.{other} dstport 4789",
            "ip link add handbr type bridge",
            f"ip link add hand1 type veth peer name eth0 netns {path}",
            "ip link set hand0 mtu 1450 master handbr up",
            "ip link set hand1 mtu 1450 master handbr up",
            "ip link set handbr up",
        )
        space.ip(
            f"ip addr add 10.99.0.{host.index}/24 dev eth0",
            "ip link set eth0 mtu 1450 up",
        )
        made.append(space)
    return made[0], made[1]


def _gigabits(source: Space, sink: Space, address: str) -> float:
    """One TCP stream for SECONDS; the receiver is a process of its own."""
    with sink.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 5001))
        listener.listen()
        process = multiprocessing.get_context("fork").Process(target=_drain, args=(listener,))
        process.start()
        data, sent = bytes(BUFFER), 0
        with source.socket() as stream:
            stream.connect((address, 5001))
            begun = time.perf_counter()
            while time.perf_counter() - begun < SECONDS:
                sent += stream.send(data)
            stream.shutdown(socket.SHUT_WR)
            stream.recv(1)  # the receiver has everything
            took = time.perf_counter() - begun
        process.join()
    return sent * 8 / took / 1e9


def _drain(listener: socket.socket) -> None:
    stream, _ = listener.accept()
    with stream:
        room = bytearray(BUFFER)
        while stream.recv_into(room):
            continue


def _queries(host: Host, space: Space, count: int) -> tuple[float, float]:
    """Medians, in microseconds, of a DNS query and of an echo answered in the fabric."""
    message = query("web")
    with host.fabric.socket(socket.SOCK_DGRAM) as echoing, contextlib.ExitStack() as stack:
        echoing.bind(("127.0.0.11", 0))
        process = multiprocessing.get_context("fork").Process(target=_echo, args=(echoing,))
        process.start()
        stack.callback(process.join)
        stack.callback(process.terminate)
        # the fabric lets in nothing but DNS
        table = host.fabric.run("nft", "list", "tables").split()[-1]
        port = echoing.getsockname()[1]
        host.fabric.run("nft", f"insert rule inet {table} local_in udp dport {port} accept")
        dns = _latency(space, ("127.0.0.11", 53), message, count)
        echo = _latency(space, ("127.0.0.11", port), message, count)
    return dns, echo


def _echo(echoing: socket.socket) -> None:
    echoing.settimeout(None)
    while True:
        data, client = echoing.recvfrom(2000)
        echoing.sendto(data, client)


def _latency(space: Space, to: tuple[str, int], message: bytes, count: int) -> float:
    with space.socket(socket.SOCK_DGRAM) as client:
        client.settimeout(None)
        client.connect(to)

        def ask() -> float:
            begun = time.perf_counter()
            client.send(message)
            client.recv(2000)
            return time.perf_counter() - begun

        return statistics.median(ask() for _ in range(count)) * 1e6
