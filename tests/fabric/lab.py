"""The lab's topology in namespaces: hosts on one underlay bridge, a client outside, containers.

Every host is a process of `host_process`; everything else are sockets that the test makes inside
the namespace of its choice. Nothing has a global name but the fabrics' namespaces, which the hosts
remove at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from orchestra.linux import netns
from orchestra.model.assignment import ClusterNet, Peer
from orchestra.model.codec import to_json
from orchestra.model.fabric import (
    FabricEndpoint,
    FabricNetwork,
    FabricPort,
    FabricService,
    FabricState,
    NameTable,
)

PATIENCE = 5.0


class Space:
    """A namespace of the lab, with what tests do in it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def ip(self, *commands: str) -> None:
        for command in commands:
            self.run(*command.split())

    def run(self, *command: str, stdin: str | None = None) -> str:
        with netns.entered(self.descriptor):
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        with netns.entered(self.descriptor):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(PATIENCE)
        return made

    def ask(self, address: str, port: int, *, udp: bool = False, source: str = "") -> str:
        """What the server at an address answers: "<its name> <the client it saw>"."""
        with self.socket(socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as client:
            if source:
                client.bind((source, 0))
            client.connect((address, port))
            if udp:
                client.send(b"hello")
            return client.recv(200).decode()

    def raw(self, packet: bytes, address: str) -> None:
        """Send an IP packet as it is, header included."""
        with netns.entered(self.descriptor):
            made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with made:
            made.sendto(packet, (address, 0))

    def close(self) -> None:
        os.close(self.descriptor)


class Server:
    """Tells each client the server's name and the client's address, over TCP and UDP."""

    def __init__(self, space: Space, name: str, port: int = 80) -> None:
        self.name = name
        self._stream, self._datagram = space.socket(), space.socket(socket.SOCK_DGRAM)
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._stream.bind(("0.0.0.0", port))
        self._stream.listen(64)
        self._stream.settimeout(None)
        self._datagram.bind(("0.0.0.0", port))
        self._datagram.settimeout(None)
        works = (self._serve_streams, self._serve_datagrams)
        self._threads = [threading.Thread(target=work) for work in works]
        for thread in self._threads:
            thread.start()

    def _serve_streams(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                stream, client = self._stream.accept()
                with stream:
                    stream.sendall(f"{self.name} {client[0]}".encode())

    def _serve_datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, client = self._datagram.recvfrom(65535)
                if client is None:  # shut down
                    return
                self._datagram.sendto(f"{self.name} {client[0]}".encode(), client)

    def close(self) -> None:
        for file in (self._stream, self._datagram):
            with contextlib.suppress(OSError):
                file.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._stream.close()
        self._datagram.close()


class Refused(Exception):
    """The host's fabric raised; the text is its error."""


class Host:
    """A node: its namespace, and the process that drives its fabric."""

    def __init__(self, index: int, directory: str) -> None:
        with netns.fresh() as made:
            self.space = Space(made)
        self.space.ip("ip link set lo up")
        self.index = index
        self.directory = f"{directory}/{index}"
        os.makedirs(f"{self.directory}/run")
        self.name = f"orc-test-{os.getpid()}-{id(self):x}"
        self._container: dict[str, Space] = {}
        self.start()

    def start(self) -> None:
        """Start the driving process, as an agent starts again after its death."""
        with netns.entered(self.space.descriptor):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fabric.host_process", self.directory, self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def do(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([command, to_json(arguments)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise EOFError
        result = json.loads(line)
        if isinstance(result, dict) and "error" in result:
            raise Refused(result["error"])
        return result

    def apply(self, state: FabricState) -> list[str]:
        return self.do("apply", state=state)

    def attach(self, endpoints: list[FabricEndpoint], state: FabricState) -> Space:
        number = self.do(
            "attach", container=endpoints[0].container, endpoints=endpoints, state=state
        )
        space = self.open(number)
        space.number = number  # type: ignore[attr-defined]
        return space

    def open(self, number: int) -> Space:
        return Space(os.open(f"/proc/{self.process.pid}/fd/{number}", os.O_RDONLY))

    @property
    def fabric(self) -> Space:
        found = netns.open_named(self.name)
        assert found is not None
        return Space(found)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def close(self) -> None:
        """Remove the fabric and end."""
        if self.process.poll() is None:
            self.do("destroy")
        self.process.communicate()
        self.space.close()
        assert netns.open_named(self.name) is None


NETWORK = FabricNetwork("net", "net", "10.18.0.0/16", "10.18.0.1")
OTHER = FabricNetwork("other", "other", "10.19.0.0/16", "10.19.0.1")
INTERNAL = FabricNetwork("in", "in", "10.20.0.0/16", "10.20.0.1", internal=True)
LOCAL = FabricNetwork(
    "bridge", "bridge", "10.17.0.0/20", "10.17.0.1", local=True, block="10.17.0.0/20"
)
CLUSTER_NETWORKS = (NETWORK, OTHER, INTERNAL)
VIP, EMPTY_VIP = "10.18.0.10", "10.18.0.11"
CLIENT = "192.0.2.100"


def container_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def endpoint(name: str, address: str, network: str = "net", interface: str = "eth0"):
    mac = "02:42:" + bytes(int(p) for p in address.split(".")).hex(":")
    return FabricEndpoint(container_id(name), network, address, interface, mac)


@contextlib.contextmanager
def underlay(count: int) -> Iterator[tuple[list[Host], Space]]:
    """Hosts 192.0.2.1 .. on a bridge, and a client at 192.0.2.100."""
    directory = tempfile.mkdtemp(prefix="orchestra-fabric-")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        hosts: list[Host] = []
        for index in range(1, count + 1):
            hosts.append(Host(index, directory))
            stack.callback(hosts[-1].close)
        spaces = []
        for _ in ("underlay", "client"):
            with netns.fresh() as made:
                spaces.append(Space(made))
            stack.callback(spaces[-1].close)
        bridge, client = spaces
        bridge.ip("ip link set lo up", "ip link add name ulbr type bridge", "ip link set ulbr up")
        ends = [(f"e{h.index}", h.space, f"192.0.2.{h.index}") for h in hosts]
        for device, space, address in [*ends, ("ecl", client, CLIENT)]:
            path = f"/proc/{os.getpid()}/fd/{space.descriptor}"
            bridge.ip(
                f"ip link add {device} type veth peer name eth0 netns {path}",
                f"ip link set {device} master ulbr up",
            )
            space.ip(
                "ip link set lo up", f"ip addr add {address}/24 dev eth0", "ip link set eth0 up"
            )
        yield hosts, client


def state(
    node: int,
    nodes: int,
    endpoints: tuple[FabricEndpoint, ...] = (),
    *,
    targets: tuple[str, ...] = (),
    ports: tuple[FabricPort, ...] = (),
    names: NameTable | None = None,
    generation: int = 1,
) -> FabricState:
    """What node `node` of `nodes` shall be, with one service behind VIP."""
    peers = tuple(Peer(i, f"id{i}", f"n{i}", f"192.0.2.{i}") for i in range(1, nodes + 1))
    networks = [LOCAL]
    for network in CLUSTER_NETWORKS:
        stem = network.subnet.rsplit(".", 2)[0]
        blocks = {i: f"{stem}.{i}.0/24" for i in range(1, nodes + 1)}
        mine = blocks.pop(node)
        networks.append(
            FabricNetwork(
                network.id,
                network.name,
                network.subnet,
                network.gateway,
                internal=network.internal,
                block=mine,
                remote_blocks=blocks,
            )
        )
    return FabricState(
        generation,
        ClusterNet("c1", "10.16.0.0/12", 7001, self_index=node, peers=peers),
        tuple(networks),
        endpoints,
        (FabricService("web", VIP, targets), FabricService("empty", EMPTY_VIP)),
        ports,
        names or NameTable(),
    )
