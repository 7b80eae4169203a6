"""How a command reaches its cluster's controller: through a background process of this user.

The session (orchestra/controller/session.py) is a controller of its own, or, where one is
installed on a node, a wire to that one through SSH. It starts with the first command, keeps its
connections for the next ones and ends after ten idle minutes; commands speak to its Unix socket
with the standard library only, so they stay quick. Law: under a lock one process at a time starts
or ends a cluster's session, and what a dead one left behind is replaced, never trusted.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from orchestra.cli import context
from orchestra.cli.context import Context
from orchestra.model.errors import Unavailable
from orchestra.model.paths import NodePaths

IDLE = 600.0  # seconds
HERE = NodePaths().controller_socket  # where a controller on this very machine listens


def connect(args: argparse.Namespace) -> Callable[[], socket.socket]:
    """A function that opens a connection to the chosen cluster's controller.

    It raises Unavailable where no session can be started, with the session's own words.
    """
    if not (args.cluster or os.environ.get("ORCHESTRA_CLUSTER") or context.current()) and (
        os.path.exists(HERE)
    ):
        return lambda: _dial(HERE)
    return to_cluster(context.chosen(args))


def to_cluster(cluster: Context) -> Callable[[], socket.socket]:
    """A function that opens a connection to this cluster's controller."""

    def open_socket() -> socket.socket:
        try:
            return _dial(socket_path(cluster))
        except (FileNotFoundError, ConnectionRefusedError):
            _start(cluster)
            return _dial(socket_path(cluster))

    return open_socket


def _dial(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _run_directory() -> str:
    """A directory that only this user can write. Unavailable where someone else made it."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = f"{base}/orchestra" if base else f"/tmp/orchestra-{os.getuid()}"
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Unavailable(f"{path} is not a directory of this user alone (0700); remove it")
    return path


def _key(cluster: Context) -> str:
    """Names the session; two users' or two configurations' clusters of one name stay apart."""
    mark = zlib.crc32(f"{context.root()}\0{cluster.inventory}".encode())
    return f"{cluster.name[:40]}-{mark:08x}"


def socket_path(cluster: Context) -> str:
    return f"{_run_directory()}/{_key(cluster)}.sock"


def log_path(cluster: Context) -> str:
    return f"{_run_directory()}/{_key(cluster)}.log"


@contextmanager
def _alone(cluster: Context) -> Iterator[None]:
    """One process at a time starts or ends a cluster's session (flock(2)).

    The lock's file may be removed by who holds it; who waited for it then takes the next one.
    """
    path = f"{_run_directory()}/{_key(cluster)}.lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(handle, path):
                yield
                return
        finally:
            os.close(handle)


def _is(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _start(cluster: Context) -> None:
    """Start the session unless another command was quicker; Unavailable with its own words."""
    if cluster.netns and not os.path.exists(cluster.netns):
        raise Unavailable(
            f"the network {cluster.netns} of cluster {cluster.name} is not there; `orchestra lab "
            "ls` shows the labs of this machine, `orchestra lab up` makes one"
        )
    import subprocess

    with _alone(cluster):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            _dial(socket_path(cluster)).close()
            return
        reading, writing = os.pipe()
        with open(log_path(cluster), "wb") as log, open(reading, "rb") as ready:
            try:
                subprocess.Popen(
                    _command(cluster, writing),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                    pass_fds=[writing],
                )
            finally:
                os.close(writing)
            said = ready.read().decode(errors="replace")
    if said != "ready":
        raise Unavailable(
            said
            or f"the session of cluster {cluster.name} ended at once: {_last_words(cluster)} "
            f"(all of it: {log_path(cluster)})"
        )


def _last_words(cluster: Context) -> str:
    with open(log_path(cluster), errors="replace") as log:
        return (log.read().strip().splitlines() or ["it said nothing"])[-1]


def _command(cluster: Context, ready: int) -> list[str]:
    inside = ["nsenter", f"--net={cluster.netns}", "--"] if cluster.netns else []
    return [
        *inside,
        *(sys.executable, "-m", "orchestra.cli.main", "session"),
        *("--cluster", cluster.name, "--inventory", cluster.inventory),
        *("--state", f"{cluster.directory}/state", "--socket", socket_path(cluster)),
        *("--home", cluster.controller, "--idle", f"{IDLE:g}", "--ready", str(ready)),
    ]


def stop(cluster: Context, patience: float = 10.0) -> bool:
    """End the cluster's session if one runs, for example because its controller moved."""
    path = socket_path(cluster)
    with _alone(cluster):
        there = _end(f"{path}.pid", patience)
        for name in (path, f"{path}.pid", log_path(cluster), path.removesuffix("sock") + "lock"):
            with suppress(FileNotFoundError):
                os.unlink(name)
    with suppress(OSError):
        os.rmdir(_run_directory())  # stays while another session is in it
    return there


def _end(mark: str, patience: float) -> bool:
    """End the process that holds the file with its pid locked; False where nobody does."""
    try:
        handle = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if _unlocked(handle):
            return False
        pid = int(os.read(handle, 20))
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while not _unlocked(handle):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return True
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def _unlocked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
