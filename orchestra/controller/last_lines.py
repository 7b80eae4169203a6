"""The last log lines of containers that keep a stack from coming up, asked from their nodes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import trio

from orchestra.controller.link import Link, Silence
from orchestra.plan.state import State, TaskRecord

LOG_TAIL = 10  # lines of each container
TOLD = 3  # containers whose lines are shown
PATIENCE = 5.0  # seconds for a node to answer


async def last_lines(
    state: State, links: Mapping[str, Link], tasks: Iterable[str]
) -> tuple[str, ...]:
    """The lines, each under its slot's name. `links` are by node id, `tasks` ids of tasks."""
    lines: list[str] = []
    for task_id in list(tasks)[:TOLD]:
        record = state.tasks.get(task_id)
        link = links.get(record.task.node) if record else None
        if record is None or link is None:
            continue
        try:
            text = await _tail(link, record)
        except Silence as error:
            lines.append(f"{record.task.slot}: no logs: {error}")
            continue
        lines += [f"{record.task.slot}: {line}" for line in text.splitlines()[-LOG_TAIL:]]
    return tuple(lines)


async def _tail(link: Link, record: TaskRecord) -> str:
    query = {"stdout": 1, "stderr": 1, "tail": LOG_TAIL}
    reports = link.observed.tasks if link.observed else ()
    container = next((t.container for t in reports if t.id == record.task.id), "")
    path = f"/containers/{quote(container or record.assigned.name, safe='')}/logs"
    with trio.fail_after(PATIENCE):
        async with link.ask().request("GET", path, query=query) as answer:
            data = await answer.read()
    return (data if record.assigned.spec.tty else _unframed(data)).decode(errors="replace")


def _unframed(data: bytes) -> bytes:
    """The payloads of Docker's stream frames (a header of 8 bytes, the last 4 a length)."""
    out = []
    while len(data) >= 8:
        (size,) = struct.unpack(">I", data[4:8])
        out.append(data[8 : 8 + size])
        data = data[8 + size :]
    return b"".join(out)
