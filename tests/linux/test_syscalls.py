"""System calls that the stdlib lacks: forks with namespaces, pidfds, and what is left open."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from orchestra.linux import syscalls as k
from orchestra.linux.seccomp import running_kernel
from tests.linux.test_seccomp import in_child


def test_a_cloned_child_is_a_python_of_its_own_and_has_a_pidfd() -> None:
    def body() -> list[int]:
        pid, pidfd = k.clone3(0)
        if pid == 0:
            os._exit(3 if os.getpid() != parent and pidfd == -1 else 4)
        inheritable = os.get_inheritable(pidfd)
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert info is not None
        return [int(info.si_pid == pid), info.si_status, int(inheritable)]

    parent = os.getpid()
    assert in_child(body) == [1, 3, 0]


@pytest.mark.root
def test_a_child_in_a_new_pid_namespace_is_its_first() -> None:
    def body() -> list[int]:
        pid, _ = k.clone3(k.CLONE_NEWPID | k.CLONE_NEWUTS)
        if pid == 0:
            k.sethostname("inside")
            os._exit(10 if (os.getpid(), os.uname().nodename) == (1, "inside") else 11)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return [code, int(os.uname().nodename == name)]

    name = os.uname().nodename
    assert in_child(body) == [10, 1]


def test_a_call_that_fails_says_which_and_why() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        k.syscall("pidfd_send_signal", -1, 0, 0, 0)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, "pidfd_send_signal")
    with pytest.raises(ProcessLookupError):
        k.pidfd_open(4_000_000)


def orphan(code: str) -> tuple[int, int]:
    """(pid, pidfd) of a process whose parent is gone: nobody we know will reap it."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        pid = os.fork()
        if pid:
            os.write(writer, str(pid).encode())
        else:
            os.close(writer)
            os.execv(sys.executable, [sys.executable, "-S", "-c", f"import os, sys, time; {code}"])
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(writer)
    with open(reader) as told:
        pid = int(told.read(20))
    return pid, k.pidfd_open(pid)


def test_the_exit_of_a_strangers_child_is_known() -> None:
    for code, status in (
        ("time.sleep(0.2); os._exit(7)", 7 << 8),
        ("time.sleep(0.2); os.kill(os.getpid(), 9)", 9),
    ):
        pid, pidfd = orphan(code)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000)
        found = k.exit_status(pid, pidfd)
        # Before 6.15 only its zombie tells, and whoever is its parent now may be quicker.
        assert found == status or (found is None and running_kernel() < (6, 15))
        os.close(pidfd)


@pytest.mark.skipif(running_kernel() < (6, 15), reason="PIDFD_INFO_EXIT is of kernel 6.15")
def test_the_exit_is_known_also_after_somebody_reaped_it() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(9)
    pidfd = k.pidfd_open(pid)
    os.waitpid(pid, 0)
    assert k.exit_status(pid, pidfd) == 9 << 8
    with pytest.raises(ProcessLookupError):
        k.pidfd_send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)


def test_who_listens_is_known_to_who_connects(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/socket")
    pid = os.fork()
    if pid == 0:
        listener.listen()
        signal.pause()
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            while connected.connect_ex(f"{tmp_path}/socket"):
                pass
            pidfd = k.peer_pidfd(connected)
            k.pidfd_send_signal(pidfd, signal.SIGTERM)
            assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_pid == pid  # type: ignore[union-attr]
            os.close(pidfd)
            with pytest.raises(ProcessLookupError):
                k.peer_pidfd(connected)
    finally:
        listener.close()


def test_a_process_that_runs_has_no_exit_yet() -> None:
    pidfd = k.pidfd_open(os.getpid())
    assert k.exit_status(os.getpid(), pidfd) is None
    os.close(pidfd)


def test_a_new_session_keyring_leaves_the_old_ones_keys_behind() -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keys")
    keyctl, add_key = {"x86_64": (250, 248), "aarch64": (219, 217)}[k.MACHINE]

    def body() -> list[bool]:
        call = ctypes.CDLL(None).syscall
        k.join_new_session_keyring()
        key = call(add_key, b"user", b"orchestra-test", b"x", 1, -3)
        read = (keyctl, 11, key, None, 0)  # KEYCTL_READ: what one may who possesses it
        before = call(*read)
        k.join_new_session_keyring()
        return [key > 0, before == 1, call(*read) < 0]

    assert in_child(body) == [True, True, True]


def test_descriptors_from_a_number_on_close_themselves() -> None:
    def body() -> list[bool]:
        fds = [os.dup(0) for _ in range(3)]
        for fd in fds:
            os.set_inheritable(fd, True)
        k.close_on_exec_from(fds[1])
        return [os.get_inheritable(fd) for fd in fds]

    assert in_child(body) == [True, False, False]


@pytest.mark.root
def test_names_and_privileges_are_set() -> None:
    def body() -> list[object]:
        k.unshare(k.CLONE_NEWUTS)
        k.sethostname("host-1")
        k.setdomainname("example.org")
        k.set_process_name(b"a-name-that-is-too-long")
        k.prctl(k.PR_SET_NO_NEW_PRIVS, 1)
        with open("/proc/self/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        with open("/proc/sys/kernel/domainname") as file:
            domain = file.read().strip()
        return [os.uname().nodename, domain, status["Name"], status["NoNewPrivs"]]

    assert in_child(body) == ["host-1", "example.org", "a-name-that-is-", "1"]
