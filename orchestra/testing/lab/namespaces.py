"""Network namespaces that are files: made, entered and dropped by the path they are bound at.

They live under the lab's own run directory, so two labs never meet and nothing appears in
/run/netns.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence

from orchestra.model.errors import Failed, Unavailable

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def bind(source: str, target: str) -> None:
    """Bind-mount a file onto another."""
    flags = ctypes.c_ulong(MS_BIND)
    _check(_libc().mount(source.encode(), target.encode(), None, flags, None), f"bind {target}")


def make_netns(path: str) -> None:
    """Make a network namespace with nothing in it and bind it at `path`."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"\n":
            raise Failed("cannot make a network namespace: unshare failed; root is needed")
        with open(path, "x"):
            pass
        bind(f"/proc/{holder.pid}/ns/net", path)


def drop_netns(path: str) -> None:
    """Unbind and remove; the namespace goes with its last process. Fine where it is not there."""
    while os.path.exists(path) and _libc().umount2(path.encode(), MNT_DETACH) == 0:
        pass
    if os.path.exists(path):
        os.unlink(path)


def enter_netns(path: str) -> None:
    """Move this thread's network to the namespace at `path` (setns(2)).

    Sockets opened before keep their old network; Unix socket paths work across networks.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unavailable(
            f"the network {path} of this cluster is not there; `orchestra lab ls` shows the labs, "
            "`orchestra lab up` makes one"
        ) from None
    try:
        _check(_libc().setns(handle, CLONE_NEWNET), f"enter network {path}")
    finally:
        os.close(handle)


def private_view(files: dict[str, str]) -> None:
    """Leave the machine's mount namespace and show other files at the given paths."""
    _check(_libc().unshare(CLONE_NEWNS), "unshare mounts")
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check(_libc().mount(b"none", b"/", None, flags, None), "make mounts private")
    for target, source in files.items():
        if os.path.exists(target):
            bind(source, target)


def ip(netns: str, commands: Sequence[str]) -> None:
    """Run ip(8) commands as one batch inside the namespace. Failed carries ip's own words."""
    done = subprocess.run(
        ["nsenter", f"--net={netns}", "ip", "-batch", "-"],
        input="\n".join(commands).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"cannot wire the lab: {done.stderr.decode().strip()}")
