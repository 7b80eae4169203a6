"""A three-node lab with the guestbook up, made once for the acceptance tests.

Everything goes through the command line as a user types it. The lab is taken down at the end, also
when tests fail; the leak test compares the machine before and after.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parents[2]
GUESTBOOK = ROOT / "examples" / "guestbook"
CACHE = Path(os.environ.get("ORCHESTRA_IMAGE_CACHE", "/var/cache/orchestra"))
IMAGES = ("python", "redis", "busybox")
T = TypeVar("T")


class Cluster:
    """A lab and a scratch copy of the guestbook that tests may edit."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        self.folder = scratch / "guestbook"
        self.environment = {
            **os.environ,
            "ORCHESTRA_CONFIG": str(scratch / "config"),
            "XDG_RUNTIME_DIR": str(scratch / "run"),
        }

    def orchestra(
        self, *command: str, cwd: Path | None = None, code: int | None = 0, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestra.cli.main", *command],
            cwd=cwd or self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=settings.pop("timeout", 180),
            **settings,
        )
        if code is not None:
            assert done.returncode == code, (
                f"orchestra {' '.join(command)} ended with {done.returncode}, not {code}\n"
                f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    def json(self, *command: str) -> Any:
        return json.loads(self.orchestra(*command, "--format", "json").stdout)

    def client(self, *command: str, code: int | None = 0) -> str:
        """Run a command as a machine outside the cluster."""
        return self.orchestra("lab", "client", "--name", self.name, *command, code=code).stdout

    def get(self, address: str, count: int = 1, port: int = 8080) -> list[str]:
        """Fetch the page `count` times from one node, each on a connection of its own."""
        script = (
            "import sys, urllib.request\n"
            f"for _ in range({count}):\n"
            f"    r = urllib.request.urlopen('http://{address}:{port}/', timeout=5)\n"
            "    sys.stdout.write(r.read().decode() + '\\0')\n"
        )
        return self.client("/usr/bin/python3", "-c", script).split("\0")[:-1]

    def on(self, node: str, script: str) -> str:
        """Run a shell script as root of one of the lab's hosts."""
        return self.orchestra("lab", "exec", "--name", self.name, node, "sh", "-c", script).stdout

    def wait_for(self, what: str, probe: Callable[[], T | None]) -> T:
        """The first true answer of `probe`, asked again and again for a minute."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := probe():
                return found
        raise AssertionError(f"waited a minute in vain: {what}")

    def wait_until_ready(self) -> None:
        self.wait_for(
            "all nodes are ready",
            lambda: all(node["state"] == "ready" for node in self.json("node", "ls")),
        )

    @property
    def addresses(self) -> list[str]:
        return [node["address"] for node in self.json("node", "ls")]

    def tasks(self, service: str = "") -> list[dict[str, Any]]:
        return [t for t in self.json("ps") if not service or t["service"] == service]


@pytest.fixture(scope="session")
def base_images() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "orchestra.testing.baseimages", "--cache", str(CACHE), *IMAGES],
        check=True,
        timeout=600,
    )
    return CACHE


@pytest.fixture(scope="session")
def lab(base_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes with a controller and the base images loaded; no stack."""
    scratch = tmp_path_factory.mktemp("acceptance")
    (scratch / "run").mkdir(mode=0o700)
    cluster = Cluster(f"at{os.getpid()}", scratch)
    shutil.copytree(GUESTBOOK, cluster.folder)
    try:
        cluster.orchestra("lab", "up", "--name", cluster.name, "--nodes", "3", timeout=300)
        for name in IMAGES:
            cluster.orchestra("image", "load", "--input", str(base_images / f"{name}.tar"))
        yield cluster
    finally:
        cluster.orchestra("lab", "down", "--name", cluster.name, code=None, timeout=120)


@pytest.fixture(scope="session")
def guestbook(lab: Cluster) -> Cluster:
    """The guestbook, up and healthy on the lab."""
    lab.orchestra("up", "--timeout", "120", timeout=150)
    return lab
