"""Making a node a plain host again: nothing of ours is left running, mounted or configured."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from typing import Any

from orchestra.controller.host.install import run, unit_path
from orchestra.controller.host.look import nft
from orchestra.controller.host.paths import RUN, STATE, Refused
from orchestra.controller.host.processes import end, loops, of_role, own

FABRIC = "/run/netns/orchestra"


def uninstall(request: dict[str, Any]) -> dict[str, Any]:
    """Make the host a plain host again; volumes and images stay unless `purge`."""
    for role in ("controller", "agent"):
        stop({"role": role})
    keep = () if request.get("purge") else ("volumes", "images")
    for path in (STATE, RUN):
        for name in os.listdir(path) if os.path.isdir(path) else ():
            if path == RUN or name not in keep:
                remove_tree(f"{path}/{name}")
        with contextlib.suppress(OSError):  # something is kept, or it is a mount
            os.rmdir(path)
    return {}


def remove_tree(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """End a role for good: its process, its unit or keeper, its versions."""
    role = str(request["role"])
    if os.path.exists(unit_path(role)):
        subprocess.run(["systemctl", "disable", "--now", f"orchestra-{role}"], capture_output=True)
        os.unlink(unit_path(role))
        run("systemctl", "daemon-reload")
    end(loops(role))
    end(of_role(role))
    if role == "agent":
        end_containers()
    for kind in ("ends", "sock", "lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{RUN}/{role}.{kind}")
    shutil.rmtree(f"{STATE}/{role}", ignore_errors=True)
    return {}


def end_containers() -> None:
    """End what the agent leaves running: containers, shim, resolver, fabric, mounts, cgroups."""
    mark = f"{STATE}/agent/"
    helpers = [p for p, words in own().items() if any(mark in w for w in words)]
    groups = cgroup_directories()
    inside = [pid for group in groups for pid in cgroup_pids(group)]
    end([pid for pid in helpers if pid not in inside], patience=2.0)
    for pid in {*inside, *(pid for group in groups for pid in cgroup_pids(group))}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for group in groups:
        remove_cgroup(group)
    for path in (STATE, RUN, FABRIC):
        unmount_below(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FABRIC)
    with contextlib.suppress(FileNotFoundError):  # no nft at all: no table of ours either
        nft("add table inet orchestra\ndelete table inet orchestra")


def cgroup_directories() -> list[str]:
    found = []
    with open("/proc/mounts") as file:
        for line in file:
            _, target, kind = line.split(" ")[:3]
            if kind in ("cgroup", "cgroup2") and os.path.isdir(f"{target}/orchestra"):
                found.append(f"{target}/orchestra")
    return found


def cgroup_pids(directory: str) -> list[int]:
    found = []
    for path, _, _ in os.walk(directory):
        with contextlib.suppress(FileNotFoundError), open(f"{path}/cgroup.procs") as file:
            found += [int(line) for line in file.read().split()]
    return found


def remove_cgroup(directory: str, patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while os.path.isdir(directory):
        try:
            for path, _, _ in os.walk(directory, topdown=False):
                os.rmdir(path)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Refused(f"cannot remove the cgroup {directory}: {error.strerror}") from None
            time.sleep(0.01)


def unmount_below(top: str) -> None:
    with open("/proc/self/mountinfo") as file:
        targets = [line.split(" ")[4] for line in file]
    libc = ctypes.CDLL(None)
    for target in reversed(targets):
        if target == top or target.startswith(f"{top}/"):
            libc.umount2(target.encode(), 2)  # MNT_DETACH
