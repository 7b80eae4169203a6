"""Capability names, bit masks, and Docker's default set. See capabilities(7).

A mask is an int with bit N for capability number N. Stdlib only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from orchestra.linux.syscalls import PR_CAPBSET_READ, prctl

_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG
MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

_DEFAULT = """
CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
SYS_CHROOT KILL AUDIT_WRITE
"""

NAMES = _NAMES.split()
DEFAULT = _DEFAULT.split()


class UnknownCapability(ValueError):
    """A name that this kernel interface does not have."""


def number(name: str) -> int:
    """Bit number of "NET_ADMIN" or "CAP_NET_ADMIN", in any case."""
    bare = name.upper().removeprefix("CAP_")
    try:
        return NAMES.index(bare)
    except ValueError:
        raise UnknownCapability(f"unknown capability {name!r}") from None


def mask(names: Iterable[str]) -> int:
    result = 0
    for name in names:
        result |= 1 << number(name)
    return result


def names(bits: int) -> list[str]:
    """Names of a mask with the CAP_ prefix, by number."""
    return [f"CAP_{name}" for n, name in enumerate(NAMES) if bits >> n & 1]


def last() -> int:
    """Highest capability number of the running kernel."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


@functools.cache
def bounding() -> int:
    """What this process may give at most: its bounding set, which we never change."""
    return sum(1 << n for n in range(last() + 1) if prctl(PR_CAPBSET_READ, n))


def wanted(add: Iterable[str], drop: Iterable[str], privileged: bool, available: int) -> int:
    """The set of a container: the default changed by `add` and `drop` ("ALL" = everything).

    Raises UnknownCapability for a wrong name, and for one asked for by name that the host's root
    itself does not have; "ALL" and privileged mean all that there are.
    """
    added, dropped = {a.upper() for a in add}, {d.upper() for d in drop}
    everything = {"ALL", "CAP_ALL"}
    if privileged or added & everything:
        result = available
    elif dropped & everything:
        result = 0
    else:
        result = mask(DEFAULT) & available
    explicit = mask(added - everything)
    if missing := explicit & ~available:
        raise UnknownCapability(
            f"cannot add capability {names(missing)[0]}: the host's own root does not have it"
        )
    return (result | explicit) & ~mask(dropped - everything)
