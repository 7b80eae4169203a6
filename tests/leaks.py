"""What a machine holds that a program could leave behind, and a proof that it left nothing.

Knows nothing of orchestra's code, on purpose: it reads /proc, /sys/fs/cgroup, netlink and the disk,
so that a cleaner that forgets a thing cannot hide it here. A snapshot is a set of things
(namespaces with who holds them, names of namespaces, mounts, cgroups, links, nft tables, processes,
files); what is there after and was not before has leaked.

    with no_leaks(mentions("lab-x1")):     # other labs may come and go meanwhile
        ...

As a program, around commands of other programs:

    python tests/leaks.py save before.json
    python tests/leaks.py check before.json [WORD...]      # exit code 1 and a list, if any

Needs root. Sources: proc(5), namespaces(7), cgroups(7), include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

WORD = "orchestra"
PLACES = ("/var/lib", "/run", "/tmp", "/dev/shm")
_DEPTH = 4  # of files below /run/orchestra*; a new directory is told once anyway
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Thing(NamedTuple):
    """`name` says which one it is; `detail` whose it may be (not part of what it is)."""

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f"  ({self.detail})" if self.detail else "")


Predicate = Callable[[Thing], bool]


def mentions(*words: str) -> Predicate:
    """Things that have one of the words in their name or detail."""

    def counts(thing: Thing) -> bool:
        return any(word in part for word in words for part in (thing.name, thing.detail))

    return counts


_ORCHESTRAS = mentions(WORD)


def snapshot() -> set[Thing]:
    """Everything that is there now."""
    processes = _processes()
    namespaces = _namespaces(processes)
    return {
        *_namespace_things(namespaces),
        *_names(),
        *_mounts(namespaces),
        *_cgroups(),
        *_networks(namespaces),
        *_process_things(processes),
        *_files(),
    }


def leaked(
    before: Iterable[Thing], counts: Predicate = _ORCHESTRAS, settle: float = 5.0
) -> list[Thing]:
    """What is there now, counts, and was not there before; waits up to `settle` seconds for none.

    The wait is for what the kernel does behind our back: the last process of a namespace, a
    network namespace's cleanup. Of a new directory only its top is told.
    """
    known = {(thing.kind, thing.name) for thing in before}
    deadline = time.monotonic() + settle
    while True:
        new = {t for t in snapshot() if (t.kind, t.name) not in known and counts(t)}
        if not new or time.monotonic() > deadline:
            names = {thing.name for thing in new if thing.kind == "file"}
            return sorted(
                t for t in new if t.kind != "file" or os.path.dirname(t.name) not in names
            )
        time.sleep(0.1)


@contextlib.contextmanager
def no_leaks(counts: Predicate = _ORCHESTRAS, settle: float = 5.0) -> Iterator[None]:
    """Check that the block leaves nothing: AssertionError with the list, or its own error."""
    before = snapshot()
    yield
    new = leaked(before, counts, settle)
    assert not new, f"{len(new)} things are left behind:\n" + "\n".join(map(str, new))


# --- processes and namespaces -----------------------------------------------------------------


class _Process(NamedTuple):
    pid: int
    start: str
    text: str  # command, working directory, cgroup
    namespaces: dict[str, str]  # kind:[inode] -> a path to open it by


def _processes() -> list[_Process]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                process = _process(int(name))
                if process is not None:
                    found.append(process)
    return found


def _process(pid: int) -> _Process | None:
    """None for a zombie that only the machine's init has not reaped yet: it is nobody's."""
    directory = f"/proc/{pid}"
    with open(f"{directory}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[:2] == ["Z", "1"]:
        return None
    start = fields[19]
    with open(f"{directory}/cmdline", "rb") as file:
        command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    with open(f"{directory}/cgroup") as file:
        groups = {line.rstrip("\n").split(":", 2)[2] for line in file} - {"/"}
    words = [command[:300] or "kernel thread or zombie", *sorted(groups)]
    namespaces = {}
    with contextlib.suppress(OSError):  # of kernel threads and zombies there is none
        words.append(f"cwd {os.readlink(f'{directory}/cwd')}")
    for kind in os.listdir(f"{directory}/ns"):
        with contextlib.suppress(OSError):
            path = f"{directory}/ns/{kind}"
            namespaces[os.readlink(path)] = path
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"{directory}/fd"):  # an agent holds namespaces by descriptor
            target = os.readlink(f"{directory}/fd/{fd}")
            if target.startswith(("net:[", "mnt:[", "pid:[", "uts:[", "ipc:[")):
                namespaces[target] = f"{directory}/fd/{fd}"
    return _Process(pid, start, ", ".join(words), namespaces)


def _process_things(processes: list[_Process]) -> Iterator[Thing]:
    for process in processes:
        if WORD in process.text and process.pid != os.getpid():
            yield Thing("process", f"{process.pid} since {process.start}", process.text)


class _Namespace(NamedTuple):
    name: str  # net:[4026531840]
    path: str  # to enter it by
    pid: int  # of a process in it or that holds it; 0: only a mount does
    holders: tuple[str, ...]


def _namespaces(processes: list[_Process]) -> dict[str, _Namespace]:
    found: dict[str, _Namespace] = {}
    for process in processes:
        for name, path in process.namespaces.items():
            held = found.get(name) or _Namespace(name, path, process.pid, ())
            found[name] = held._replace(holders=(*held.holders, process.text))
    for fields in _mountinfo("/proc/self/mountinfo"):
        if fields.kind == "nsfs" and fields.root not in found:
            found[fields.root] = _Namespace(fields.root, fields.target, 0, (fields.target,))
    return found


def _namespace_things(namespaces: dict[str, _Namespace]) -> Iterator[Thing]:
    for namespace in namespaces.values():
        yield Thing("namespace", namespace.name, "; ".join(namespace.holders[:3]))


def _names() -> Iterator[Thing]:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/run/netns"):
            yield Thing("name", f"/run/netns/{name}")


# --- mounts and cgroups -----------------------------------------------------------------------


class _Mount(NamedTuple):
    root: str
    target: str
    kind: str
    source: str


def _mountinfo(path: str) -> list[_Mount]:
    try:
        with open(path) as file:
            text = file.read()
    except OSError:  # its process ended
        return []
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        root, target = left.split(" ")[3:5]
        kind, source = right.split(" ")[:2]
        found.append(_Mount(_unescape(root), _unescape(target), kind, _unescape(source)))
    return found


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _mounts(namespaces: dict[str, _Namespace]) -> Iterator[Thing]:
    """Of every mount namespace that a process is in; one that is new is told as a namespace too."""
    own = os.readlink("/proc/self/ns/mnt")
    for namespace in namespaces.values():
        if namespace.name.startswith("mnt:") and namespace.path.endswith("/mnt"):
            where = "" if namespace.name == own else f" in {namespace.name}"
            for mount in _mountinfo(f"/proc/{namespace.pid}/mountinfo"):
                what = f"{mount.kind} {mount.source}{mount.root} on {mount.target}{where}"
                yield Thing("mount", what, "" if not where else "; ".join(namespace.holders[:1]))


def _cgroups() -> Iterator[Thing]:
    tops = {
        mount.target
        for mount in _mountinfo("/proc/self/mountinfo")
        if mount.kind in ("cgroup", "cgroup2") and mount.root == "/"
    }
    for top in tops:
        for path, _, _ in os.walk(top):
            if path != top:
                yield Thing("cgroup", path)


# --- links and nftables -----------------------------------------------------------------------


def _networks(namespaces: dict[str, _Namespace]) -> Iterator[Thing]:
    own = os.readlink("/proc/self/ns/net")
    for namespace in namespaces.values():
        if namespace.name.startswith("net:"):
            where = "" if namespace.name == own else f" in {namespace.name}"
            holder = "; ".join(namespace.holders[:1]) if where else ""
            links, tables = _inside(namespace.path)
            for link in links:
                yield Thing("link", f"{link}{where}", holder)
            for table in tables:
                yield Thing("nft table", f"{table}{where}", holder)


def _inside(path: str) -> tuple[list[str], list[str]]:
    """Links and nft tables of a network namespace; nothing of one that is gone meanwhile."""
    result: tuple[list[str], list[str]] = ([], [])

    def look() -> None:  # in a thread of its own: it ends in that namespace
        nonlocal result
        with contextlib.suppress(OSError), open(path) as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) == 0:
                result = [name for _, name in socket.if_nameindex()], list(_tables())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return result


def _tables() -> Iterator[str]:
    """A dump by NFT_MSG_GETTABLE: messages of (header, nfgenmsg, attributes) until DONE."""
    families = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as nfnetlink:
        nfnetlink.settimeout(5)
        request = struct.pack("=IHHII", 20, 10 << 8 | 1, 0x301, 1, 0)
        nfnetlink.send(request + struct.pack("=BBH", 0, 0, 0))
        while True:
            data = nfnetlink.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (2, 3):  # NLMSG_ERROR (no nftables in this kernel), NLMSG_DONE
                    return
                family, attributes = families.get(data[16], str(data[16])), data[20:length]
                while attributes:
                    size, number = struct.unpack_from("=HH", attributes)
                    if number == 1:  # NFTA_TABLE_NAME
                        name = attributes[4:size].rstrip(b"\0").decode()
                        yield f"{family} {name}"
                    attributes = attributes[(size + 3) & ~3 :]
                data = data[(length + 3) & ~3 :]


# --- files ------------------------------------------------------------------------------------


def _files() -> Iterator[Thing]:
    for place in PLACES:
        for top in glob.glob(f"{place}/{WORD}*") + glob.glob(f"{place}/.{WORD}*"):
            yield from _below(top, _DEPTH)


def _below(path: str, depth: int) -> Iterator[Thing]:
    yield Thing("file", path)
    if depth and os.path.isdir(path) and not os.path.islink(path):
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                yield from _below(f"{path}/{name}", depth - 1)


def main(arguments: list[str]) -> int:
    """save FILE | check FILE [WORD...]"""
    match arguments:
        case ["save", path]:
            with open(path, "w") as file:
                json.dump(sorted(snapshot()), file)
            return 0
        case ["check", path, *words]:
            with open(path) as file:
                before = {Thing(*row) for row in json.load(file)} | {Thing("file", path)}
            new = leaked(before, mentions(*(words or [WORD])))
            for thing in new:
                print(thing)
            return 1 if new else 0
    print(f"usage: leaks.py {main.__doc__}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
