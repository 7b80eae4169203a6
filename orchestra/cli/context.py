"""The clusters this user knows, and which one a command means.

Each is a directory under `~/.config/orchestra/clusters` (ORCHESTRA_CONFIG names another root) with
the inventory and a small cluster.json: where its controller lives, and through which network
namespace its hosts are reached (a lab's). `--cluster` and ORCHESTRA_CLUSTER take a name or an
inventory file; without them the current cluster counts, as with docker's contexts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import zlib
from contextlib import suppress

from attrs import asdict, evolve, field, frozen

from orchestra.model.codec import from_json
from orchestra.model.errors import Invalid, NotFound

FIRST = "default"  # the name of the cluster that a first `node add` makes


@frozen
class Context:
    """A cluster as this user knows it."""

    name: str
    inventory: str  # path of the YAML file
    controller: str = ""  # the node that is the controller's home; "": the CLI's own session
    controller_key: str = field(default="", repr=False)  # its public key line, for new nodes
    netns: str = ""  # network namespace to reach the hosts from; "": this process's own

    @property
    def directory(self) -> str:
        return f"{root()}/clusters/{self.name}"


def root() -> str:
    """Where this user's clusters are kept."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.environ.get("ORCHESTRA_CONFIG") or f"{home}/orchestra"


def names() -> list[str]:
    try:
        return sorted(os.listdir(f"{root()}/clusters"))
    except FileNotFoundError:
        return []


def current() -> str:
    """The name of the current cluster, "" where none was chosen."""
    try:
        with open(f"{root()}/current") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def use(name: str) -> None:
    """Make it the current cluster."""
    load(name)
    _write(f"{root()}/current", f"{name}\n")


def load(name: str) -> Context:
    """The cluster of that name. NotFound names the ones there are."""
    valid(name)
    try:
        with open(f"{root()}/clusters/{name}/cluster.json") as file:
            return from_json(Context, json.load(file), file.name)
    except FileNotFoundError:
        known = ", ".join(names()) or "none"
        raise NotFound(f"no cluster named {name!r}; known: {known}") from None


def valid(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise Invalid(f"{name!r} cannot be a cluster's name: use letters, digits, '.', '_', '-'")


def save(context: Context) -> None:
    """Keep a cluster; the first one becomes the current."""
    os.makedirs(context.directory, mode=0o700, exist_ok=True)
    _write(f"{context.directory}/cluster.json", json.dumps(asdict(context), indent=2) + "\n")
    if not current():
        use(context.name)


def forget(name: str) -> None:
    """Drop what this user knows of a cluster; its nodes are not touched."""
    import shutil

    shutil.rmtree(load(name).directory)
    if current() == name:
        os.unlink(f"{root()}/current")
    with suppress(OSError):  # the last one leaves nothing; else they are not empty
        os.rmdir(f"{root()}/clusters")
        os.rmdir(root())


def fresh(name: str) -> Context:
    """A cluster that is not kept yet. Invalid where it cannot have that name."""
    valid(name)
    return Context(name, f"{root()}/clusters/{name}/inventory.yaml")


def chosen(args: argparse.Namespace) -> Context:
    """The cluster that the command line means. NotFound says how to come by one."""
    wish = args.cluster or os.environ.get("ORCHESTRA_CLUSTER") or current()
    if not wish:
        raise NotFound(
            "no cluster yet: `orchestra lab up` makes one on this machine, "
            "`orchestra node add NAME user@host` starts one of your hosts"
        )
    if "/" in wish or wish.endswith((".yaml", ".yml")):
        return _of_file(wish)
    return load(wish)


def chosen_or_first(args: argparse.Namespace) -> Context:
    """As `chosen`; where there is no cluster at all, or none of that name, a new one."""
    wish = args.cluster or os.environ.get("ORCHESTRA_CLUSTER") or current() or FIRST
    if "/" in wish or wish.endswith((".yaml", ".yml")) or wish in names():
        return chosen(argparse.Namespace(cluster=wish))
    return fresh(wish)


def _of_file(path: str) -> Context:
    """A cluster named by its inventory file; what else is known of it is kept under its path."""
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise NotFound(f"there is no inventory file {path}")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(path).rsplit(".", 1)[0])
    name = f"{stem}-{zlib.crc32(path.encode()):08x}"
    known = load(name) if name in names() else Context(name, path)
    return evolve(known, inventory=path)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)
