"""What `vagrant ssh-config` prints, as nodes of an inventory. Pure.

The text is ssh_config(5): a block per running machine. Read are where a machine answers, as whom
and with which key; settings that only loosen the check of host keys or choose algorithms do not
concern us, and one that changes the way to the machine is refused rather than ignored.
"""

from __future__ import annotations

import shlex

from orchestra.model.errors import Invalid
from orchestra.model.node import InventoryNode

_WAYS = ("proxycommand", "proxyjump", "proxyusefdpass", "hostkeyalias", "bindaddress")


def machines(text: str, underlay: str) -> list[InventoryNode]:
    """The machines that run, in the file's order. Invalid where one cannot be reached so."""
    found: list[InventoryNode] = []
    for block in _blocks(text):
        name = block["host"]
        for way in _WAYS:
            if way in block:
                raise Invalid(
                    f"machine {name} is reached with {way} {block[way]}, which is not understood; "
                    f"add it by hand: `orchestra node add {name} USER@HOST --jump USER@HOST`"
                )
        try:
            node = InventoryNode(
                name=name,
                address=block["hostname"],
                user=block.get("user", "vagrant"),
                port=int(block.get("port", "22")),
                identity=block.get("identityfile", ""),
                underlay=underlay,
            )
        except (KeyError, ValueError) as error:
            raise Invalid(f"machine {name} has no usable {error} in `vagrant ssh-config`") from None
        found.append(node)
    return found


def _blocks(text: str) -> list[dict[str, str]]:
    """Each `Host` with its settings by lower-case keyword; of repeated ones the first counts."""
    blocks: list[dict[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line.replace("=", " ", 1), comments=True)
        except ValueError as error:
            raise Invalid(f"`vagrant ssh-config` line {number}: {error}: {line.strip()}") from None
        if not words:
            continue
        keyword, value = words[0].lower(), " ".join(words[1:])
        if keyword == "host":
            blocks.append({"host": value})
        elif blocks:
            blocks[-1].setdefault(keyword, value)
    return blocks
