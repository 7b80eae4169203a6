"""The stored assignment: the last one the node was given, whole, on its disk.

Law: what was accepted is on disk before it is obeyed; a lower generation of the same cluster is
never taken. Sections travel only where their digest changed; the others are taken from the
stored ones.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import trio
from attrs import field, frozen

from orchestra.agent.network import pick_range
from orchestra.model.assignment import (
    FORMAT,
    Assignment,
    ClusterNet,
    digests,
    from_sections,
)
from orchestra.model.codec import CodecError
from orchestra.model.errors import Conflict, Failed, Invalid
from orchestra.model.node import NodeFacts
from orchestra.runtime.volumes import write_durably


@frozen
class Stored:
    """An assignment and the sections that it was made of."""

    assignment: Assignment
    digests: Mapping[str, str] = field(factory=dict)
    bodies: Mapping[str, Any] = field(factory=dict)


def standalone(facts: NodeFacts, range: str = "") -> Assignment:
    """Return the assignment of a node that is in no cluster: itself, and nothing to do."""
    vni = zlib.crc32(facts.id.encode()) & 0xFFFFFF
    return Assignment(
        0, ClusterNet(f"standalone-{facts.id}", range or pick_range(facts.routes), vni)
    )


def merge(
    stored: Stored, generation: int, wanted: Mapping[str, str], bodies: Mapping[str, Any]
) -> Stored | Sequence[str]:
    """Return what results, or the names of the sections that are needed and not here. Pure.

    Raises Invalid for a body that is not what its digest says, Conflict for a generation that
    is behind, or for another cluster while tasks of this one are here.
    """
    arrived = digests(bodies)
    if wrong := [name for name, digest in arrived.items() if wanted.get(name) != digest]:
        raise Invalid(f"sections {', '.join(sorted(wrong))} do not have the digests announced")
    missing = [
        name
        for name, digest in wanted.items()
        if name not in bodies and stored.digests.get(name) != digest
    ]
    if missing:
        return missing
    whole = {name: bodies.get(name, stored.bodies.get(name)) for name in wanted}
    try:
        assignment = from_sections(generation, whole)
    except (CodecError, KeyError) as error:
        raise Invalid(f"assignment of generation {generation}: {error}") from error
    old = stored.assignment
    if assignment.cluster.id != old.cluster.id:
        if old.tasks:
            raise Conflict(
                f"this node runs {len(old.tasks)} tasks of cluster {old.cluster.id}: remove it "
                "there first (orchestra node rm)"
            )
    elif generation < old.generation:
        raise Conflict(
            f"generation {generation} is behind this node's {old.generation}: another controller "
            "has been here (orchestra cluster adopt)"
        )
    return Stored(assignment, dict(wanted), whole)


def load(path: str) -> Stored | None:
    """Read the stored assignment, None where there is none. Failed where it is damaged."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
        bodies = document["bodies"]
        return Stored(from_sections(document["generation"], bodies), digests(bodies), bodies)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise Failed(
            f"cannot read the stored assignment {path}: {error}; move it away, the controller "
            "sends it again"
        ) from error


async def store(path: str, stored: Stored) -> None:
    """Write it durably, readable by root only: configs and secrets are in it."""
    document = {
        "format": FORMAT,
        "generation": stored.assignment.generation,
        "bodies": stored.bodies,
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    try:
        # In a thread: it may be megabytes, and containers go on ending meanwhile.
        await trio.to_thread.run_sync(write_durably, path, data)
    except OSError as error:
        raise Failed(f"cannot store the assignment in {path}: {error.strerror}") from error
