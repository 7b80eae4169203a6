"""The processes of a container as `ps -ef` shows them, read from /proc (proc(5))."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable

TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
TICKS = os.sysconf("SC_CLK_TCK")


def rows(pids: Iterable[int]) -> list[list[str]]:
    """Return one row per process, by pid; those that end meanwhile are left out."""
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    return [row for pid in sorted(pids) if (row := _row(pid, uptime))]


def _row(pid: int, uptime: float) -> list[str] | None:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as raw:
            words = raw.read().split(b"\0")[:-1]
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()  # from field 3, the state, on
    ppid, terminal = int(fields[1]), int(fields[4])
    seconds = (int(fields[11]) + int(fields[12])) // TICKS
    age = max(0.01, uptime - int(fields[19]) / TICKS)
    started = time.localtime(time.time() - age)
    command = " ".join(w.decode(errors="replace") for w in words) or f"[{name}]"
    return [
        _user(uid),
        str(pid),
        str(ppid),
        str(min(99, int(100 * seconds / age))),
        time.strftime("%H:%M" if age < 86400 else "%b%d", started),
        f"pts/{terminal & 0xFF}" if terminal else "?",
        f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        command,
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
