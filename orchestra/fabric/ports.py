"""Holding the host's ports that are published, so that a conflict is seen and names its owner.

A published port is translated before any socket sees it, so nothing would stop two programs from
"having" it. The agent therefore keeps each bound, without listening: others get EADDRINUSE, and
where somebody was first the error says who. Sources: ip(7), the port rules of bind(2), proc(5).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from attrs import frozen

from orchestra.model.fabric import FabricPort

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_IPPROTO_SCTP = 132


@frozen
class Hold:
    """What is held; `host_ip` "" is every address."""

    protocol: str
    host_ip: str
    port: int


class Ports:
    """The ports held by this process."""

    def __init__(self) -> None:
        self._held: dict[Hold, socket.socket] = {}

    def reserve(self, ports: Iterable[FabricPort]) -> dict[FabricPort, str]:
        """Hold exactly these ports; return those that cannot be held, each with the reason."""
        ports = tuple(ports)
        wanted = {Hold(p.protocol, p.host_ip, p.port) for p in ports}
        for hold in set(self._held) - wanted:
            self._held.pop(hold).close()
        refused = {}
        for port in ports:
            hold = Hold(port.protocol, port.host_ip, port.port)
            if hold in self._held:
                continue
            try:
                self._held[hold] = _bind(hold)
            except OSError as error:
                refused[port] = f"cannot publish {_text(port)}: {_reason(hold, error)}"
        return refused

    def release(self) -> None:
        """Let every port go."""
        self.reserve(())


def _bind(hold: Hold) -> socket.socket:
    if hold.protocol == "sctp":
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_SCTP)
    else:
        held = socket.socket(socket.AF_INET, _KINDS[hold.protocol])
    try:
        address = (hold.host_ip or "0.0.0.0", hold.port)
        try:
            held.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or hold.protocol != "tcp" or owner(hold):
                raise
            # Only connections in TIME-WAIT are left. Reuse is switched off again after bind, so
            # that whoever wants to listen here is refused by listen(2) if not by bind(2).
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return held
    except BaseException:
        held.close()
        raise


def _text(port: FabricPort) -> str:
    at = f"{port.host_ip}:" if port.host_ip else ""
    kind = "" if port.protocol == "tcp" else f"/{port.protocol}"
    label = f" for {port.label}" if port.label else ""
    return f"{at}{port.port}{kind}{label}"


def _reason(hold: Hold, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"in use by {owner(hold) or 'another program'}; stop it or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this host has no address {hold.host_ip}"
    return error.strerror or str(error)


def owner(hold: Hold) -> str:
    """Who has a port, as "nginx (pid 812)"; "" if nobody seems to (see proc(5), /proc/net/tcp)."""
    inodes = set()
    for suffix in ("", "6"):
        inodes |= _inodes(f"/proc/net/{hold.protocol}{suffix}", hold)
    if not inodes:
        return ""
    links = {f"socket:[{inode}]" for inode in inodes}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if links & _open_files(pid):
            return f"{_command(pid)} (pid {pid})"
    return "a process that cannot be seen from here"


def _inodes(table: str, hold: Hold) -> set[str]:
    found = set()
    try:
        with open(table) as file:
            next(file)
            for line in file:
                fields = line.split()
                port, state, inode = int(fields[1].rsplit(":", 1)[1], 16), fields[3], fields[9]
                # of TCP only listeners and bound sockets bar a port, never old connections
                if port == hold.port and inode != "0" and state in ("0A", "07"):
                    found.add(inode)
    except FileNotFoundError:
        return set()
    return found


def _open_files(pid: str) -> set[str]:
    directory, found = f"/proc/{pid}/fd", set()
    try:
        for name in os.listdir(directory):
            found.add(os.readlink(f"{directory}/{name}"))
    except OSError:
        return found  # the process ended, or the file was closed, while we looked
    return found


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "a process"
