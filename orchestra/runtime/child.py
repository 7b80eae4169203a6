"""What a container's process does between clone and exec: `start` its first, `execute` others.

Runs in a child of the shim. It ends by becoming the user's program; whatever fails on the way is
told through the report socket and ends the child. Nothing found in the container is run before
that last step (not even a Python module: imports are switched off), and by then every fd but 0, 1
and 2 closes itself. Stdlib only.
Order matters in `become`: a seccomp filter without no_new_privs needs CAP_SYS_ADMIN, so it is
loaded as late as possible and only capset and execve come after it.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import termios

from orchestra.linux import syscalls as k
from orchestra.runtime.rootfs import Root, SetupFailed, working_directory
from orchestra.runtime.users import UnknownUser, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestra.runtime.bundle import ExecPart, ProcessPart, StartPart

_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x4004_5431

ABOUT_TO_EXEC, MASTER, FAILED = b"x", b"m", b"e"


class Refused(Exception):
    """The program cannot be run: `code` is the shell's 126 or 127."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def start(payload: int, fds: dict[str, int], report: socket.socket) -> None:
    """Become a container's first process; never returns."""
    try:
        bundle: StartPart = json.loads(_read_all(payload))
        _fresh_process()
        _join(bundle["cgroups"])
        if bundle["cgroup_namespace"]:
            k.unshare(k.CLONE_NEWCGROUP)
        if "netns" in fds:
            k.setns(fds["netns"], k.CLONE_NEWNET)
        os.setsid()
        if bundle["oom_score_adj"] is not None:
            _write("/proc/self/oom_score_adj", str(bundle["oom_score_adj"]))
        root = Root(bundle)
        root.furnish()
        for name, text in bundle["etc"].items():
            root.inject(f"etc-{name}", f"/etc/{name}", text.encode(), 0o644)
        if not bundle["privileged"]:
            root.mask()
        if bundle["tty"]:
            slave = _terminal(root.pts, "ptmx", bundle, report)
            root.console(slave)
            fds = {**fds, "stdin": slave, "stdout": slave, "stderr": slave}
        k.sethostname(bundle["hostname"])
        if bundle["domainname"]:
            k.setdomainname(bundle["domainname"])
        root.enter()
        _become(bundle, fds, report, bundle["init"])
    except BaseException as error:
        _fail(error, report)


def execute(payload: int, fds: dict[str, int], report: socket.socket) -> None:
    """Become a further process of the container whose first is `fds["target"]`; never returns."""
    try:
        bundle: ExecPart = json.loads(_read_all(payload))
        _fresh_process()
        _join(bundle["cgroups"])
        everything = k.CLONE_NEWNS | k.CLONE_NEWNET | k.CLONE_NEWIPC | k.CLONE_NEWUTS
        k.setns(fds["target"], everything | k.CLONE_NEWCGROUP)
        os.setsid()
        if bundle["tty"]:
            top = os.open("/", os.O_PATH | os.O_DIRECTORY)
            pts = k.openat2(
                top,
                "dev/pts",
                os.O_PATH | os.O_DIRECTORY,
                k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS,
            )
            slave = _terminal(pts, "ptmx", bundle, report)
            fds = {**fds, "stdin": slave, "stdout": slave, "stderr": slave}
        _become(bundle, fds, report, "")
    except BaseException as error:
        _fail(error, report)


def _become(bundle: ProcessPart, fds: dict[str, int], report: socket.socket, init: str) -> None:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    user = resolve(root, bundle["user"], bundle["groups"])
    environment = dict(pair.split("=", 1) for pair in bundle["env"] if "=" in pair)
    environment.setdefault("HOME", user.home)
    os.fchdir(working_directory(bundle["cwd"]))
    if not _reachable():
        raise SetupFailed(f"working directory {bundle['cwd']}: it is outside of the container")
    for name, soft, hard in bundle["rlimits"]:
        _limit(name, soft, hard)
    if bundle["tty"]:
        fcntl.ioctl(fds["stdin"], termios.TIOCSCTTY, 0)
        os.fchown(fds["stdin"], user.uid, -1)
    _place_standard_fds([fds["stdin"], fds["stdout"], fds["stderr"]])
    os.umask(0o022)
    _restore_signals()
    k.prctl(k.PR_SET_KEEPCAPS, 1)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    _pass(fds.get("gate"))
    _confine(bundle, user.uid)
    if init:
        _fork_under_init(init, bundle["tty"])
    _exec(bundle["args"], environment, report)


def _pass(gate: int | None) -> None:
    """Wait until everything around the container is there too: its network's wires."""
    if gate is not None and os.read(gate, 1) != b"g":
        raise SetupFailed("its network was not made")


def _confine(bundle: ProcessPart, uid: int) -> None:
    keep, own = bundle["caps"], bundle["host_caps"]
    k.prctl(k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL)
    k.capset(own, own)  # setresuid emptied the effective set
    for number in range(64):
        if own >> number & 1 and not keep >> number & 1:
            k.prctl(k.PR_CAPBSET_DROP, number)
    k.prctl(k.PR_SET_KEEPCAPS, 0)
    held = keep if uid == 0 else 0
    if bundle["no_new_privileges"]:
        k.capset(held, held)
        k.prctl(k.PR_SET_NO_NEW_PRIVS, 1)
        if bundle["seccomp"]:
            k.load_seccomp(base64.b64decode(bundle["seccomp"]))
        return
    if bundle["seccomp"]:
        k.load_seccomp(base64.b64decode(bundle["seccomp"]))
    k.capset(held, held)


def _exec(args: list[str], environment: dict[str, str], report: socket.socket) -> None:
    """execve by the shell's rules for PATH, with the shell's codes for what goes wrong."""
    name = args[0]
    report.send(ABOUT_TO_EXEC)
    if "/" in name:
        candidates = [name]
    else:
        candidates = [f"{part or '.'}/{name}" for part in environment.get("PATH", "").split(":")]
    denied = False
    for candidate in candidates:
        try:
            os.execve(candidate, args, environment)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.lexists(candidate):  # a script or binary whose interpreter is missing
                raise Refused(f"exec {candidate}: no such file or directory", 127) from None
        except PermissionError:
            if os.path.isdir(candidate) and len(candidates) == 1:
                raise Refused(f'exec: "{name}": is a directory', 126) from None
            denied = denied or not os.path.isdir(candidate)
        except OSError as error:
            raise Refused(f"exec {candidate}: {(error.strerror or '').lower()}", 125) from None
    if denied:
        raise Refused(f'exec: "{name}": permission denied', 126)
    if "/" in name:
        raise Refused(f'exec: "{name}": stat {name}: no such file or directory', 127)
    raise Refused(f'exec: "{name}": executable file not found in $PATH', 127)


def _fork_under_init(init: str, tty: bool) -> None:
    """PID 1 becomes the tiny init; only its child, the program to be, returns from here.

    Signals stay blocked over the fork and in the init, so that none is lost in between; the
    program gets a process group of its own, and the terminal, so that what the terminal sends
    reaches it once.
    """
    program = os.memfd_create("init", os.MFD_CLOEXEC)
    os.write(program, base64.b64decode(init))
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    pid = os.fork()
    if pid:
        os.execve(program, ["init", str(pid)], {})
    os.close(program)
    os.setpgid(0, 0)
    if tty:
        os.tcsetpgrp(0, os.getpid())
    _restore_signals()


def _terminal(pts: int, name: str, bundle: ProcessPart, report: socket.socket) -> int:
    """A new terminal of the container's own devpts; the master travels to the shim."""
    master = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=pts)
    if os.fstat(master).st_rdev != os.makedev(5, 2):
        raise SetupFailed("/dev/pts/ptmx is not the terminal multiplexer")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = int(fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    rows, columns = bundle["console_size"]
    if rows and columns:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    socket.send_fds(report, [MASTER], [master])
    os.close(master)
    return slave


def _fresh_process() -> None:
    """Undo what the shim's Python changed, hide from processes already inside, and take no code or
    key along: a late import would find the container's files, at the host's paths."""
    k.prctl(k.PR_SET_DUMPABLE, 0)
    os.umask(0)
    sys.meta_path.clear()
    sys.path.clear()
    k.join_new_session_keyring()


def _restore_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _join(procs_files: list[str]) -> None:
    for path in procs_files:
        _write(path, "0")


def _limit(name: str, soft: int, hard: int) -> None:
    number = getattr(resource, f"RLIMIT_{name.upper()}")
    try:
        resource.setrlimit(number, (soft, hard))
    except (PermissionError, ValueError):
        if resource.getrlimit(number) != (soft, hard):
            raise SetupFailed(
                f"ulimit {name}={soft}:{hard}: not permitted, the host's own limit is "
                f"{resource.getrlimit(number)[1]}"
            ) from None


def _place_standard_fds(wanted: list[int]) -> None:
    """Move the three streams to 0, 1, 2; everything else closes itself at exec."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in wanted]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=True)
    k.close_on_exec_from(3)


def _reachable() -> bool:
    """False where the working directory is not below our root (CVE-2024-21626)."""
    try:
        return os.getcwd().startswith("/")
    except OSError:
        return False


def _fail(error: BaseException, report: socket.socket) -> None:
    code = 125
    if isinstance(error, Refused):
        text, code = str(error), error.code
    elif isinstance(error, (SetupFailed, UnknownUser)):
        text = str(error)
    elif isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        text = f"{what}{(error.strerror or str(error)).lower()}"
        if error.errno == errno.ENOMEM:
            text += " (is the memory limit too low?)"
    else:
        text = f"{type(error).__name__}: {error}"
    try:
        report.send(FAILED + json.dumps([code, text[:4000]]).encode())
    finally:
        os._exit(code)


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)
