"""`orchestra node` and `orchestra controller` on a lab with a stack, as a user types them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import yaml

from tests.lab_user import LabUser


def page(user: LabUser, node: str) -> str:
    return user.lab("client", "curl", "-s", "-m", "20", f"http://{user.address(node)}:8088/page")


def inventory(user: LabUser) -> dict[str, dict[str, object]]:
    (cluster,) = user.json("cluster", "ls")
    nodes = yaml.safe_load(Path(cluster["inventory"]).read_text())["nodes"]
    return {node["name"]: node for node in nodes}


def containers(user: LabUser) -> dict[str, str]:
    """Container ids and when their process began, by slot."""
    return {t["slot"]: f"{t['container']} {t['started']}" for t in user.json("ps")}


def test_the_session_is_a_controller(up: LabUser) -> None:
    (info,) = up.json("controller", "status")
    assert (info["role"], info["heals"], info["nodes"]) == ("session", False, 2)
    assert {task["node"] for task in up.json("ps")} == {"node1", "node2"}
    assert page(up, "node1") and page(up, "node2")
    before = containers(up)
    assert "nothing to do" in up("up").stdout
    # The session may die at any time: the next command starts another on the same store.
    kill_session(up)
    up.wait("the nodes", lambda: set(up.states().values()) == {"ready"})
    assert containers(up) == before
    assert "nothing to do" in up("up").stdout


def kill_session(user: LabUser) -> None:
    (pid,) = (user.scratch / "run" / "orchestra").glob("*.pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_an_inventory_edited_by_hand_counts_from_the_next_session_on(lab: LabUser) -> None:
    (cluster,) = lab.json("cluster", "ls")
    path = Path(cluster["inventory"])
    before = path.read_text()
    path.write_text(before.replace("- name: node2\n", "- name: node2\n  labels: {by: hand}\n"))
    kill_session(lab)
    rows = {row["name"]: row["labels"] for row in lab.json("node", "ls")}
    assert rows == {"node1": {}, "node2": {"by": "hand"}}
    path.write_text(before)
    kill_session(lab)
    lab.wait("the nodes", lambda: set(lab.states().values()) == {"ready"})


def test_up_without_a_controller_says_that_nobody_heals(lab: LabUser) -> None:
    said = lab("up", "--timeout", "80").stderr
    assert "the death of a node will not be healed" in said
    assert "`orchestra controller install NODE`" in said
    assert "small: removed" in lab("down").stdout


def test_ls_and_inspect_tell_of_nodes(lab: LabUser) -> None:
    rows = {row["name"]: row for row in lab.json("node", "ls")}
    assert set(rows) == {"node1", "node2"}
    for name, row in rows.items():
        assert row["address"] == row["underlay"] == lab.address(name)
        assert row["state"] == "ready"
        assert row["availability"] == "active"
        assert row["labels"] == {}
        assert row["agent_version"]
    assert lab("node", "ls", "-q").stdout == "node1\nnode2\n"
    (one,) = yaml.safe_load(lab("node", "inspect", "node2").stdout)
    assert one["facts"]["hostname"] == "node2"
    assert one["id"] == rows["node2"]["id"]
    said = lab.refused("node", "inspect", "node1", "node9")
    assert "no node named node9; the cluster's nodes: node1, node2" in said


def test_labels_are_set_and_taken_away_everywhere(lab: LabUser) -> None:
    lab("node", "label", "node1", "disk=ssd", "rack=a=1")
    rows = {row["name"]: row for row in lab.json("node", "ls")}
    assert rows["node1"]["labels"] == {"disk": "ssd", "rack": "a=1"}
    assert inventory(lab)["node1"]["labels"] == {"disk": "ssd", "rack": "a=1"}
    lab("node", "label", "node1", "disk-", "rack-")
    assert "labels" not in inventory(lab)["node1"]
    assert "write KEY=VALUE" in lab.refused("node", "label", "node1", "disk", code=2)
    assert "has no node 'node9'" in lab.refused("node", "label", "node9", "a=b")


def test_a_drained_node_is_emptied_and_can_be_filled_again(up: LabUser) -> None:
    up("node", "drain", "node2")
    up.wait("all on node1", lambda: {t["node"] for t in up.json("ps")} == {"node1"})
    row = next(row for row in up.json("node", "ls") if row["name"] == "node2")
    assert (row["state"], row["availability"]) == ("ready", "drain")
    assert page(up, "node2")
    up("node", "activate", "node2")
    up("scale", "web=4")
    up.wait("some on node2", lambda: {t["node"] for t in up.json("ps")} == {"node1", "node2"})
    said = up.refused("node", "drain", "node9")
    assert "no node is called node9; the cluster has: node1, node2" in said


def test_a_node_that_is_used_is_not_removed(up: LabUser) -> None:
    said = up.refused("node", "rm", "node2")
    assert "cannot remove node node2: it runs web." in said
    assert "`orchestra node drain node2` empties it" in said
    assert set(inventory(up)) == {"node1", "node2"}


def add_again(user: LabUser, node: str) -> tuple[str, ...]:
    return ("node", "add", node, f"root@{user.address(node)}")


def make_old(user: LabUser, node: str) -> str:
    """Let the agent of a node seem to be of an older build; the directory of the newest."""
    user(*add_again(user, node))
    directory = "/var/lib/orchestra/agent"
    newest = user.on(node, f"readlink {directory}/current").strip()
    user.on(node, f"cd {directory} && cp -r {newest} old && ln -sfn old current")
    return f"{directory}/{newest}"


def test_adding_again_upgrades_in_place_and_containers_run_on(up: LabUser) -> None:
    newest = make_old(up, "node1")
    before = containers(up)
    assert "node1: upgraded, agent " in up(*add_again(up, "node1")).stdout
    assert up.on("node1", "readlink -f /var/lib/orchestra/agent/current").strip() == newest
    up.wait("the nodes", lambda: set(up.states().values()) == {"ready"})
    assert containers(up) == before
    assert page(up, "node1")
    assert "nothing to do" in up("up").stdout


def test_a_version_that_does_not_start_gives_way_to_the_one_before(up: LabUser) -> None:
    newest = make_old(up, "node2")
    before = containers(up)
    up.on("node2", f"mv {newest}/__main__.py {newest}/__pycache__/__main__.* /root")
    up.on("node2", f"echo 'raise SystemExit(5)' >{newest}/__main__.py")
    try:
        said = up.refused(*add_again(up, "node2"))
    finally:
        up.on("node2", f"mv /root/__main__.py {newest}; rm -rf {newest}/__pycache__/__main__.*")
    assert "the agent keeps ending; its last words: " in said
    assert "Version old runs again" in said
    up.wait("the nodes", lambda: set(up.states().values()) == {"ready"})
    assert containers(up) == before
    up(*add_again(up, "node2"))


def test_the_controller_moves_to_a_node_and_back_with_all_it_knows(up: LabUser) -> None:
    before = containers(up)
    said = up("controller", "install", "node1").stdout
    assert "controller on node1" in said and "took over stack small" in said
    (info,) = up.json("controller", "status")
    assert (info["role"], info["heals"]) == ("daemon", True)
    assert up.json("cluster", "ls")[0]["controller"] == "node1"
    assert containers(up) == before
    assert "nothing to do" in up("up").stdout  # the image is found on the nodes, too
    said = up.refused("node", "rm", "--force", "node1")
    assert "node1 is the controller's home; `orchestra controller uninstall`" in said
    said = up.refused("controller", "install", "node2")
    assert "lives on node1; `orchestra controller uninstall` first" in said
    assert "controller on node1" in up("controller", "install", "node1").stdout  # the upgrade
    assert "nothing to do" in up("up").stdout
    # It is found again after its home lost power, by the same session or another.
    up.lab("kill", "node1")
    said = up.refused("node", "ls")
    assert "cannot reach the controller on node1" in said
    up.lab("boot", "node1")
    up.wait("its return", lambda: up("node", "ls", code=None).returncode == 0)
    up.wait("the nodes", lambda: set(up.states().values()) == {"ready"})
    up.wait("the tasks", lambda: {t["state"] for t in up.json("ps")} == {"running"})
    up("controller", "uninstall")
    assert up.json("controller", "status")[0]["role"] == "session"
    for node in ("node1", "node2"):
        assert "controller" not in "".join(up.traces(node))
    assert "nothing to do" in up("up").stdout
    assert "has no controller on a node" in up.refused("controller", "uninstall", code=2)


def test_a_failed_installation_of_a_controller_leaves_nothing(up: LabUser) -> None:
    traces = {node: up.traces(node) for node in ("node1", "node2")}
    up.lab("cut", "node2")  # its key cannot be authorized there
    try:
        said = up.refused("controller", "install", "node1")
    finally:
        up.lab("heal", "node2")
    assert "cannot reach node2" in said
    assert up.json("cluster", "ls")[0]["controller"] == "(session)"
    up.wait("the nodes", lambda: set(up.states().values()) == {"ready"})
    assert {node: up.traces(node) for node in traces} == traces
