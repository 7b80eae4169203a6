"""Registries for the tests: small ones of our own, and Debian's."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.registry_server import Place, RegistryForTests
from orchestra.image import registry as client


@pytest.fixture
def server() -> Iterator[RegistryForTests]:
    server = RegistryForTests()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[RegistryForTests]:
    server = RegistryForTests()
    yield server
    server.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)


@pytest.fixture
def place(tmp_path: Path, quick: None) -> Place:
    return Place(tmp_path)


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a loopback port; its host."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is not installed: `make test` does that")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config = tmp_path / "registry.json"  # YAML takes JSON
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": host}}))
    process = subprocess.Popen(
        [program, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(host.partition(":")[2]))).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
        yield host
    finally:
        process.kill()
        process.wait()
