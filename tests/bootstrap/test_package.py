"""The archives that are pushed to hosts: what is in them, and that they run as they are."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from orchestra.controller.package import (
    Archive,
    Platform,
    agent_archive,
    controller_archive,
    own_platform,
)

OTHER = Platform("linux-other", "riscv64", "3.12")
NOT_THE_AGENTS = ("asyncssh", "yaml", "cryptography", "jsonschema", "rich", "trio_asyncio")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orchestra"


def names(archive: Archive) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive.data)) as tar:
        return tar.getnames()


def unpacked(archive: Archive, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(archive.data)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_agent_for_another_platform_is_pure_python_and_runs(tmp_path: Path) -> None:
    archive = agent_archive(OTHER)
    assert not archive.needs
    assert not [name for name in names(archive) if ".so" in name]
    done = run(unpacked(archive, tmp_path / "agent"), "agent", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: orchestra agent" in done.stdout


def test_the_agent_has_nothing_of_the_controller() -> None:
    found = names(agent_archive(own_platform()))
    packages = {name.split("/")[1] for name in found if name.startswith("orchestra/")}
    assert packages.isdisjoint({"controller", "cli", "compose", "transport", "testing"})
    tops = {name.split("/")[0] for name in found}
    assert tops.isdisjoint(NOT_THE_AGENTS)
    assert {"orchestra", "trio", "h11", "attr", "attrs"} <= tops


def test_on_the_own_platform_compiled_codecs_ride_along() -> None:
    assert [name for name in names(agent_archive(own_platform())) if ".so" in name]


def test_the_controller_runs_on_the_own_platform_and_names_what_others_must_fetch(
    tmp_path: Path,
) -> None:
    archive = controller_archive(own_platform())
    assert not archive.needs
    done = run(unpacked(archive, tmp_path / "controller"), "serve-controller", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: orchestra serve-controller" in done.stdout
    other = controller_archive(OTHER)
    assert any(need.startswith("cryptography==") for need in other.needs)
    assert not [name for name in names(other) if ".so" in name]


def test_equal_sources_make_the_same_version_once(cache: Path) -> None:
    first = agent_archive(OTHER)
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    assert agent_archive(OTHER) == first
    assert file.stat().st_mtime_ns == made
    assert agent_archive(own_platform()).version != first.version
