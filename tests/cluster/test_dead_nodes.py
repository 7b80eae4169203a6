"""A node loses its power: what moves, what waits, and what comes back with the node."""

from __future__ import annotations

import subprocess

import pytest

from cluster.conftest import Lab, Stack

pytestmark = pytest.mark.timeout(300)

# node3 has no controller, so that its death is noticed by one that lives.
FILE = """
services:
  db:
    image: busybox
    command: sh -c 'cat /data/word; exec sleep 1000'
    init: true
    restart: always
    volumes: ["data:/data"]
    deploy:
      placement: {constraints: ["node.name != node1"]}
  web:
    image: busybox
    command: sleep 1000
    init: true
    deploy:
      replicas: 3
volumes:
  data: {}
"""


def test_data_waits_for_its_node_and_everything_else_moves(app: Stack, lab: Lab) -> None:
    app.write(FILE)
    app.up()
    home = app.tasks()["db.1"]["node"]
    app("exec", "-T", "db", "sh", "-c", "echo precious > /data/word; sync")
    lab.power("kill", home)
    try:
        app.wait("a dead node", lambda: lab.state_of(home) == "down")
        app.wait("web elsewhere", lambda: _running_elsewhere(app, home))
        row = app.tasks()["db.1"]
        assert row["state"] == "orphaned"
        why = f"its volume app_data is on {home}, which is down"
        assert why in row["error"] and "never starts on an empty volume" in row["error"]
        assert why in app("ps").stdout
        plan = app("plan", "--check").stdout
        assert f"wait db.1: {why}" in plan
        assert f"could not ask {home}" in plan
        done = app("up", "--timeout", "4", code=124)
        assert why in done.stdout + done.stderr
        assert app.tasks()["db.1"]["task"] == row["task"]
    finally:
        lab.power("boot", home)
    app.wait("the node", lambda: lab.state_of(home) == "ready")
    app.wait("db at home", lambda: app.tasks()["db.1"]["state"] == "running")
    assert app.tasks()["db.1"]["node"] == home
    assert app("exec", "-T", "db", "cat", "/data/word").stdout == "precious\n"
    assert set(app.tasks()) == {"db.1", "web.1", "web.2", "web.3"}
    app.wait("an end of moves", lambda: app("plan", "--check", code=None).returncode == 0)


SLOW = """
services:
  web:
    image: busybox
    command: sh -c 'sleep 5; touch /ready; exec sleep 1000'
    init: true
    healthcheck: {test: [CMD, test, -f, /ready], interval: 300ms, retries: 1000}
"""


def test_up_goes_on_over_the_death_of_its_controller(app: Stack, lab: Lab) -> None:
    app.write(SLOW)
    words = lab.command("up", "--timeout", "80")
    with subprocess.Popen(
        words, cwd=app.folder, env=lab.environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        while "starting on node" not in up.stdout.readline():
            assert up.poll() is None
        lab.on("node1", "pkill -9 -f '^[^ ]*python3[^ ]* -I .*serve-controller'")
        rest = up.stdout.read()
    assert up.returncode == 0, rest
    assert "healthy on node" in rest
    assert app.tasks()["web.1"]["restarts"] == 0


def _running_elsewhere(app: Stack, dead: str) -> bool:
    web = app.tasks("web").values()
    return len(web) == 3 and all(t["state"] == "running" and t["node"] != dead for t in web)
