"""What the verbs show of a running stack, over three nodes, and do in its containers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from cluster.conftest import Lab, Stack

pytestmark = pytest.mark.timeout(240)

SHOP = """
services:
  web:
    image: busybox
    command:
      - sh
      - -c
      - |
        echo begin
        for i in 0 1 2 3 4; do echo line $$i; echo oops $$i >&2; sleep 0.1; done
        exec sleep 1000
    init: true
    ports: ["7080:80", "7081:81/udp"]
    deploy: {replicas: 3}
  own:
    image: busybox
    command: sleep 1000
    init: true
    ports: [{target: 80, published: 7082, mode: host}]
  idle:
    image: busybox
    command: sleep 1000
    profiles: [later]
"""


@pytest.fixture(scope="module")
def shop(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that tests look at but do not change."""
    stack = Stack(lab, tmp_path_factory.mktemp("shop") / "shop", "shop")
    stack.write(SHOP)
    stack.up()
    yield stack
    stack("down", "-v")


def test_replicas_are_spread_over_the_nodes(shop: Stack) -> None:
    assert {t["node"] for t in shop.tasks("web").values()} == {"node1", "node2", "node3"}


def test_a_second_up_does_nothing_and_plan_check_agrees(shop: Stack) -> None:
    before = shop.tasks()
    assert shop.up().stdout == "shop: nothing to do\n"
    assert shop("plan", "--check").stdout == "shop: nothing to do\n"
    assert {s: t["task"] for s, t in shop.tasks().items()} == {
        s: t["task"] for s, t in before.items()
    }


def test_plan_check_says_3_where_up_would_act(shop: Stack) -> None:
    text = (shop.folder / "compose.yaml").read_text()
    changed = shop.folder / "changed.yaml"
    changed.write_text(text.replace("replicas: 3", "replicas: 2").replace("begin", "start"))
    done = shop("-f", str(changed), "plan", "--check", code=3)
    assert done.stdout.count("replace web.") == 2
    assert "stop web.3 on node" in done.stdout
    assert "web shall have 2 replicas" in done.stdout
    assert "own" not in done.stdout


def test_exec_passes_on_exit_code_streams_and_input(shop: Stack) -> None:
    done = shop("exec", "-T", "web", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    done = shop("exec", "-T", "--index", "3", "web", "sh", "-c", "wc -c; hostname", input="12345")
    assert done.stdout.split()[0] == "5"
    done = shop("exec", "-T", "-e", "A=b c", "-w", "/tmp", "web", "sh", "-c", "echo $A; pwd")
    assert done.stdout == "b c\n/tmp\n"
    assert "shop has no service" not in shop("exec", "-T", "own", "true").stderr
    assert "it has: own, web" in shop.refused("exec", "-T", "wbe", "true")
    assert "web.9 is not running" in shop.refused("exec", "-T", "--index", "9", "web", "true")


def test_exec_has_a_terminal_where_the_caller_has_one(shop: Stack) -> None:
    words = shop.lab.command("exec", "web", "sh", "-c", "tty && stty size; exit 5")
    script = ["script", "-qec", " ".join(f"'{w}'" for w in words), "/dev/null"]
    done = subprocess.run(
        script,
        cwd=shop.folder,
        env={**shop.lab.environment, "COLUMNS": "91", "LINES": "33"},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 5, done.stdout
    assert "/dev/pts/" in done.stdout
    assert "33 91" in done.stdout


def test_logs_of_all_nodes_are_merged_by_time(shop: Stack) -> None:
    out = shop("logs", "-t", "web")
    lines = out.stdout.splitlines()
    heads = [re.match(r"(web\.\d) \| (\S+Z) (begin|line \d)$", line) for line in lines]
    assert len(lines) == 18 and all(heads), out.stdout
    times = [head[2] for head in heads if head]
    assert times == sorted(times)
    assert {head[1] for head in heads if head} == {"web.1", "web.2", "web.3"}
    assert sorted(out.stderr.splitlines()) == sorted(
        line for line in out.stderr.splitlines() if "oops" in line
    )


def test_logs_can_be_cut_to_the_last_lines_of_each(shop: Stack) -> None:
    out = shop("logs", "--tail", "2", "--no-log-prefix", "web")
    assert sorted((out.stdout + out.stderr).splitlines()) == ["line 4"] * 3 + ["oops 4"] * 3
    assert shop("logs", "--since", "1s", "own").stdout == ""
    assert "takes a number or `all`" in shop.refused("logs", "--tail", "few", code=2)
    assert "cannot read --since" in shop.refused("logs", "--since", "noon", code=2)


def test_a_service_of_another_profile_is_not_there_until_it_is_asked_for(shop: Stack) -> None:
    assert "idle.1" not in shop.tasks()
    plan = shop("--profile", "later", "plan").stdout
    assert "start idle.1 on node" in plan
    assert "web" not in plan


def test_port_says_where_a_service_answers(shop: Stack) -> None:
    nodes = json.loads(shop("node", "ls", "--format", "json").stdout)
    addresses = {node["name"]: node["address"] for node in nodes}
    every = "".join(f"{address}:7080\n" for address in sorted(addresses.values()))
    assert shop("port", "web", "80").stdout == every
    assert shop("port", "web", "81/udp").stdout == every.replace("7080", "7081")
    node = shop.tasks()["own.1"]["node"]
    assert shop("port", "own", "80").stdout == f"{addresses[node]}:7082\n"
    assert "web does not publish 99/tcp" in shop.refused("port", "web", "99")


def test_top_images_and_ls_show_the_stack(shop: Stack) -> None:
    rows = json.loads(shop("top", "--format", "json", "own").stdout)
    assert {row["slot"] for row in rows} == {"own.1"}
    assert any("sleep 1000" in row["cmd"] for row in rows)
    assert "SLOT" in shop("top").stdout
    images = json.loads(shop("images", "--format", "json").stdout)
    assert [(row["service"], row["image"]) for row in images] == [
        ("own", "busybox"),
        ("web", "busybox"),
    ]
    assert images[1]["nodes"] == "node1, node2, node3"
    assert len(shop("images", "-q").stdout.split()) == 1
    assert shop("ls", "-q").stdout == "shop\n"
    (row,) = json.loads(shop("ls", "--format", "json").stdout)
    assert (row["name"], row["status"], row["services"]) == ("shop", "running(4)", 2)


def test_ps_works_although_the_file_is_broken_meanwhile(shop: Stack) -> None:
    file = shop.folder / "compose.yaml"
    text = file.read_text()
    try:
        file.write_text(text + "  broken: [\n")
        assert len(shop.tasks()) == 4
        assert re.search(r"compose.yaml:\d+:1: not valid YAML", shop.refused("up", code=2))
    finally:
        file.write_text(text)
