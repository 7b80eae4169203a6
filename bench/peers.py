"""runc and crun on a bundle that asks for what our containers get by default.

The same namespaces (mount, pid, net, ipc, uts, cgroup where the host has them), default seccomp
profile, capability set, masked and read-only paths, mounts and a cgroup in every controller; the
root is an overlay over the same files. Their network namespace stays empty: neither makes wires,
so what they need for a bridge would come on top. They are driven from a process of its own, which
hides the cgroup2 mount of a hybrid host, because crun refuses one.
`python -m bench.peers DIRECTORY` reads commands as JSON lines and answers with seconds.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestra.api.render import MASKED_PATHS, READONLY_PATHS
from orchestra.linux import capabilities
from orchestra.linux.cgroups import find_hierarchy
from orchestra.linux.seccomp import ALLOW, running_kernel
from orchestra.linux.seccomp_default import DEFAULT_PROFILE
from orchestra.linux.syscall_numbers import ARCHITECTURES

RUNTIMES = ("crun", "runc")
_SCMP = {ALLOW: "SCMP_ACT_ALLOW"}


class Peers:
    """The driver process, with a bundle for each runtime; `lower` holds the root's files."""

    def __init__(self, directory: Path, lower: Path, name: str) -> None:
        self._name, self._top = name, directory / "peers"
        for part in ("rootfs", "upper", "work", *RUNTIMES):
            (self._top / part).mkdir(parents=True)
        overlay = f"lowerdir={lower},upperdir={self._top}/upper,workdir={self._top}/work"
        hide = "umount /sys/fs/cgroup/unified 2>/dev/null; true"
        mount = f"mount -t overlay overlay -o {overlay} {self._top}/rootfs"
        driver = f"exec {sys.executable} -m bench.peers {self._top}"
        self._driver = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{hide}; {mount} && {driver}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def configure(self, *args: str) -> None:
        """Say which program the containers of the bundles run."""
        for runtime in RUNTIMES:
            bundle = configuration(args, f"{self._top}/rootfs", f"/{self._name}/{runtime}")
            (self._top / runtime / "config.json").write_text(json.dumps(bundle))

    def ask(self, verb: str, runtime: str, id_: str, *args: str) -> float:
        """Have the driver do `verb` (a method of Driver below); the seconds it took."""
        assert self._driver.stdin and self._driver.stdout
        print(json.dumps([verb, runtime, id_, *args]), file=self._driver.stdin, flush=True)
        answer = self._driver.stdout.readline()
        if not answer:
            raise RuntimeError(f"{runtime} {verb} failed, see its words above")
        return float(answer)

    def close(self) -> None:
        assert self._driver.stdin
        self._driver.stdin.close()
        self._driver.wait()


class Driver:
    """The verbs; each returns the seconds from the start of the command to what it is for."""

    def __init__(self, top: str) -> None:
        self._top = top

    def run(self, runtime: str, id_: str) -> float:
        """A container from nothing to its first byte; it is gone when this returns."""
        return self._first_byte([runtime, "run", "--bundle", f"{self._top}/{runtime}", id_])

    def start(self, runtime: str, id_: str) -> float:
        """A container in the background; the seconds until it runs."""
        command = [runtime, "run", "--detach", "--bundle", f"{self._top}/{runtime}", id_]
        begun = time.perf_counter()
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begun

    def exec(self, runtime: str, id_: str, *args: str) -> float:
        """A further process in a running container to its first byte."""
        return self._first_byte([runtime, "exec", id_, *args])

    def delete(self, runtime: str, id_: str) -> float:
        subprocess.run([runtime, "delete", "--force", id_], check=True)
        return 0.0

    def _first_byte(self, command: list[str]) -> float:
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as made:
            assert made.stdout
            first = os.read(made.stdout.fileno(), 1)
            took = time.perf_counter() - begun
            made.stdout.read()
        if not first or made.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {made.returncode}")
        return took


def configuration(args: tuple[str, ...], root: str, cgroup: str) -> dict[str, Any]:
    """The bundle's config.json (OCI runtime-spec 1.0)."""
    caps = [f"CAP_{name}" for name in capabilities.DEFAULT]
    safe = ["nosuid", "noexec", "nodev"]
    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
            "noNewPrivileges": False,
        },
        "root": {"path": root, "readonly": False},
        "hostname": "peer",
        "mounts": [
            _mount("/proc", "proc", "proc", safe),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance",
                   "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),
            _mount("/dev/mqueue", "mqueue", "mqueue", safe),
            _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "cgroupsPath": cgroup,
            "resources": {"devices": _devices()},
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "seccomp": _seccomp(caps),
        },
    }  # fmt: skip


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _devices() -> list[dict[str, Any]]:
    allowed = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
    rows: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in allowed:
        row: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rows.append(row if minor is None else {**row, "minor": minor})
    return rows


def _seccomp(caps: list[str]) -> dict[str, Any]:
    machine, kernel = os.uname().machine, running_kernel()
    known = ARCHITECTURES[machine][1]
    rules = []
    for rule in DEFAULT_PROFILE.rules:
        if not rule.applies(frozenset(caps), machine, kernel):
            continue
        out: dict[str, Any] = {"names": [n for n in rule.names if n in known], **_act(rule.action)}
        if rule.conditions:
            out["args"] = [
                {"index": c.index, "value": c.value, "valueTwo": c.value_two,
                 "op": f"SCMP_CMP_{c.op}"}
                for c in rule.conditions
            ]  # fmt: skip
        rules.append(out)
    default = _act(DEFAULT_PROFILE.default)
    return {
        "defaultAction": default["action"],
        "defaultErrnoRet": default["errnoRet"],
        "architectures": [f"SCMP_ARCH_{machine.upper()}"],
        "syscalls": rules,
    }


def _act(action: int) -> dict[str, Any]:
    if action in _SCMP:
        return {"action": _SCMP[action]}
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xFFFF}


def favour(name: str) -> None:
    """Give the cgroup above all containers of one side the share that priority gives to the rest
    of the bench: within a cgroup a nice value counts nothing outside of it."""
    hierarchy = find_hierarchy()
    file, most = ("cpu.weight", 10_000) if hierarchy.version == 2 else ("cpu.shares", 1 << 18)
    directory = Path(hierarchy.mounts["cpu"], name)
    directory.mkdir(exist_ok=True)
    (directory / file).write_text(str(most))


def remove_cgroups(name: str) -> None:
    """What the peers leave of their cgroup's parent."""
    for mount in set(find_hierarchy().mounts.values()):
        for directory in (*(f"{mount}/{name}/{r}" for r in RUNTIMES), f"{mount}/{name}"):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise


def main() -> None:
    driver = Driver(sys.argv[1])
    for line in sys.stdin:
        verb, runtime, id_, *args = json.loads(line)
        print(getattr(driver, verb)(runtime, id_, *args), flush=True)


if __name__ == "__main__":
    main()
