"""The inventory file: a cluster's nodes as YAML, to be read, edited and kept in version control.

`nodes:` is a list of the fields of InventoryNode; its schema is schemas/inventory.json (shipped
beside this module too). Reading checks the whole file and reports every mistake with its place;
writing is atomic and leaves defaults out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import resources
from typing import Any

import attrs
import yaml

from orchestra.model.codec import to_json
from orchestra.model.errors import Invalid
from orchestra.model.node import InventoryNode

HEAD = "# The nodes of an orchestra cluster; see schemas/inventory.json.\n"


def parse(text: str, where: str) -> tuple[InventoryNode, ...]:
    """Read an inventory. Invalid lists what is wrong with it; `where` names the file."""
    import jsonschema

    try:
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise Invalid(f"{where} is not YAML: {error}") from None
    schema = json.loads(_schema_text())
    errors = [
        f"  {_place(error.absolute_path)}: {error.message}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(data)
    ]
    if errors:
        raise Invalid("\n".join([f"{where} is not an inventory:", *errors]))
    nodes = tuple(InventoryNode(**entry) for entry in data["nodes"])
    names = [node.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise Invalid(f"{where} has two nodes named {name!r}")
    return nodes


def _schema_text() -> str:
    return resources.files("orchestra.controller").joinpath("inventory.schema.json").read_text()


def _place(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def render(nodes: Sequence[InventoryNode]) -> str:
    """The inventory's text; `parse(render(nodes))` gives the nodes back."""
    entries = [{k: v for k, v in to_json(n).items() if v != _DEFAULTS.get(k)} for n in nodes]
    return HEAD + yaml.safe_dump({"nodes": entries}, sort_keys=False)


_DEFAULTS: dict[str, Any] = {
    **{f.name: f.default for f in attrs.fields(InventoryNode)},
    "labels": {},
}


def load(path: str) -> tuple[InventoryNode, ...]:
    """Nodes of the file at `path`; none where it does not exist yet."""
    try:
        with open(path) as file:
            return parse(file.read(), path)
    except FileNotFoundError:
        return ()


def save(path: str, nodes: Sequence[InventoryNode]) -> None:
    """Replace the file; a reader sees the old text or the new."""
    fresh = f"{path}.new"
    with open(fresh, "w") as file:
        file.write(render(nodes))
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)


def with_node(nodes: Sequence[InventoryNode], node: InventoryNode) -> tuple[InventoryNode, ...]:
    """The nodes with this one added, or in the place of its namesake."""
    if any(n.name == node.name for n in nodes):
        return tuple(node if n.name == node.name else n for n in nodes)
    return (*nodes, node)
