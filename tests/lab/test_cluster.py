"""A whole lab comes up as a cluster and goes without a trace, however far it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import pytest

from tests.lab_user import LabUser
from tests.leaks import mentions, no_leaks

CACHE = Path(os.environ.get("ORCHESTRA_IMAGE_CACHE", "/var/cache/orchestra"))


@pytest.fixture
def user(tmp_path: Path) -> Iterator[LabUser]:
    """A user whose lab leaves nothing at all of what was not there before."""
    user = LabUser(f"tc{os.getpid()}", tmp_path)
    with no_leaks(mentions(user.name, str(tmp_path)), settle=20.0):
        try:
            yield user
        finally:
            user.lab("down", code=None)
        assert [p.name for p in (tmp_path / "run").iterdir()] == []


def test_a_lab_is_a_cluster_and_the_current_one(user: LabUser) -> None:
    user.lab("up", "--nodes", "2")
    (cluster,) = user.json("cluster", "ls")
    assert (cluster["name"], cluster["current"], cluster["controller"]) == (
        user.name,
        True,
        "node1",
    )
    assert user.states() == {"node1": "ready", "node2": "ready"}
    assert user.json("controller", "status")[0]["role"] == "daemon"
    # Up again: what is off is switched on, nothing else changes.
    user.lab("kill", "node2")
    user.lab("up", "--nodes", "2")
    assert user.states() == {"node1": "ready", "node2": "ready"}
    user.lab("down")
    assert user.json("cluster", "ls") == []
    assert user.name not in user("lab", "ls", "-q").stdout.split()


@pytest.mark.parametrize("moment", ["hosts", "agents", "controller"])
def test_a_lab_that_was_killed_while_it_came_up_leaves_nothing(user: LabUser, moment: str) -> None:
    words = user.command("lab", "up", "--name", user.name, "--nodes", "2")
    process = subprocess.Popen(words, env=user.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    if moment == "hosts":
        run = Path(f"/run/orchestra-lab/{user.name}")
        user.wait("the first host", lambda: any(run.glob("*.pid")))
    else:
        word = "installing agent" if moment == "agents" else "installing controller"
        assert any(word in line for line in process.stderr)
        time.sleep(0.3)  # somewhere in the middle of it; where does not matter
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    user.lab("down")


def test_a_lab_that_fails_takes_itself_away(user: LabUser) -> None:
    words = user.command("lab", "up", "--name", user.name, "--nodes", "2")
    process = subprocess.Popen(words, env=user.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("installing agent" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130
    assert user.name not in user("lab", "ls", "-q").stdout.split()


def test_a_power_cut_restarts_containers_by_their_policy(user: LabUser) -> None:
    user.lab("up", "--nodes", "1", "--no-controller")
    archive = CACHE / "busybox.tar"
    words = (sys.executable, "-m", "orchestra.testing.baseimages", "--cache", str(CACHE))
    subprocess.run([*words, "busybox"], check=True, timeout=110)
    user("image", "load", "--input", str(archive), "--node", "node1")
    with engine_of(user) as engine:
        policies = {"ever": "always", "also": "unless-stopped", "once": "no"}
        for name, policy in policies.items():
            restart = {"Name": policy}
            words = ["sleep", "1000"]
            engine.containers.run("busybox", words, name=name, detach=True, restart_policy=restart)
        assert running(engine) == {"ever", "also", "once"}
    user.lab("kill", "node1")
    user.lab("boot", "node1")
    user.wait("its socket", lambda: "agent.sock" in user.on("node1", "ls /run/orchestra"))
    with engine_of(user) as engine:
        user.wait("the agent", lambda: ping(engine))
        user.wait("what shall run", lambda: running(engine) == {"ever", "also"})
        assert engine.containers.get("once").status == "exited"


@contextmanager
def engine_of(user: LabUser) -> Iterator[docker.DockerClient]:
    url = f"unix://{user.on_disk('node1', '/run/orchestra/agent.sock')}"
    engine = docker.DockerClient(url, version="1.47")
    try:
        yield engine
    finally:
        engine.close()


def ping(engine: docker.DockerClient) -> bool:
    with suppress(OSError, docker.errors.DockerException):
        return bool(engine.ping())
    return False


def running(engine: docker.DockerClient) -> set[str]:
    return {container.name for container in engine.containers.list()}
