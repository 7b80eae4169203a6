"""Labs made and unmade: disks, keys and wires of hosts that are not on yet; and all of it gone.

Law: nothing of the machine itself is touched (no link, route, sysctl or rule), and `destroy` finds
all there is from names alone, whatever `create` came to.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from orchestra.model.errors import Conflict, Invalid, Unavailable
from orchestra.testing.lab import cgroups, namespaces
from orchestra.testing.lab.hosts import (
    CLIENT,
    NETWORK,
    NODE_INIT,
    RUN,
    STATE,
    Lab,
    LabHost,
    end,
    names,
    plug,
    valid,
    write,
)

MOST_HOSTS = 99

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


def make_key(path: str, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
    )


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
