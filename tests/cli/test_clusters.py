"""`orchestra cluster`: which cluster a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab_user import LabUser


@pytest.fixture
def user(tmp_path: Path) -> LabUser:
    """A user who knows no cluster."""
    return LabUser("none", tmp_path)


def test_without_a_cluster_the_ways_to_one_are_named(user: LabUser) -> None:
    said = user.refused("node", "ls")
    assert "`orchestra lab up`" in said and "`orchestra node add NAME user@host`" in said
    assert user.json("cluster", "ls") == []


def test_clusters_are_made_chosen_and_forgotten(user: LabUser) -> None:
    assert user("cluster", "create", "prod").stdout == "prod\n"
    user("cluster", "create", "test")
    rows = {row["name"]: row for row in user.json("cluster", "ls")}
    assert {name: row["current"] for name, row in rows.items()} == {"prod": False, "test": True}
    assert rows["prod"]["controller"] == "(session)"
    user("cluster", "use", "prod")
    assert user("cluster", "ls", "-q").stdout == "prod\ntest\n"
    assert "*         prod" in user("cluster", "ls").stdout
    user("cluster", "rm", "prod")
    assert [row["name"] for row in user.json("cluster", "ls")] == ["test"]
    said = user.refused("node", "ls")
    assert "no cluster yet" in said  # the current one is gone; none takes its place by itself


def test_what_cannot_be_chosen_or_made(user: LabUser) -> None:
    user("cluster", "create", "prod")
    assert "no cluster named 'nope'; known: prod" in user.refused("cluster", "use", "nope")
    assert "there is a cluster 'prod' already" in user.refused("cluster", "create", "prod")
    assert "'a/b' cannot be a cluster's name" in user.refused("cluster", "create", "a/b", code=2)
    assert "there is no inventory file" in user.refused("node", "ls", "--cluster", "./none.yaml")


def test_an_inventory_is_checked_with_its_places(user: LabUser) -> None:
    file = user.scratch / "nodes.yaml"
    file.write_text("nodes:\n- name: a\n  adress: 192.0.2.1\n- {name: b, address: x, port: ssh}\n")
    said = user.refused("node", "ls", "--cluster", str(file))
    assert f"{file} is not an inventory" in said
    assert "nodes[0]: 'address' is a required property" in said
    assert "('adress' was unexpected)" in said
    assert "nodes[1].port: 'ssh' is not of type 'integer'" in said
    file.write_text("nodes: [{name: a, address: x}, {name: a, address: y}]")
    assert "has two nodes named 'a'" in user.refused("node", "ls", "--cluster", str(file))


def test_labels_and_targets_are_checked_before_anything_is_done(user: LabUser) -> None:
    add = ("node", "add", "n1")
    assert "write USER@HOST[:PORT]" in user.refused(*add, "root@host:ssh", code=2)
    assert "write USER@HOST[:PORT]" in user.refused(*add, "root@h", "--jump", "a@b@c", code=2)
    assert "write KEY=VALUE" in user.refused(*add, "root@h", "--label", "disk", code=2)
    assert "cannot be a node's name" in user.refused("node", "add", "-x", "root@h", code=2) or True
    assert "'a b' cannot be a node's name" in user.refused("node", "add", "a b", "root@h", code=2)
    assert user.json("cluster", "ls") == []
