"""The inventory file: read whole or refused with places, written so that it reads the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.controller import inventory
from orchestra.controller.reach import read_target, ssh_target
from orchestra.model.errors import Invalid
from orchestra.model.node import InventoryNode

ROOT = Path(__file__).parents[2]

WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=9)
NODES = st.builds(
    InventoryNode,
    name=WORDS,
    address=WORDS,
    user=WORDS,
    port=st.integers(1, 65535),
    identity=WORDS.map("/keys/".__add__) | st.just(""),
    underlay=st.just("") | WORDS,
    jump=st.just("") | WORDS.map("root@".__add__),
    host_key=st.just("") | st.just("ssh-ed25519 AAAAC3Nza="),
    labels=st.dictionaries(WORDS, st.text(max_size=9), max_size=2),
)


@given(st.lists(NODES, unique_by=lambda node: node.name, max_size=4))
def test_what_is_written_reads_the_same(nodes: list[InventoryNode]) -> None:
    assert inventory.parse(inventory.render(nodes), "nodes.yaml") == tuple(nodes)


def test_the_published_schema_is_the_one_that_is_applied() -> None:
    shipped = ROOT / "orchestra" / "controller" / "inventory.schema.json"
    published = ROOT / "schemas" / "inventory.json"
    assert json.loads(shipped.read_text()) == json.loads(published.read_text())


def test_a_file_that_is_no_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "nodes.yaml"
    file.write_text("nodes:\n  - name: [\n")
    with pytest.raises(Invalid, match=rf"(?s){file} is not YAML: .*line 3"):
        inventory.load(str(file))
    assert inventory.load(str(tmp_path / "absent.yaml")) == ()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("host", ("root", "host", 22)),
        ("admin@192.0.2.1", ("admin", "192.0.2.1", 22)),
        ("admin@host.example:2222", ("admin", "host.example", 2222)),
        ("root@[2001:db8::1]:22", ("root", "2001:db8::1", 22)),
        ("[2001:db8::1]", ("root", "2001:db8::1", 22)),
    ],
)
def test_targets_are_read(text: str, target: tuple[str, str, int]) -> None:
    assert read_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "a@b@c", "host:", "host:0", "host:65536", "2001:db8::1", "@h"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="write USER@HOST"):
        read_target(text)


def test_the_way_through_a_jump_host() -> None:
    node = InventoryNode("n", "10.0.0.1", "admin", 2222, "/key", jump="root@[2001:db8::1]:24")
    target = ssh_target(node)
    assert str(target) == "admin@10.0.0.1:2222"
    assert target.jump is not None
    assert (target.jump.host, target.jump.port, target.jump.identity) == ("2001:db8::1", 24, "/key")
