"""Network namespaces: make, name, open, enter, delete.

A name is a bind mount under /run/netns, as ip-netns(8) keeps them, so that `ip netns` sees ours.
Entering is a property of the calling thread and always undone before control goes on: a thread
that cannot return to its namespace ends the process rather than act in the wrong one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

DIRECTORY = "/run/netns"

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2

_libc = ctypes.CDLL(None, use_errno=True)


def current() -> int:
    """A descriptor of the calling thread's namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """Be in `namespace` (a descriptor) for the length of the block. Raises OSError (EPERM)."""
    home = current()
    try:
        _setns(namespace)
        try:
            yield
        finally:
            _return(home)
    finally:
        os.close(home)


@contextmanager
def fresh() -> Iterator[int]:
    """Be in a new namespace for the length of the block; it lives as long as its descriptor.

    The caller closes the yielded descriptor, except when the block fails. Raises OSError.
    """
    home = current()
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
        try:
            made = current()
            try:
                yield made
            except BaseException:
                os.close(made)
                raise
        finally:
            _return(home)
    finally:
        os.close(home)


def path(name: str) -> str:
    return f"{DIRECTORY}/{name}"


def open_named(name: str) -> int | None:
    """A descriptor of the namespace of that name (the caller closes it), or None."""
    try:
        found = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if fcntl.ioctl(found, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return found
    except OSError:
        pass  # ENOTTY: the plain file of a name whose mount is gone, or never came
    os.close(found)
    return None


def make_named(name: str) -> int:
    """Make a namespace, bind it to its name and return its descriptor (the caller closes it).

    Raises FileExistsError if the name is taken by a living namespace, OSError otherwise.
    """
    found = open_named(name)
    if found is not None:
        os.close(found)
        raise FileExistsError(17, f"network namespace {name} exists")
    os.makedirs(DIRECTORY, 0o755, exist_ok=True)
    _share_directory()
    target = path(name)
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    with fresh() as made:
        try:
            _mount("/proc/thread-self/ns/net", target, _MS_BIND)
        except BaseException:
            os.unlink(target)
            raise
    return made


def delete_named(name: str) -> None:
    """Remove a name; the namespace ends with its last process, descriptor and device."""
    target = path(name)
    if not os.path.exists(target):
        return
    _libc.umount2(target.encode(), _MNT_DETACH)  # EINVAL: was never mounted, the file goes anyway
    os.unlink(target)


def _share_directory() -> None:
    """Make /run/netns a shared mount, as `ip netns add` does: names reach other mount namespaces.

    MS_SHARED fails with EINVAL where the directory is no mount yet; then it becomes one.
    """
    if _libc.mount(b"", DIRECTORY.encode(), b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    _mount(DIRECTORY, DIRECTORY, _MS_BIND | _MS_REC)
    _check(
        _libc.mount(b"", DIRECTORY.encode(), b"none", _MS_SHARED | _MS_REC, None),
        f"share {DIRECTORY}",
    )


def _mount(source: str, target: str, flags: int) -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), b"none", flags, None),
        f"bind {source} to {target}",
    )


def _setns(namespace: int) -> None:
    _check(_libc.setns(namespace, _CLONE_NEWNET), "enter a network namespace")


def _return(home: int) -> None:
    if _libc.setns(home, _CLONE_NEWNET):
        os.abort()


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")
