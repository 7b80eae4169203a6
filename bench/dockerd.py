"""Docker's engine (Debian's docker.io) as a peer that speaks the same API.

It runs on a scratch host of its own, like our agent, so that neither its bridge nor its rules touch
this machine; all of it goes when that host's power is cut.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from bench.peers import favour
from tests.agent.host import Host, busybox_archive

PROGRAMS = ("dockerd", "containerd")


@frozen
class Dockerd:
    host: Host
    socket: str


@contextmanager
def dockerd() -> Iterator[Dockerd]:
    """A dockerd that has the image `busybox`. Raises RuntimeError with its log where it fails."""
    host = Host()
    try:
        place = host.root / "docker"
        place.mkdir()
        found = Dockerd(host, str(place / "docker.sock"))
        favour(host.name)
        with open(place / "log", "wb") as log:
            process = subprocess.Popen(
                host.enter(
                    "dockerd",
                    *("--data-root", f"{place}/data", "--exec-root", f"{place}/exec"),
                    *("--pidfile", f"{place}/pid", "-H", f"unix://{found.socket}"),
                    *("--cgroup-parent", f"/{host.name}", "--storage-driver", "overlay2"),
                ),
                stdout=log,
                stderr=log,
            )
        try:
            _wait(found.socket, process, place / "log")
            command = ["docker", "-H", f"unix://{found.socket}", "load"]
            subprocess.run(command, input=busybox_archive(), check=True, capture_output=True)
            yield found
        finally:
            process.kill()
            process.wait()
    finally:
        host.close()


def _wait(path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if Path(path).exists():
            asked = subprocess.run(
                ["docker", "-H", f"unix://{path}", "version"], capture_output=True
            )
            if asked.returncode == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"dockerd does not answer:\n{log.read_text()[-3000:]}")
