"""One node's engine through its HTTP API, beside dockerd through the same, crun and runc.

The agent runs on a scratch host: namespaces of its own on this machine, as in the agent's tests.
A start counts from the first byte of POST create to the first byte that the program wrote: create,
attach, start, with the bridge network, seccomp and cgroups that every container gets. crun and
runc count from fork of `run` to the same byte, without any network. Rounds alternate.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.api import Api
from bench.dockerd import PROGRAMS, Dockerd, dockerd
from bench.peers import RUNTIMES, Peers, favour, remove_cgroups
from orchestra.model.paths import NodePaths
from tests.agent.host import Host

PACKAGES = {"crun": "crun", "runc": "runc", "dockerd": "docker.io"}
MANY, AT_ONCE = 100, 8
LOG_BYTES = 1 << 30
SLEEPER = {"Image": "busybox", "Cmd": ["sleep", "1000"]}
_SETTLE = 0.2  # seconds of quiet before memory is read
_REST = 0.06  # seconds between two latencies, on every side


def measure(rounds: int) -> list[dict[str, Any]]:
    for program, package in PACKAGES.items():
        if not shutil.which(program):
            raise SystemExit(f"bench: {program} is the peer here: apt-get install {package}")
    with _host() as host, _peers(host) as peers, dockerd() as docker:
        return [
            *_memory(host, docker),
            *_starts(host, docker, peers, rounds),
            *_execs(host, docker, peers, rounds),
            *_many(host, docker),
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


def _starts(host: Host, docker: Dockerd, peers: Peers, rounds: int) -> list[dict[str, Any]]:
    words = ("/bin/echo", "hi")
    peers.configure(*words)
    with Api(host.socket) as ours, Api(docker.socket) as theirs:
        medians = _alternate(
            rounds,
            {
                "ours": lambda number: _first_byte_of_a_start(ours, words),
                "dockerd": lambda number: _first_byte_of_a_start(theirs, words),
                "crun run, no network": lambda n: peers.ask("run", "crun", f"peer{n}"),
                "runc run, no network": lambda n: peers.ask("run", "runc", f"peer{n}"),
            },
        )
        alone = sorted(
            _rested(lambda: _first_byte_of_a_start(ours, words)) for _ in range(rounds * 4)
        )
    name = "create + start to the first byte, {}"
    p99 = alone[int(len(alone) * 0.99)] * 1000
    return [
        *_beside(name.format("p50"), medians, 10.0),
        _row(name.format("p99 of a series of our own"), "ms", p99, 30.0),
    ]


def _alternate(rounds: int, contenders: Mapping[str, Callable[[int], float]]) -> dict[str, float]:
    """Median milliseconds of each; the first three rounds only warm the caches of every side."""
    series: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-3, rounds):
        for name, work in contenders.items():
            seconds = _rested(lambda work=work, n=number: work(n))
            if number >= 0:
                series[name].append(seconds)
    return {name: statistics.median(seconds) * 1000 for name, seconds in series.items()}


def _beside(name: str, medians: Mapping[str, float], budget: float) -> list[dict[str, Any]]:
    """A row for each peer."""
    ours = medians["ours"]
    return [
        _row(name, "ms", ours, budget, peer=peer, value=value)
        for peer, value in medians.items()
        if peer != "ours"
    ]


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


def _execs(host: Host, docker: Dockerd, peers: Peers, rounds: int) -> list[dict[str, Any]]:
    words = ("/bin/echo", "hi")
    peers.configure("/bin/sleep", "1000")
    for runtime in RUNTIMES:
        peers.ask("start", runtime, f"{runtime}target")
    with Api(host.socket) as ours, Api(docker.socket) as theirs:
        target, other = _sleeper(ours), _sleeper(theirs)
        medians = _alternate(
            rounds,
            {
                "ours": lambda number: _first_byte_of_an_exec(ours, target, words),
                "dockerd": lambda number: _first_byte_of_an_exec(theirs, other, words),
                "crun exec": lambda number: peers.ask("exec", "crun", "cruntarget", *words),
                "runc exec": lambda number: peers.ask("exec", "runc", "runctarget", *words),
            },
        )
        ours.call("DELETE", f"/containers/{target}?force=1")
        theirs.call("DELETE", f"/containers/{other}?force=1")
    for runtime in RUNTIMES:
        peers.ask("delete", runtime, f"{runtime}target")
    return _beside("exec to the first byte, p50", medians, 6.0)


def _sleeper(api: Api) -> str:
    """A container that stays."""
    made: str = api.call("POST", "/containers/create", SLEEPER)["Id"]
    api.call("POST", f"/containers/{made}/start")
    return made


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


# --- many at once, and what each of them costs ---------------------------------------------------


def _many(host: Host, docker: Dockerd) -> list[dict[str, Any]]:
    """`AT_ONCE` connections of one client start `MANY` containers, here and with dockerd."""
    before = _pss_of_ours(host)
    ours = _at_once(host.socket)
    time.sleep(_SETTLE)
    each = (_pss_of_ours(host) - before) / MANY
    theirs = _at_once(docker.socket)
    listed, other = _listed(host.socket), _listed(docker.socket)
    with Api(host.socket) as api:
        for row in api.call("GET", "/containers/json"):
            api.call("DELETE", f"/containers/{row['Id']}?force=1")
    return [
        _row(f"{MANY} containers started, {AT_ONCE} at a time", "s", ours, 2.0,
             peer="dockerd", value=theirs),
        _row(f"list of {MANY} running containers", "ms", listed, peer="dockerd", value=other),
        _row("memory per running container beyond its processes", "KiB", each, 100.0),
    ]  # fmt: skip


def _listed(path: str) -> float:
    """Median milliseconds of a list, which has them all."""
    seconds = []
    with Api(path) as api:
        for _ in range(5):
            begun = time.perf_counter()
            rows = api.call("GET", "/containers/json")
            seconds.append(time.perf_counter() - begun)
            if len(rows) != MANY:
                raise RuntimeError(f"{len(rows)} of {MANY} containers run")
    return statistics.median(seconds) * 1000


def _at_once(path: str) -> float:
    """Seconds until all of them run."""
    errors: list[BaseException] = []

    def start(count: int) -> None:
        try:
            with Api(path) as api:
                for _ in range(count):
                    _sleeper(api)
        except BaseException as error:
            errors.append(error)

    counts = [len(range(first, MANY, AT_ONCE)) for first in range(AT_ONCE)]
    threads = [threading.Thread(target=start, args=(count,)) for count in counts]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begun


# --- memory --------------------------------------------------------------------------------------


def _memory(host: Host, docker: Dockerd) -> list[dict[str, Any]]:
    time.sleep(_SETTLE)
    return [
        _row("agent, shim, keeper and resolver idle, PSS", "MB", _pss_of_ours(host) / 1024, 60.0,
             peer="dockerd, containerd", value=_pss(docker.host, PROGRAMS) / 1024)
    ]  # fmt: skip


OURS = (
    "orchestra.agent.main",
    "orchestra.runtime.shim",
    "orchestra.runtime.keeper",
    "orchestra.fabric.resolver",
)


def _pss_of_ours(host: Host) -> float:
    return _pss(host, OURS)


def _pss(host: Host, programs: Sequence[str]) -> float:
    """KiB of the proportional set size of processes, by a word of their command line (proc(5))."""
    found = subprocess.run(
        host.enter("ps", "-eo", "pid,args"), capture_output=True, text=True, check=True
    ).stdout
    pids = [
        line.split()[0]
        for line in found.splitlines()
        if any(word in line for word in programs) and "-shim-" not in line
    ]
    if len(pids) != len(programs):
        raise RuntimeError(f"expected {', '.join(programs)}, found {len(pids)}:\n{found}")
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
