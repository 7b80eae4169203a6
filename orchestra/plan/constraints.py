"""Placement constraints: `node.labels.disk == ssd`, parsed once and matched against nodes.

The grammar and its meaning are Swarm's: the operators `==` and `!=`, values without regard to
case, and a label that a node lacks counts as "" (so `!=` matches). `node.ip` takes an address or
a prefix in CIDR notation.
"""

from __future__ import annotations

import functools
import ipaddress
import re

from attrs import frozen

from orchestra.model.errors import Invalid
from orchestra.plan.state import NodeView

_TEXT = re.compile(r"^\s*(?P<key>[A-Za-z][\w.\-/]*)\s*(?P<op>==|!=)\s*(?P<value>.*?)\s*$")
_KEYS = {
    "node.id",
    "node.hostname",
    "node.name",
    "node.ip",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
}
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


@frozen
class Constraint:
    key: str
    equal: bool
    value: str

    def __str__(self) -> str:
        return f"{self.key}{'==' if self.equal else '!='}{self.value}"

    def matches(self, node: NodeView) -> bool:
        """Say whether `node` satisfies this constraint."""
        if self.key == "node.ip":
            network = ipaddress.ip_network(self.value, strict=False)
            facts = node.observed.facts if node.observed else None
            addresses = {node.record.underlay, *(facts.addresses if facts else ())} - {""}
            found = any(_within(address, network) for address in addresses)
        else:
            values = {v.lower() for v in _values(self.key, node)}
            found = self.value.lower() in values
        return found is self.equal


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Constraint:
    """Read one constraint. Raises Invalid naming what is wrong and what is known."""
    match = _TEXT.match(text)
    if match is None:
        raise Invalid(
            f"placement constraint {text!r} is not of the form `node.labels.NAME == VALUE` "
            "(operators: == and !=)"
        )
    key, value = match["key"], match["value"]
    known = key in _KEYS or key.startswith(("node.labels.", "engine.labels."))
    if not known:
        raise Invalid(
            f"placement constraint {text!r}: unknown key {key}; known are "
            f"{', '.join(sorted(_KEYS))}, node.labels.NAME and engine.labels.NAME"
        )
    if key == "node.ip":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise Invalid(
                f"placement constraint {text!r}: {value!r} is neither an address nor a prefix"
            ) from None
    if key == "node.platform.arch":
        value = _ARCH.get(value.lower(), value)
    return Constraint(key, match["op"] == "==", value)


def label_of(key: str, node: NodeView) -> str:
    """The value of `node.labels.NAME` or `engine.labels.NAME` ("" where the node lacks it)."""
    if key.startswith("node.labels."):
        return node.record.node.labels.get(key.removeprefix("node.labels."), "")
    facts = node.observed.facts if node.observed else None
    return facts.labels.get(key.removeprefix("engine.labels."), "") if facts else ""


def _values(key: str, node: NodeView) -> set[str]:
    facts = node.observed.facts if node.observed else None
    if key == "node.id":
        return {node.record.id}
    if key == "node.name":
        return {node.record.name}
    if key == "node.hostname":  # the name it has in the cluster counts too
        return {node.record.name} | ({facts.hostname} if facts else set())
    if key == "node.role":  # every node is a worker: a controller is a process, not a node
        return {"worker"}
    if key == "node.platform.os":
        return {facts.os if facts else ""}
    if key == "node.platform.arch":
        return {facts.architecture if facts else ""}
    return {label_of(key, node)}


def _within(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(address.split("/")[0]) in network
    except ValueError:
        return False
