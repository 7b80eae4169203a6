"""The lab's hosts: a few machines of namespaces, their wire, and a client beside them.

Each host is one PID 1 (node_init.py) with its own disk under the lab's state directory. The bridge
that joins them lives in a network namespace of its own, and so does the client; both are bound
under the lab's run directory. Law: nothing of the machine itself is touched (no link, route,
sysctl or rule), and `destroy` finds all there is from names alone, whatever `create` came to.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from attrs import frozen

from orchestra.model.errors import Conflict, Failed, Invalid, NotFound, Unavailable
from orchestra.testing.lab import cgroups, namespaces

STATE = "/var/lib/orchestra-lab"
RUN = "/run/orchestra-lab"
NETWORK = "10.77.0"
CLIENT = f"{NETWORK}.100"
MOST_HOSTS = 99
NODE_INIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node_init.py")

# What a host needs of the machine's /etc; the rest is its own.
ETC = (
    "alternatives",
    "ca-certificates",
    "debian_version",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "nsswitch.conf",
    "os-release",
    "pam.d",
    "passwd",
    "profile",
    "protocols",
    "security",
    "services",
    "shells",
    "ssl",
    "sudo.conf",
    "sudoers",
    "sudoers.d",
)

SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 100
Subsystem sftp internal-sftp
"""


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


# --- making ---------------------------------------------------------------------------------


def create(name: str, count: int) -> Lab:
    """Make the disks, keys and wires of a lab with hosts node1..node<count>; none is on yet.

    Conflict where a lab of that name is there already; Unavailable without root or a tool.
    """
    valid(name)
    if not 1 <= count <= MOST_HOSTS:
        raise Invalid(f"cannot make a lab of {count} nodes: 1 to {MOST_HOSTS} fit its network")
    if os.geteuid() != 0:
        raise Unavailable("cannot make a lab: it needs root (namespaces); run it with sudo")
    for tool, package in (
        ("/usr/sbin/sshd", "openssh-server"),
        ("ssh-keygen", "openssh-client"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
    ):
        if not shutil.which(tool):
            raise Unavailable(f"cannot make a lab: {tool} is missing; apt-get install {package}")
    if name in names():
        way_out = f"orchestra lab down --name {name}"
        raise Conflict(f"lab {name!r} is already there (or half of it); `{way_out}` removes it")
    hosts = tuple(LabHost(i, f"node{i}", f"{NETWORK}.{i}") for i in range(1, count + 1))
    lab = Lab(name, hosts)
    for directory in (STATE, RUN):
        os.makedirs(directory, mode=0o755, exist_ok=True)
    os.mkdir(lab.state, 0o700)
    os.mkdir(lab.run, 0o700)
    with _claimed(lab):
        make_wires(lab)
        make_key(lab.identity, f"operator@lab-{name}")
        with ThreadPoolExecutor(4) as pool:
            hosts = tuple(pool.map(lambda host: make_disk(lab, host), hosts))
        lab = Lab(name, hosts)
        write_hosts_file(lab)
        text = json.dumps({"hosts": [_as_dict(host) for host in hosts]}, indent=2)
        write(f"{lab.state}/lab.json", text)
    return lab


def _as_dict(host: LabHost) -> dict[str, object]:
    return {
        "index": host.index,
        "name": host.name,
        "address": host.address,
        "host_key": host.host_key,
    }


@contextmanager
def _claimed(lab: Lab) -> Iterator[None]:
    """One process at a time changes a lab; Conflict for the second."""
    handle = os.open(lab.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Conflict(f"lab {lab.name!r} is being changed by another process") from None
    finally:
        os.close(handle)


def make_wires(lab: Lab) -> None:
    namespaces.make_netns(lab.wire)
    namespaces.make_netns(lab.client)
    namespaces.ip(
        lab.wire,
        (
            "link set lo up",
            "link add lab type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            "link set lab up",
        ),
    )
    plug(lab, "client", 100, lab.client, CLIENT)


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


def make_key(path: str, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def make_disk(lab: Lab, host: LabHost) -> LabHost:
    """Make the host's own file tree and SSH host key; the host with its public key."""
    root = lab.root(host)
    for name in ("dev", "etc", "home", "mnt", "opt", "proc", "run", "srv", "sys", "tmp", "usr"):
        os.makedirs(f"{root}/{name}")
    for name in ("cache", "lib/orchestra", "log", "tmp"):
        os.makedirs(f"{root}/var/{name}")
    os.symlink("/run", f"{root}/var/run")
    for name in ETC:
        source, target = f"/etc/{name}", f"{root}/etc/{name}"
        if os.path.islink(source) or os.path.isfile(source):
            shutil.copy2(source, target, follow_symlinks=False)
        elif os.path.isdir(source):
            shutil.copytree(source, target, symlinks=True)
    write(f"{root}/etc/hostname", f"{host.name}\n")
    write(f"{root}/etc/hosts", hosts_text(lab, host.name))
    write(f"{root}/etc/resolv.conf", "")
    write(f"{root}/etc/shadow", "root:*:20000:0:99999:7:::\n", 0o600)  # no password, not locked
    write(f"{root}/etc/ssh/sshd_config", SSHD_CONFIG)
    make_key(f"{root}/etc/ssh/ssh_host_ed25519_key", f"root@{host.name}")
    with open(f"{root}/etc/ssh/ssh_host_ed25519_key.pub") as file:
        host_key = " ".join(file.read().split()[:2])
    os.makedirs(f"{root}/root/.ssh", mode=0o700)
    os.chmod(f"{root}/root", 0o700)
    with open(f"{lab.identity}.pub") as file:
        write(f"{root}/root/.ssh/authorized_keys", file.read(), 0o600)
    return LabHost(host.index, host.name, host.address, host_key)


def hosts_text(lab: Lab, own: str = "") -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"{host.address} {host.name}" for host in lab.hosts]
    return "\n".join([*lines, f"{CLIENT} client", ""])


def write_hosts_file(lab: Lab) -> None:
    """The client sees the nodes by name."""
    write(f"{lab.state}/hosts.txt", hosts_text(lab))
    write(f"{lab.state}/resolv.txt", "")


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


# --- unmaking -------------------------------------------------------------------------------


def destroy(name: str) -> bool:
    """Take the lab away, whatever there is of it; False where there was nothing.

    Works after a failed `create`, a killed `boot` and a restart of the machine.
    """
    valid(name)
    state, run = f"{STATE}/{name}", f"{RUN}/{name}"
    directories = cgroups.top_directories(name)
    there = bool(directories) or os.path.exists(state) or os.path.exists(run)
    end([*{p for directory in directories for p in cgroups.pids(directory)}, *_launchers(state)])
    for directory in directories:
        cgroups.remove(directory)
    for netns in ("wire", "client"):
        namespaces.drop_netns(f"{run}/{netns}")
    for path in (run, state):
        if os.path.exists(path):
            shutil.rmtree(path)
    for parent in (RUN, STATE):
        with suppress(FileNotFoundError, OSError):
            os.rmdir(parent)  # stays while another lab is in it
    return there


def _launchers(state: str) -> list[int]:
    """PID 1s and their launchers by command line: those that had not joined a cgroup yet."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if NODE_INIT.encode() in words and any(
                    w.startswith(f"{state}/hosts/".encode()) for w in words
                ):
                    found.append(int(entry))
    return found
