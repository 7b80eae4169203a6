"""System calls that the stdlib does not have, as plain functions that raise OSError.

Stdlib only and light: the shim imports this file, and the forked child of the shim runs it between
clone and exec. Everything goes through `ctypes.PyDLL`, which keeps the GIL: a child of a raw
clone3 must own it. Numbers that differ between architectures are data (`_NUMBERS`); those from 424
on are the same everywhere. Sources: the man pages of section 2, include/uapi of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

# struct clone_args and flags (clone(2))
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_INTO_CGROUP = 0x2_0000_0000
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# prctl(2)
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# openat2(2)
RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8
RESOLVE_IN_ROOT = 16

AT_EMPTY_PATH = 0x1000
CLOSE_RANGE_CLOEXEC = 4

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4

_NUMBERS = {
    "x86_64": {"keyctl": 250, "seccomp": 317, "bpf": 321},
    "aarch64": {"keyctl": 219, "seccomp": 277, "bpf": 280},
}
_COMMON = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
MACHINE = os.uname().machine
NUMBERS = {**_COMMON, **_NUMBERS.get(MACHINE, {})}

libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6  # as wide as a register
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
libc.sethostname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
libc.setdomainname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


_UNUSED = (0,) * 6


def check(result: int, what: str) -> int:
    """Return `result`; raise OSError with errno's text and `what` where it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(name: str, *args: object) -> int:
    """Call the kernel by name with integers, bytes, pointers or None (NULL). Raises OSError."""
    return check(libc.syscall(NUMBERS[name], *args, *_UNUSED[len(args) :]), name)


def clone3(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """Fork with `flags`, into the v2 cgroup that the fd `cgroup` names; (pid, pidfd).

    In the child pid is 0 and pidfd -1; its Python state is repaired as os.fork() does.
    Needs kernel >= 5.7 for CLONE_INTO_CGROUP. See clone3(2).
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | CLONE_PIDFD | (0 if cgroup is None else CLONE_INTO_CGROUP),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=0 if flags & CLONE_PARENT else signal.SIGCHLD,
        cgroup=cgroup or 0,
    )
    size = ctypes.sizeof(arguments)
    pid = libc.syscall(NUMBERS["clone3"], ctypes.byref(arguments), size, *_UNUSED[2:])
    if pid == 0:
        _after_fork_child()
        return 0, -1
    return check(pid, "clone3"), pidfd.value


def pidfd_open(pid: int) -> int:
    """A close-on-exec pidfd; ESRCH where no such process is."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Signal exactly that process, never a later one of the same pid; ESRCH once it ended."""
    signal.pidfd_send_signal(pidfd, number)


def peer_pidfd(connected: socket.socket) -> int:
    """A pidfd of who called listen(2) at the other end of a Unix connection (SO_PEERCRED of
    unix(7)); ProcessLookupError where it is gone."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return os.pidfd_open(struct.unpack("=iII", credentials)[0])


def exit_status(pid: int, pidfd: int) -> int | None:
    """Exit status (as wait(2) encodes it) of a process that is not our child; None if unknown.

    A zombie tells it in /proc/PID/stat, until its parent reaps it; a reaped process by the ioctl
    PIDFD_GET_INFO with PIDFD_INFO_EXIT, which needs kernel >= 6.15. To be asked once `pidfd` is
    readable: None then means that an older kernel's process was reaped before we looked.
    """
    status = _status_of_zombie(pid, pidfd)
    return _status_after_reaping(pidfd) if status is None else status


def _status_of_zombie(pid: int, pidfd: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            still = f"Pid:\t{pid}\n" in file.read()  # -1 once it is reaped: then stat may lie
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[49]) if still and fields[0] == b"Z" else None


def _status_after_reaping(pidfd: int) -> int | None:
    wanted = 1 << 3  # PIDFD_INFO_EXIT
    info = bytearray(72)  # struct pidfd_info as of 6.15, without later fields
    struct.pack_into("=Q", info, 0, wanted)
    request = (3 << 30) | (len(info) << 16) | (0xFF << 8) | 11
    try:
        fcntl.ioctl(pidfd, request, info)
    except OSError:  # ENOTTY or EINVAL before 6.15; ESRCH between the death and the reaping
        return None
    (mask,) = struct.unpack_from("=Q", info, 0)
    return int(struct.unpack_from("=i", info, 60)[0]) if mask & wanted else None


def setns(fd: int, flags: int) -> None:
    """Enter the namespace of `fd`, or with a pidfd all those of `flags` (setns(2))."""
    check(libc.setns(fd, ctypes.c_int(flags)), "setns")


def unshare(flags: int) -> None:
    check(libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). `target` is usually `/proc/self/fd/N` of an fd resolved with `open_beneath`."""
    check(
        libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()),
        f"mount {kind or source} on {target}",
    )


def umount(target: str, flags: int = 0) -> None:
    check(libc.umount2(os.fsencode(target), flags), f"unmount {target}")


def pivot_root_here() -> None:
    """Make the current directory the root and drop the old one (pivot_root(2), "." twice)."""
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", 2), "unmount the old root")  # MNT_DETACH
    os.chdir("/")


def prctl(option: int, a: int = 0, b: int = 0) -> int:
    return check(libc.prctl(option, a, b, 0, 0), "prctl")


def set_process_name(name: bytes) -> None:
    """What `ps` shows; at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name[:15])
    check(libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl")


def join_new_session_keyring() -> None:
    """Leave the keys of whoever logged in behind (keyctl(2)); a kernel without keys has none."""
    try:
        syscall("keyctl", 1, 0)  # KEYCTL_JOIN_SESSION_KEYRING, without a name
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def sethostname(name: str) -> None:
    data = name.encode()
    check(libc.sethostname(data, len(data)), "sethostname")


def setdomainname(name: str) -> None:
    data = name.encode()
    check(libc.setdomainname(data, len(data)), "setdomainname")


def capset(effective: int, permitted: int, inheritable: int = 0) -> None:
    """Set this thread's capability sets from bit masks (capset(2), version 3)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    low = 0xFFFF_FFFF
    data = ctypes.create_string_buffer(
        struct.pack(
            "=6I",
            effective & low,
            permitted & low,
            inheritable & low,
            effective >> 32,
            permitted >> 32,
            inheritable >> 32,
        )
    )
    check(libc.capset(header, data), "capset")


def load_seccomp(program: bytes) -> None:
    """Install a classic BPF program for this thread and its children (seccomp(2))."""
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(
        struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    syscall(
        "seccomp",
        SECCOMP_SET_MODE_FILTER,
        SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        ctypes.byref(filter_),
    )


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open `path` below the fd `directory` under the rules `resolve`.

    EXDEV: it leads out; ELOOP: a link where none may be. EAGAIN (a rename raced with "..") is
    tried again a few times, as the man page asks for.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for attempt in range(32):
        try:
            return syscall("openat2", directory, name, how, 24)
        except OSError as error:
            if error.errno != errno.EAGAIN or attempt == 31:
                raise OSError(error.errno, error.strerror, path) from None
    raise AssertionError("unreachable")


def close_on_exec_from(first: int) -> None:
    """Mark every fd from `first` on close-on-exec (close_range(2), kernel >= 5.11)."""
    syscall("close_range", first, 0xFFFF_FFFF, CLOSE_RANGE_CLOEXEC)
