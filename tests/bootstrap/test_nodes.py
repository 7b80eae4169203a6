"""Hosts become nodes and plain hosts again, over real SSH, as a user types it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.lab_user import LabUser

from .test_refusals import add, on_a_terminal, trusted


def nodes_in(inventory: str) -> Any:
    return yaml.safe_load(Path(inventory).read_text())["nodes"]


def test_the_first_node_makes_a_cluster_and_the_last_removal_leaves_nothing(user: LabUser) -> None:
    before = user.traces("node1")
    said = user.inside(*add(user, "node1", *trusted(user), "--label", "disk=ssd")).stdout
    assert said.startswith("node1: added, agent ")
    assert f"underlay {user.address('node1')}" in said
    (cluster,) = user.json("cluster", "ls")
    assert (cluster["name"], cluster["current"]) == ("default", True)
    (node,) = nodes_in(cluster["inventory"])
    assert node["labels"] == {"disk": "ssd"}
    assert node["host_key"].startswith("ssh-ed25519 AAAA")
    (row,) = json.loads(user.inside("node", "ls", "--format", "json").stdout)
    assert row["name"] == "node1"
    assert row["address"] == user.address("node1")
    assert row["state"] == "ready"
    assert row["labels"] == {"disk": "ssd"}
    assert row["agent_version"]
    user.inside("node", "rm", "--purge", "node1")
    assert user.traces("node1") == before == []
    assert nodes_in(cluster["inventory"]) == []


def test_volumes_and_images_stay_unless_purged(user: LabUser) -> None:
    user.inside(*add(user, "node1", *trusted(user)))
    user.on("node1", "mkdir -p /var/lib/orchestra/volumes/precious")
    user.inside("node", "rm", "node1")
    assert user.traces("node1") == ["/var/lib/orchestra/images", "/var/lib/orchestra/volumes"]
    assert user.on("node1", "ls /var/lib/orchestra/volumes") == "precious\n"
    user.on("node1", "rm -r /var/lib/orchestra/*")


def test_the_operator_confirms_the_key(user: LabUser) -> None:
    said, code = on_a_terminal(user, "yes\n", *add(user, "node1", "--identity", user.key))
    assert code == 0, said
    assert "Is that its key (yes/no)?" in said and "node1: added" in said


def test_the_fingerprint_is_enough(user: LabUser) -> None:
    shown = user.on("node1", "ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    user.inside(*add(user, "node1", "--identity", user.key, "--host-key", shown))


def test_a_key_that_changed_is_refused_until_it_is_confirmed(user: LabUser) -> None:
    user.inside(*add(user, "node1", *trusted(user)))
    (cluster,) = user.json("cluster", "ls")
    inventory = Path(cluster["inventory"])
    other = user.on("node2", "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
    own = user.on("node1", "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
    inventory.write_text(inventory.read_text().replace(own, other))
    said = user.refused_inside(*add(user, "node1"))
    assert "shows the host key SHA256:" in said and "is pinned: it is another machine" in said
    assert "--host-key" in said
    assert inventory.read_text().count(other) == 1
    user.inside(*add(user, "node1", "--accept-new"))
    assert own in inventory.read_text()


def test_two_nodes_never_share_an_underlay_address(user: LabUser) -> None:
    user.inside(*add(user, "node1", *trusted(user)))
    clash = ("--underlay", user.address("node1"))
    said = user.refused_inside(*add(user, "node2", *trusted(user), *clash))
    assert f"node2 and node1 would both have the underlay address {clash[1]}" in said
    assert "--underlay" in said
    assert user.traces("node2") == []
    assert user.inside("node", "ls", "-q").stdout.split() == ["node1"]


def test_a_clone_is_told_from_its_original(user: LabUser) -> None:
    user.inside(*add(user, "node1", *trusted(user)))
    identity = json.loads(user.on("node1", "cat /var/lib/orchestra/node.json"))
    copy = shlex.quote(json.dumps(identity))
    user.on("node2", f"mkdir -p /var/lib/orchestra; echo {copy} >/var/lib/orchestra/node.json")
    said = user.refused_inside(*add(user, "node2", *trusted(user)))
    assert f"is a node already: node1 (id {identity['id'][:12]})" in said
    assert "If the machine is a clone of that node: remove /var/lib/orchestra/node.json" in said
    assert user.traces("node2") == ["/var/lib/orchestra/node.json"]
    renamed = shlex.quote(json.dumps({**identity, "name": "node2"}))
    user.on("node2", f"echo {renamed} >/var/lib/orchestra/node.json")
    said = user.refused_inside(*add(user, "node2", *trusted(user)))
    assert "node2 reports the same id as node1" in said
    assert user.traces("node2") == []
    assert user.inside("node", "ls", "-q").stdout.split() == ["node1"]


def test_a_user_with_sudo_and_a_jump_host(user: LabUser) -> None:
    user.on("node2", "id admin 2>/dev/null || useradd -m admin && usermod -p '*' admin")
    user.on("node2", "cp -r /root/.ssh /home/admin/ && chown -R admin /home/admin/.ssh")
    user.on("node2", "echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin")
    target = f"admin@{user.address('node2')}"
    jump = ("--jump", f"root@{user.address('node3')}")
    words = ("node", "add", "node2", target, *trusted(user), *jump, "--underlay", "eth0")
    said = user.inside(*words).stdout
    assert "node2: added" in said and f"underlay {user.address('node2')}" in said
    # The controller too comes through the jump host, and to root's socket through sudo.
    (row,) = json.loads(user.inside("node", "ls", "--format", "json").stdout)
    assert row["state"] == "ready"
    seen = user.on("node2", "ss -tnH state established '( sport = :22 )' || cat /proc/net/tcp")
    assert user.address("node3") in seen
    user.inside("node", "rm", "--purge", "node2")
    assert user.traces("node2") == []
    assert user.on("node2", "cat /home/admin/.ssh/authorized_keys").count("\n") == 1
