"""The lab's hosts: a few machines of namespaces, their wire, and a client beside them.

Each host is one PID 1 (node_init.py) with its own disk under the lab's state directory. The bridge
that joins them lives in a network namespace of its own, and so does the client; both are bound
under the lab's run directory. Here they are switched on and off, cut off, and given commands.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from attrs import frozen

from orchestra.model.errors import Conflict, Failed, Invalid, NotFound, Unavailable
from orchestra.testing.lab import cgroups, namespaces

STATE = "/var/lib/orchestra-lab"
RUN = "/run/orchestra-lab"
NETWORK = "10.77.0"
CLIENT = f"{NETWORK}.100"
NODE_INIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node_init.py")


@frozen
class LabHost:
    index: int
    name: str
    address: str
    host_key: str = ""  # "ssh-ed25519 AAAA..."


@frozen
class Lab:
    name: str
    hosts: tuple[LabHost, ...]

    @property
    def state(self) -> str:
        return f"{STATE}/{self.name}"

    @property
    def run(self) -> str:
        return f"{RUN}/{self.name}"

    @property
    def wire(self) -> str:
        """The network namespace of the bridge."""
        return f"{self.run}/wire"

    @property
    def client(self) -> str:
        """The network namespace of the machine outside the cluster, also the operator's."""
        return f"{self.run}/client"

    @property
    def identity(self) -> str:
        """The operator's private key, authorized on every host."""
        return f"{self.state}/id_ed25519"

    def root(self, host: LabHost) -> str:
        """The host's disk."""
        return f"{self.state}/hosts/{host.name}/root"

    def spec(self, host: LabHost) -> str:
        return f"{self.state}/hosts/{host.name}/spec.json"

    def console(self, host: LabHost) -> str:
        return f"{self.state}/hosts/{host.name}/console.log"

    def host(self, name: str) -> LabHost:
        """NotFound names the hosts there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(h.name for h in self.hosts)
        raise NotFound(f"lab {self.name} has no node {name!r}; it has {names}")


def names() -> list[str]:
    """Every lab of this machine, half-made ones too."""
    found = set()
    for directory in (STATE, RUN):
        with suppress(FileNotFoundError):
            found.update(os.listdir(directory))
    return sorted(found)


def load(name: str) -> Lab:
    """NotFound names the way out where there is no such lab, or an unfinished one."""
    valid(name)
    try:
        with open(f"{STATE}/{name}/lab.json") as file:
            data = json.load(file)
    except FileNotFoundError:
        hint = "`orchestra lab up`" if name == "lab" else f"`orchestra lab up --name {name}`"
        raise NotFound(f"there is no lab {name!r}; {hint} makes it") from None
    return Lab(name, tuple(LabHost(**host) for host in data["hosts"]))


def valid(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise Invalid(f"cannot name a lab {name!r}: use up to 31 of a-z, 0-9 and -")


def plug(lab: Lab, port: str, number: int, netns: str, address: str) -> None:
    """Run a wire from the bridge's port to eth0 of `netns`; the MAC is the same at each boot."""
    handle = os.open(netns, os.O_RDONLY)
    try:
        there = f"/proc/{os.getpid()}/fd/{handle}"
        namespaces.ip(
            lab.wire,
            (
                f"link add {port} type veth peer name eth0 address 02:6c:61:62:00:{number:02x} "
                f"netns {there}",
                f"link set {port} master lab up",
            ),
        )
        namespaces.ip(
            there,
            ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"),
        )
    finally:
        os.close(handle)


def write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)


# --- power ----------------------------------------------------------------------------------


def pid(lab: Lab, host: LabHost) -> int | None:
    """The host's PID 1 as this machine numbers it; None where the host is off."""
    try:
        with open(f"{lab.run}/{host.name}.pid") as file:
            number = int(file.read())
        with open(f"/proc/{number}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return number if lab.spec(host).encode() in words else None


def boot(lab: Lab, host: LabHost) -> None:
    """Switch the host on: with its disk, its wire and its address. Conflict where it is on.

    Returns when sshd listens and what is installed to start at boot was started. Failed carries
    the end of the host's console.
    """
    if pid(lab, host) is not None:
        raise Conflict(f"{host.name} of lab {lab.name} is on already")
    if not os.path.exists(lab.wire):
        raise Unavailable(
            f"lab {lab.name} has lost its wire (the machine restarted?); "
            f"`orchestra lab down --name {lab.name}` clears it away"
        )
    hierarchies = cgroups.of_this_machine()
    spec = {
        "name": host.name,
        "root": lab.root(host),
        "console": lab.console(host),
        "hierarchies": [
            {
                "directory": h.directory,
                "kind": h.kind,
                "options": h.options,
                "cgroup": cgroups.make(h, lab.name, host.name),
            }
            for h in hierarchies
        ],
        "links": cgroups.links() if any(h.directory for h in hierarchies) else {},
    }
    write(lab.spec(host), json.dumps(spec), 0o600)
    with open(lab.console(host), "ab") as console:
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", NODE_INIT, lab.spec(host)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=console,
        )
    with launcher:
        assert launcher.stdin is not None and launcher.stdout is not None
        line = launcher.stdout.readline()
        if not line:
            raise Failed(f"{host.name} did not boot: {tail(lab.console(host))}")
        write(f"{lab.run}/{host.name}.pid", line.decode())
        subprocess.run(
            ["nsenter", f"--net={lab.wire}", "ip", "link", "del", f"p{host.index}"],
            capture_output=True,
            check=False,  # the port of the last life may be gone already
        )
        plug(lab, f"p{host.index}", host.index, f"/proc/{int(line)}/ns/net", host.address)
        launcher.stdin.write(b"wired\n")
        launcher.stdin.flush()
        if launcher.stdout.readline() != b"up\n":
            raise Failed(f"{host.name} did not boot: {tail(lab.console(host))}")


def tail(path: str, lines: int = 8) -> str:
    with open(path, errors="replace") as file:
        return "\n".join(file.read().splitlines()[-lines:])


def kill(lab: Lab, host: LabHost) -> None:
    """Cut the power: every process, mount and wire of the host is gone; its disk stays.

    Conflict where the host is off already.
    """
    number = pid(lab, host)
    if number is None:
        raise Conflict(f"{host.name} of lab {lab.name} is off already")
    end((number,))
    os.unlink(f"{lab.run}/{host.name}.pid")
    for directory in cgroups.top_directories(lab.name):
        cgroups.remove(f"{directory}/{host.name}")


def end(numbers: Sequence[int], patience: float = 15.0) -> None:
    """Kill processes and wait until the kernel has let go of them (pidfd_open(2))."""
    handles = []
    for number in numbers:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(number))
            os.kill(number, signal.SIGKILL)
    for handle in handles:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(patience * 1000):
            raise Failed("a process of the lab does not end; see /proc/PID/stack of its PID 1")
        os.close(handle)


def cut(lab: Lab, host: LabHost) -> None:
    """Pull the host's network cable; flows that are under way stop too."""
    _port(lab, host, "down")


def heal(lab: Lab, host: LabHost) -> None:
    """Plug the cable back in."""
    _port(lab, host, "up")


def _port(lab: Lab, host: LabHost, state: str) -> None:
    if pid(lab, host) is None:
        raise Conflict(f"{host.name} of lab {lab.name} is off; `orchestra lab boot {host.name}`")
    namespaces.ip(lab.wire, (f"link set p{host.index} {state}",))


def states(lab: Lab) -> dict[str, str]:
    """Each host's state: "on", "cut" (on, cable out) or "off"."""
    done = subprocess.run(
        ["nsenter", f"--net={lab.wire}", "ip", "-json", "link"], capture_output=True, check=False
    )
    links = json.loads(done.stdout) if done.returncode == 0 else []
    up = {link["ifname"] for link in links if "UP" in link["flags"]}
    return {
        host.name: "off" if pid(lab, host) is None else "on" if f"p{host.index}" in up else "cut"
        for host in lab.hosts
    }


def over_all(lab: Lab, act: Callable[[Lab, LabHost], None]) -> None:
    """Do the same to every host at once; the first failure is raised when all are done."""
    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(act, lab, host) for host in lab.hosts]:
            result.result()


# --- running things --------------------------------------------------------------------------


def on_host(lab: Lab, host: LabHost, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` on the host's console, beside sshd."""
    number = pid(lab, host)
    if number is None:
        raise Conflict(f"{host.name} of lab {lab.name} is off; `orchestra lab boot {host.name}`")
    return ["nsenter", f"--target={number}", "--all", "--", *command]


def exec_as_client(lab: Lab, command: Sequence[str]) -> None:
    """Become `command` on the machine outside the cluster: its network, this machine's files."""
    namespaces.enter_netns(lab.client)
    namespaces.private_view(
        {"/etc/hosts": f"{lab.state}/hosts.txt", "/etc/resolv.conf": f"{lab.state}/resolv.txt"}
    )
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError:
        raise NotFound(f"cannot run {command[0]!r}: no such program") from None
