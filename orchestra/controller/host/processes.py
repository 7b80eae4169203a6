"""The host's processes: found by what they run, ended and waited for.

Only those of this host's own pid namespace count: a machine may carry a lab whose hosts are nodes
too, and their processes are none of its business.
"""

import contextlib
import os
import select
import signal
import time

from orchestra.controller.host.paths import STATE


def command_line(pid: int) -> list[str]:
    """[] where the process is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def own() -> dict[int, list[str]]:
    """Command lines of the processes of this host, without those of hosts inside it."""
    here = os.stat("/proc/self/ns/pid").st_ino
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == here:
                    found[int(entry)] = command_line(int(entry))
    return found


def of_role(role: str) -> list[int]:
    """The agent or controller itself, of whatever version: `python -I DIR WORD ...`."""
    return [
        pid
        for pid, words in own().items()
        if len(words) > 3 and words[1] == "-I" and words[2].startswith(f"{STATE}/{role}/")
    ]


def loops(role: str) -> list[int]:
    """What starts the role again on a host without systemd: the script that install.py wrote."""
    return [pid for pid, words in own().items() if f"{STATE}/{role}/start" in words]


def end(pids: list[int], patience: float = 10.0) -> None:
    """Ask processes to end, then make them (pidfd_open(2)); seconds for each of the two."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        handles = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        for handle in handles:
            select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            os.close(handle)
        pids = [pid for pid in pids if command_line(pid) not in ([], [""])]
