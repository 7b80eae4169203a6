"""What a host has and what it lacks of what a node needs; nothing is changed by looking."""

import array
import contextlib
import ctypes
import fcntl
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from typing import Any

from orchestra.controller.host.paths import IDENTITY, Refused, versions

CLONE_NEWNET = 0x40000000

# What needs which package, by package manager; a kernel feature has a module instead.
PACKAGES = {
    "nftables": {"apt-get": "libnftables1", "dnf": "nftables", "apk": "nftables"},
    "ssh-keygen": {"apt-get": "openssh-client", "dnf": "openssh", "apk": "openssh-keygen"},
}


def check(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "platform": [
            f"{sys.platform}-{platform.libc_ver()[0] or 'other'}",
            platform.machine(),
            f"{sys.version_info[0]}.{sys.version_info[1]}",
        ],
        "node": identity(),
        "interfaces": interfaces(),
        "versions": {role: versions(role) for role in ("agent", "controller")},
        "problems": problems(),
    }


def identity() -> Any:
    """{"id", "name"} of the node that this host is, None where it is none."""
    try:
        with open(IDENTITY) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def interfaces() -> dict[str, str]:
    """The first IPv4 address of each interface (netdevice(7), SIOCGIFADDR), without loopback."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("16s24x", name.encode()[:15]))
            with contextlib.suppress(OSError):  # an interface without an address
                fcntl.ioctl(sock, 0x8915, request)
                found[name] = socket.inet_ntoa(request.tobytes()[20:24])
    return {name: address for name, address in found.items() if not address.startswith("127.")}


def package_manager() -> str:
    return next((m for m in ("apt-get", "dnf", "apk") if shutil.which(m)), "")


def problems() -> list[dict[str, str]]:
    """What the host lacks: {what, remedy, package}; package "" where it is the kernel's."""
    found = []

    def lacks(what: str, remedy: str, package: str = "") -> None:
        found.append({"what": what, "remedy": remedy, "package": package})

    for name in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
        if not os.path.exists(f"/proc/self/ns/{name}"):
            lacks(f"{name} namespaces", f"use a kernel with CONFIG_{name.upper()}_NS")
    if not overlay():
        lacks("the overlay file system", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS")
    missing = {"cpu", "memory", "pids"} - cgroup_controllers()
    if missing:
        names = ", ".join(sorted(missing))
        lacks(
            f"cgroup controllers {names}",
            "mount cgroups (v1 or v2) at /sys/fs/cgroup; on some boards memory needs the kernel "
            "argument cgroup_enable=memory",
        )
    for kind in probe_network():
        if kind == "libnftables":
            manager = package_manager()
            package = PACKAGES["nftables"].get(manager, "")
            remedy = f"{manager} install {package}" if package else "install nftables"
            lacks("libnftables.so.1 or the nft program", remedy, package)
        elif kind == "nftables":
            lacks("nftables in the kernel", "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES")
        else:
            lacks(
                f"{kind} network devices",
                f"modprobe {kind} (package of extra kernel modules?), or a kernel with "
                f"CONFIG_{kind.upper()}",
            )
    return found


def overlay() -> bool:
    for attempt in range(2):
        with open("/proc/filesystems") as file:
            if "overlay" in file.read().split():
                return True
        if attempt == 0 and shutil.which("modprobe"):
            subprocess.run(["modprobe", "overlay"], capture_output=True, check=False)
    return False


def cgroup_controllers() -> set[str]:
    """Controllers of every mounted v1 hierarchy and of the v2 root."""
    found: set[str] = set()
    with open("/proc/mounts") as file:
        for line in file:
            _, target, kind, options = line.split(" ")[:4]
            if kind == "cgroup":
                found.update(options.split(","))
            elif kind == "cgroup2":
                with open(f"{target}/cgroup.controllers") as controllers:
                    found.update(controllers.read().split())
    return found


def probe_network() -> list[str]:
    """Try devices and nftables in a network namespace that goes away with a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        missing = []
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
                missing += [k for k in ("veth", "vxlan") if not can_make_link(k)]
                missing += try_nftables()
            os.write(writing, json.dumps(missing).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise Refused("the check of the network features crashed")
    return list(json.loads(text))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def can_make_link(kind: str) -> bool:
    """RTM_NEWLINK as in rtnetlink(7); the kernel loads a module for it by itself."""
    info = attribute(1, kind.encode())  # IFLA_INFO_KIND
    if kind == "vxlan":  # IFLA_INFO_DATA { IFLA_VXLAN_ID, IFLA_VXLAN_PORT }
        info += attribute(2, attribute(1, struct.pack("I", 7)) + attribute(15, b"\x21\x16"))
    body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attribute(18, info)  # IFLA_LINKINFO
    # type RTM_NEWLINK, flags REQUEST | ACK | EXCL | CREATE
    message = struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.bind((0, 0))
        sock.send(message)
        (error,) = struct.unpack_from("i", sock.recv(4096), 16)
    return bool(error == 0)


def nft(commands: str) -> bool:
    """Run nft commands through the library, else the program. FileNotFoundError without both."""
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        done = subprocess.run(["nft", "-f", "-"], input=commands.encode(), capture_output=True)
        return done.returncode == 0
    library.nft_ctx_new.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    library.nft_ctx_buffer_error(context)
    try:
        return bool(library.nft_run_cmd_from_buffer(context, commands.encode()) == 0)
    finally:
        library.nft_ctx_free(context)


def try_nftables() -> list[str]:
    try:
        works = nft(
            "add table inet probe\nadd chain inet probe c { type nat hook output priority 0; }"
        )
    except (FileNotFoundError, PermissionError):
        return ["libnftables"]
    return [] if works else ["nftables"]
