"""What the verbs do to stacks: each test brings one up and changes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable

import pytest

from cluster.conftest import Lab, Stack

pytestmark = pytest.mark.timeout(240)

JOB = """
services:
  job:
    image: busybox
    command: sh -c 'for i in 1 2 3; do echo step $$i; sleep 0.3; done'
  other:
    image: busybox
    command: sh -c 'printf "a\\nb\\nc\\n"'
"""


def test_following_logs_ends_with_the_last_container(app: Stack) -> None:
    app.write(JOB)
    app.up("--detach")
    app.wait("a container", lambda: any(t["container"] for t in app.tasks().values()))
    out = app("logs", "-f", timeout=60).stdout.splitlines()
    assert sorted(line.split("| ")[1] for line in out) == [
        "a",
        "b",
        "c",
        "step 1",
        "step 2",
        "step 3",
    ]
    assert [line.split("| ")[1] for line in out if line.startswith("other")] == ["a", "b", "c"]


def test_up_shows_one_line_for_each_phase_of_a_slot(app: Stack) -> None:
    app.write(JOB)
    out = app.up().stdout
    lines = [line for line in out.splitlines() if re.match(r"(job|other)\.1 +\w", line)]
    assert len(lines) == len({re.sub(r" +", " ", line) for line in lines})
    assert sum("completed on node" in line for line in lines) == 2
    assert not any("MB" in line for line in lines)
    assert re.fullmatch(r"app: up in \d+\.\d s", out.splitlines()[-1])


def test_up_shows_a_moving_table_on_a_terminal(app: Stack) -> None:
    app.write(JOB)
    words = " ".join(f"'{word}'" for word in app.lab.command("up", "--timeout", "80"))
    done = subprocess.run(
        ["script", "-qec", words, "/dev/null"],
        cwd=app.folder,
        env={**app.lab.environment, "TERM": "xterm-256color"},
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout
    assert "\x1b[?25l" in done.stdout and done.stdout.count("\x1b[?25h") == 1  # the cursor is back
    assert "completed" in done.stdout
    assert "2 of 2 tasks are up" in done.stdout
    assert re.search(r"app: up in \d+\.\d s", done.stdout)


DATA = """
services:
  db:
    image: busybox
    command: sh -c 'cat /data/word; exec sleep 1000'
    init: true
    volumes: ["data:/data"]
volumes:
  data: {}
"""


def test_down_keeps_volumes_and_down_v_removes_them(app: Stack) -> None:
    app.write(DATA)
    app.up()
    node = app.tasks()["db.1"]["node"]
    app("exec", "-T", "db", "sh", "-c", "echo precious > /data/word")
    assert app("down").stdout.splitlines()[-1] == "app: removed"
    assert app("down").stdout == "app: nothing to remove\n"
    app.up()
    assert app.tasks()["db.1"]["node"] == node
    assert app("exec", "-T", "db", "cat", "/data/word").stdout == "precious\n"
    app("down", "-v")
    app.nothing_is_there()
    app.up()
    assert app("exec", "-T", "db", "cat", "/data/word", code=1).stdout == ""


SCALED = """
services:
  web:
    image: busybox
    command: sh -c 'trap "exit 0" TERM; trap "exit 3" USR1; echo up; while :; do sleep 0.1; done'
    ports: ["7090:80"]
    deploy: {replicas: 2}
"""


def test_stop_start_restart_and_scale_touch_what_they_are_asked_to(app: Stack) -> None:
    app.write(SCALED)
    app.up()
    first = app.tasks()
    app("scale", "web=4")
    scaled = app.tasks()
    assert set(scaled) == {"web.1", "web.2", "web.3", "web.4"}
    assert all(scaled[s]["container"] == first[s]["container"] for s in first)
    app("scale", "web=1")
    assert set(app.tasks(all=True)) == {"web.1"}
    app("restart", "web")
    again = app.tasks()["web.1"]
    assert again["container"] == first["web.1"]["container"]
    assert again["started"] > first["web.1"]["started"]
    assert again["addresses"] == first["web.1"]["addresses"]
    app("stop", "web")
    stopped = app.tasks(all=True)
    assert all(t["state"] != "running" for t in stopped.values())
    app("start", "web")
    back = app.tasks()["web.1"]
    assert (back["state"], back["node"]) == ("running", first["web.1"]["node"])
    assert "app has no service wbe" in app.refused("stop", "wbe")
    assert "SERVICE=NUMBER" in app.refused("scale", "web", code=2)


def test_a_killed_task_stays_down_until_it_is_started(app: Stack) -> None:
    app.write(SCALED.replace("    ports", "    restart: always\n    ports"))
    app.up()
    assert app("kill", "-s", "USR1", "web").stdout.count("sent USR1") == 2
    app.wait("restarts after a signal", lambda: all(t["restarts"] for t in app.tasks().values()))
    app("kill", "web")
    app.wait("the end", lambda: {t["state"] for t in app.tasks().values()} == {"failed"})
    assert "nothing of web is running" in app.refused("kill", "web")
    app.up()
    assert {t["state"] for t in app.tasks().values()} == {"running"}


def test_a_global_service_has_one_task_on_each_fitting_node(app: Stack, lab: Lab) -> None:
    app.write(
        """
        services:
          agent:
            image: busybox
            command: sleep 1000
            init: true
            deploy: {mode: global}
          ssd:
            image: busybox
            command: sleep 1000
            init: true
            deploy:
              mode: global
              placement: {constraints: ["node.labels.disk == ssd"]}
        """
    )
    app.up()
    assert set(app.tasks()) == {"agent.node1", "agent.node2", "agent.node3", "ssd.node2"}
    assert "a global service has one task per node" in app.refused("scale", "agent=2", code=2)
    lab.orchestra("node", "drain", "node2")
    try:
        app.wait("an empty node2", lambda: "node2" not in {t["node"] for t in app.tasks().values()})
    finally:
        lab.orchestra("node", "activate", "node2")
    app.wait("tasks on node2", lambda: "ssd.node2" in app.tasks() and "agent.node2" in app.tasks())


def test_a_changed_config_replaces_its_users_only(app: Stack) -> None:
    app.write(
        """
        services:
          a:
            image: busybox
            command: sleep 1000
            init: true
            healthcheck: {test: [CMD, "true"], interval: 200ms}
            configs: [{source: motd, target: /etc/motd}]
          b:
            image: busybox
            command: sleep 1000
            init: true
            healthcheck: {test: [CMD, "true"], interval: 200ms}
            secrets: [key]
          c:
            image: busybox
            command: sleep 1000
            init: true
            healthcheck: {test: [CMD, "true"], interval: 200ms}
        configs: {motd: {file: ./motd}}
        secrets: {key: {file: ./key}}
        """,
        motd="one\n",
        key="k1\n",
    )
    app.up()
    before = app.tasks()
    assert app("exec", "-T", "a", "cat", "/etc/motd").stdout == "one\n"
    (app.folder / "motd").write_text("two\n")
    assert "configs.config/motd (content)" in app("plan").stdout
    app.up()
    assert app("exec", "-T", "a", "cat", "/etc/motd").stdout == "two\n"
    (app.folder / "key").write_text("k2\n")
    plan = app("plan").stdout
    assert "replace b.1" in plan and "k2" not in plan and "k1" not in plan
    app.up()
    assert app("exec", "-T", "b", "cat", "/run/secrets/key").stdout == "k2\n"
    after = app.tasks()
    assert {s for s in before if before[s]["task"] == after[s]["task"]} == {"c.1"}


def test_events_tell_what_is_done_for_the_stack(
    app: Stack, make_stack: Callable[[str], Stack]
) -> None:
    other = make_stack("other")
    for stack in (app, other):
        stack.write(
            "services:\n  a:\n    image: busybox\n    command: sleep 1000\n    init: true\n"
        )
    words = app.lab.command("events", "--json")
    with subprocess.Popen(
        words, cwd=app.folder, env=app.lab.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            app.wait("a listener", lambda: _listens(app, process))
            other.up()
            app("down")
            app.up()
            assert process.stdout is not None
            seen = []
            while not seen or (seen[-1]["type"], seen[-1]["action"]) != ("task", "start"):
                seen.append(json.loads(process.stdout.readline()))
        finally:
            process.kill()
    assert seen[-1]["id"] == "a.1"
    assert seen[-1]["attributes"]["stack"] == "app"
    assert seen[-1]["attributes"]["because"] == "it shall run"
    assert not any(event["attributes"].get("stack") == "other" for event in seen)


def _listens(app: Stack, process: subprocess.Popen[str]) -> bool:
    """Whether the command is connected: it has a socket."""
    links = []
    for name in os.listdir(f"/proc/{process.pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{process.pid}/fd/{name}"))
        except OSError:
            continue
    return any(link.startswith("socket:") for link in links)
