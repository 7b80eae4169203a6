"""One node's engine through its HTTP API, beside crun and runc (and dockerd's memory) in one run.

The agent runs on a scratch host: namespaces of its own on this machine, as in the agent's tests.
A start counts from the first byte of POST create to the first byte that the program wrote: create,
attach, start, with the bridge network, seccomp and cgroups that every container gets. The peers
count from fork of `crun run` to the same byte, without any network. Rounds alternate.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.api import Api
from bench.peers import RUNTIMES, Peers, favour, remove_cgroups
from orchestra.model.paths import NodePaths
from tests.agent.host import Host

PACKAGES = {"crun": "crun", "runc": "runc"}
MANY, AT_ONCE = 100, 8
LOG_BYTES = 1 << 30
_SETTLE = 0.2  # seconds of quiet before memory is read
_REST = 0.06  # seconds between two latencies, on every side


def measure(rounds: int) -> list[dict[str, Any]]:
    for program, package in PACKAGES.items():
        if not shutil.which(program):
            raise SystemExit(f"bench: {program} is the peer here: apt-get install {package}")
    with _host() as host, _peers(host) as peers:
        return [
            *_memory(host),
            *_starts(host, peers, rounds),
            *_execs(host, peers, rounds),
            *_many(host, peers),
            *_log(host, max(3, min(5, rounds // 6))),
        ]


def _row(
    name: str, unit: str, ours: float, budget: float | None = None, *, better: str = "lower",
    peer: str | None = None, value: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "group": "engine",
        "name": name,
        "unit": unit,
        "ours": ours,
        "budget": budget,
        "peer": peer,
        "peer_value": value,
        "better": better,
    }


@contextmanager
def _host() -> Iterator[Host]:
    host = Host()
    try:
        host.start()
        host.load_busybox()
        favour(host.name)
        yield host
    finally:
        host.close()


@contextmanager
def _peers(host: Host) -> Iterator[Peers]:
    """The peers use the files of our own image's layer."""
    (layer,) = Path(NodePaths(str(host.state)).images, "layers").iterdir()
    name = f"{host.name}peers"
    peers = Peers(host.root, layer / "diff", name)
    favour(name)
    try:
        yield peers
    finally:
        peers.close()
        remove_cgroups(name)


# --- start and exec ------------------------------------------------------------------------------


def _starts(host: Host, peers: Peers, rounds: int) -> list[dict[str, Any]]:
    words = ("/bin/echo", "hi")
    peers.configure(*words)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    with Api(host.socket) as api:
        for number in range(-3, rounds):  # the first warm caches on every side
            took = _rested(lambda: _first_byte_of_a_start(api, words))
            name = f"peer{number}"
            times = {r: _rested(lambda r=r, n=name: peers.ask("run", r, n)) for r in RUNTIMES}
            if number >= 0:
                ours.append(took)
                for runtime, seconds in times.items():
                    theirs[runtime].append(seconds)
        alone = sorted(
            _rested(lambda: _first_byte_of_a_start(api, words)) for _ in range(rounds * 4)
        )
    name = "create + start to the first byte, {}"
    rows = [
        _row(name.format("p50"), "ms", _p50(ours), 10.0, peer=f"{runtime} run, no network",
             value=_p50(times))
        for runtime, times in theirs.items()
    ]  # fmt: skip
    p99 = alone[int(len(alone) * 0.99)] * 1000
    return [*rows, _row(name.format("p99 of a series of our own"), "ms", p99, 30.0)]


def _rested(work: Callable[[], float]) -> float:
    """Measure after the kernel has put away what ran before: the ends of namespaces and cgroups
    are worked off behind the back of whoever left them, and would be the next one's delay."""
    time.sleep(_REST)
    return work()


def _first_byte_of_a_start(api: Api, words: tuple[str, ...]) -> float:
    body = {"Image": "busybox", "Cmd": list(words), "AttachStdout": True}
    begun = time.perf_counter()
    made = api.call("POST", "/containers/create", body)["Id"]
    with api.attach(made) as stream:
        api.start(made)
        frame = stream.recv(4096)
        took = time.perf_counter() - begun
        api.finish()
        while stream.recv(4096):
            continue
    if frame[8:] not in (b"", b"hi\n"):
        raise RuntimeError(f"the container wrote {frame!r}")
    api.call("DELETE", f"/containers/{made}?force=1")
    return took


def _execs(host: Host, peers: Peers, rounds: int) -> list[dict[str, Any]]:
    words = ("/bin/echo", "hi")
    target = host.run_container("sleep", "1000", name="target")
    peers.configure("/bin/sleep", "1000")
    ours: list[float] = []
    theirs: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for runtime in RUNTIMES:
        peers.ask("start", runtime, f"{runtime}target")
    with Api(host.socket) as api:
        for number in range(-3, rounds):
            took = _rested(lambda: _first_byte_of_an_exec(api, target, words))
            times = {
                r: _rested(lambda r=r: peers.ask("exec", r, f"{r}target", *words)) for r in RUNTIMES
            }
            if number >= 0:
                ours.append(took)
                for runtime, seconds in times.items():
                    theirs[runtime].append(seconds)
    for runtime in RUNTIMES:
        peers.ask("delete", runtime, f"{runtime}target")
    host.ok("DELETE", "/containers/target?force=1")
    return [
        _row("exec through the API to the first byte, p50", "ms", _p50(ours), 6.0,
             peer=f"{runtime} exec", value=_p50(times))
        for runtime, times in theirs.items()
    ]  # fmt: skip


def _first_byte_of_an_exec(api: Api, target: str, words: tuple[str, ...]) -> float:
    begun = time.perf_counter()
    body = {"Cmd": list(words), "AttachStdout": True}
    made = api.call("POST", f"/containers/{target}/exec", body)["Id"]
    with api.exec_start(made) as stream:
        frame = stream.recv(4096)
        took = time.perf_counter() - begun
        while stream.recv(4096):
            continue
    if frame[8:] not in (b"", b"hi\n"):
        raise RuntimeError(f"the exec wrote {frame!r}")
    return took


def _p50(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


# --- many at once, and what each of them costs ---------------------------------------------------


def _many(host: Host, peers: Peers) -> list[dict[str, Any]]:
    """`AT_ONCE` connections of one client start `MANY` containers; then the same with crun."""
    before = _pss_of_ours(host)
    begun = time.perf_counter()
    _at_once(lambda numbers: _run_each(host, numbers))
    ours = time.perf_counter() - begun
    time.sleep(_SETTLE)
    each = (_pss_of_ours(host) - before) / MANY
    begun = time.perf_counter()
    with Api(host.socket) as api:
        rows = api.call("GET", "/containers/json")
    listed = time.perf_counter() - begun
    if len(rows) != MANY:
        raise RuntimeError(f"{len(rows)} of {MANY} containers run")
    _at_once(lambda numbers: _remove_each(host, [rows[n]["Id"] for n in numbers]))
    return [
        _row(f"{MANY} containers started, {AT_ONCE} at a time", "s", ours, 2.0),
        _row(f"list of {MANY} running containers", "ms", listed * 1000),
        _row("memory per running container beyond its processes", "KiB", each, 100.0),
    ]


def _at_once(work: Any) -> None:
    errors: list[BaseException] = []

    def guarded(numbers: range) -> None:
        try:
            work(numbers)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(range(first, MANY, AT_ONCE),))
        for first in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _run_each(host: Host, numbers: range) -> None:
    body = {"Image": "busybox", "Cmd": ["sleep", "1000"]}
    with Api(host.socket) as api:
        for _ in numbers:
            made = api.call("POST", "/containers/create", body)["Id"]
            api.call("POST", f"/containers/{made}/start")


def _remove_each(host: Host, ids: list[str]) -> None:
    with Api(host.socket) as api:
        for container in ids:
            api.call("DELETE", f"/containers/{container}?force=1")


# --- memory --------------------------------------------------------------------------------------


def _memory(host: Host) -> list[dict[str, Any]]:
    time.sleep(_SETTLE)
    return [
        _row("agent, shim, keeper and resolver idle, PSS", "MB", _pss_of_ours(host) / 1024, 60.0)
    ]


def _pss_of_ours(host: Host) -> float:
    """KiB of the proportional set size of a node's own processes (proc(5))."""
    found = subprocess.run(
        host.enter("ps", "-eo", "pid,args"), capture_output=True, text=True, check=True
    ).stdout
    words = (
        "orchestra.agent.main",
        "orchestra.runtime.shim",
        "orchestra.runtime.keeper",
        "orchestra.fabric.resolver",
    )
    pids = [line.split()[0] for line in found.splitlines() if any(w in line for w in words)]
    if len(pids) != len(words):
        raise RuntimeError(f"expected one of each of {words}, found {len(pids)}:\n{found}")
    total = 0.0
    for pid in pids:
        rollup = subprocess.run(
            host.enter("cat", f"/proc/{pid}/smaps_rollup"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        total += next(float(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:"))
    return total


# --- logs ----------------------------------------------------------------------------------------


def _log(host: Host, rounds: int) -> list[dict[str, Any]]:
    """A program that writes as fast as it can: into our log, and through a pipe into a file."""
    blocks = LOG_BYTES >> 16
    program = f"dd if=/dev/zero bs=64k count={blocks} 2>/dev/null"
    ours, plain = [], []
    for _ in range(rounds):
        made = host.ok("POST", "/containers/create", {"Image": "busybox", "Cmd": ["sh", "-c",
                       program]})["Id"]  # fmt: skip
        begun = time.perf_counter()
        host.ok("POST", f"/containers/{made}/start")
        host.ok("POST", f"/containers/{made}/wait")
        ours.append(time.perf_counter() - begun)
        log = f"{NodePaths(str(host.state)).container(made)}/stdout.log"
        written = os.path.getsize(log)
        if written != LOG_BYTES:
            raise RuntimeError(f"the log has {written} of {LOG_BYTES} bytes")
        host.ok("DELETE", f"/containers/{made}")
        target = host.root / "plain"
        begun = time.perf_counter()
        subprocess.run(["/bin/busybox", "sh", "-c", f"{program} | cat > {target}"], check=True)
        plain.append(time.perf_counter() - begun)
        target.unlink()
    rate, floor = (LOG_BYTES / statistics.median(t) / 1e6 for t in (ours, plain))
    return [
        _row("container's output to disk, times kept", "MB/s", rate, 0.85 * floor, better="higher",
             peer="busybox pipe to a file", value=floor)
    ]  # fmt: skip
