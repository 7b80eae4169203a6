"""A lab of three nodes with a controller and one small image, shared by the tests of this folder.

Every test brings stacks of its own, as files that the command line is pointed at. Afterwards they
are taken down, and it is checked that nothing of them is left: no task, no container, no volume.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestra.testing.lab.hosts import STATE

CACHE = Path(os.environ.get("ORCHESTRA_IMAGE_CACHE", "/var/cache/orchestra"))
T = TypeVar("T")


class Lab:
    """The command line of an operator of the lab."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRA_", "COMPOSE_"))},
            "ORCHESTRA_CONFIG": str(scratch / "config"),
            "XDG_RUNTIME_DIR": str(scratch / "run"),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "orchestra.cli.main", *words]

    def orchestra(
        self, *words: str, code: int | None = 0, cwd: Path | None = None, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            self.command(*words),
            cwd=cwd or self.scratch,
            env={**self.environment, **settings.pop("env", {})},
            text=True,
            capture_output=True,
            timeout=settings.pop("timeout", 100),
            **settings,
        )
        if code is not None:
            assert done.returncode == code, (
                f"orchestra {' '.join(words)} ended with {done.returncode}, not {code}\n"
                f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    def power(self, verb: str, node: str) -> None:
        self.orchestra("lab", verb, "--name", self.name, node)

    def on(self, node: str, script: str) -> str:
        """Run a shell script on a node."""
        words = ("lab", "exec", "--name", self.name, node, "sh", "-c", script)
        return self.orchestra(*words).stdout

    def state_of(self, node: str) -> str:
        rows = json.loads(self.orchestra("node", "ls", "--format", "json").stdout)
        return next(row["state"] for row in rows if row["name"] == node)

    def left(self) -> list[str]:
        """The containers and volumes on the nodes' disks."""
        hosts = Path(f"{STATE}/{self.name}/hosts")
        kinds = ("containers", "volumes")
        return [str(p) for k in kinds for p in hosts.glob(f"*/root/var/lib/orchestra/{k}/*")]


class Stack:
    """A stack in a folder of its own."""

    def __init__(self, lab: Lab, folder: Path, name: str) -> None:
        self.lab = lab
        self.name = name
        self.folder = folder
        folder.mkdir()

    def write(self, text: str, **files: str) -> None:
        """Write the compose file (without its name) and files beside it."""
        text = textwrap.dedent(text)
        (self.folder / "compose.yaml").write_text(f"name: {self.name}\n{text}")
        for name, content in files.items():
            (self.folder / name).write_text(content)

    def __call__(self, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self.lab.orchestra(*words, cwd=self.folder, **settings)

    def up(self, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self("up", "--timeout", "80", *words, **settings)

    def refused(self, *words: str, code: int = 1, **settings: Any) -> str:
        """What a command says that must fail, both streams."""
        done = self(*words, code=code, **settings)
        return done.stdout + done.stderr

    def tasks(self, *services: str, all: bool = False) -> dict[str, dict[str, Any]]:
        """The rows of `ps` by slot."""
        words = ("ps", "--format", "json", *(["-a"] if all else []), *services)
        return {row["slot"]: row for row in json.loads(self(*words).stdout)}

    def wait(self, what: str, found: Callable[[], T], patience: float = 60.0) -> T:
        deadline = time.monotonic() + patience
        while not (answer := found()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true\n{self('ps', '-a').stdout}")
            time.sleep(0.1)
        return answer

    def nothing_is_there(self) -> None:
        """Neither a word of it in the cluster nor a trace on a node."""
        assert "is not up" in self("ps").stderr
        assert not self.lab.left()


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "orchestra.testing.baseimages", "--cache", str(CACHE), "busybox"],
        check=True,
        timeout=600,
    )
    scratch = tmp_path_factory.mktemp("cluster")
    (scratch / "run").mkdir(mode=0o700)
    lab = Lab(f"ct{os.getpid()}", scratch)
    try:
        lab.orchestra("lab", "up", "--name", lab.name, "--nodes", "3", timeout=300)
        lab.orchestra("image", "load", "--input", str(CACHE / "busybox.tar"))
        lab.orchestra("node", "label", "node2", "disk=ssd")
        yield lab
    finally:
        lab.orchestra("lab", "down", "--name", lab.name, code=None, timeout=120)
        shutil.rmtree(scratch / "run", ignore_errors=True)


@pytest.fixture
def make_stack(lab: Lab, tmp_path: Path) -> Iterator[Callable[[str], Stack]]:
    made: list[Stack] = []

    def make(name: str) -> Stack:
        made.append(Stack(lab, tmp_path / name, name))
        return made[-1]

    yield make
    for stack in made:
        lab.orchestra("-p", stack.name, "down", "-v", "--timeout", "60", cwd=tmp_path)
    if made:
        made[0].wait("the removal of all containers", lambda: not lab.left())


@pytest.fixture
def app(make_stack: Callable[[str], Stack]) -> Stack:
    """An empty stack."""
    return make_stack("app")


@contextmanager
def lab_process(lab: Lab, node: str, *words: str) -> Iterator[None]:
    """A program that runs on a node; entered when it has written its first line."""
    command = lab.command("lab", "exec", "--name", lab.name, node, *words)
    with subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # nsenter and its child


def make_rootfs(path: Path, megabytes: int) -> None:
    """A root file system's tar: busybox, and that much of what cannot be compressed."""
    with tarfile.open(CACHE / "busybox.tar") as image, tarfile.open(path, "w") as out:
        manifest = json.load(image.extractfile("manifest.json"))  # type: ignore[arg-type]
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=image.extractfile(layer)) as root:
                for member in root:
                    out.addfile(member, root.extractfile(member) if member.isreg() else None)
        noise = tarfile.TarInfo("noise")
        noise.size = megabytes << 20
        out.addfile(noise, io.BytesIO(os.urandom(noise.size)))
