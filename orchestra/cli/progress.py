"""Live progress of a stack: a table that moves on a terminal, a line per change elsewhere.

Off a terminal a line is printed when a slot comes into another phase or onto another node, not
when a number in it changes: that is what one wants to read in the log of a CI job. What went wrong
goes to stderr, with the last lines of the containers concerned.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from orchestra.api.blocking import ClusterClient
from orchestra.model.cluster import Progress, SlotPhase, SlotProgress, StackPhase
from orchestra.model.errors import Failed, OrchestraError, Unavailable

TAIL = 10  # log lines of a container that did not come up
TOLD = 3  # containers whose lines are shown
PATIENCE = 20.0  # seconds for a controller that went away to come back
AGAIN = 0.5  # seconds between two attempts
FREE = 4  # lines of a terminal that the table leaves free

_GOOD = (SlotPhase.RUNNING, SlotPhase.HEALTHY, SlotPhase.COMPLETED)
_UNTOLD = (SlotPhase.PLACED, SlotPhase.GONE)
_BAD = (SlotPhase.FAILED, SlotPhase.UNHEALTHY, SlotPhase.BLOCKED)


def waiting_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that waits for a stack to arrive."""
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait (0: ever)"
    )


def follow(
    client: ClusterClient, name: str, timeout: float, expected: Collection[str] = ()
) -> Progress:
    """Show a stack's progress until it ends, and return its last moment.

    `expected` are slots that are shown although they may have arrived before the first look.
    Raises TimeoutError after `timeout` seconds (0: never), Unavailable where the controller goes
    away for good.
    """
    board: dict[str, SlotProgress] = {}
    last = None
    with _Table() if sys.stdout.isatty() else _Lines(expected) as display:
        try:
            with deadline(timeout, f"stack {name}"):
                for last in _moments(client, name):
                    board.update((slot.slot, slot) for slot in last.slots)
                    display.show(last, board)
        except TimeoutError:
            display.close()
            _tell_unfinished(client, name, board, last.text if last else "")
            raise
    assert last is not None
    if last.phase is StackPhase.FAILED:
        _tell(last.text.splitlines(), last.log_tail)
    return last


def _moments(client: ClusterClient, name: str) -> Iterator[Progress]:
    """The stack's progress until it ends, also over a controller that dies and comes back.

    Raises what the last attempt failed of where it stays away.
    """
    broken = 0.0
    while True:
        trouble: OrchestraError = Failed("the controller closed the progress stream")
        try:
            for moment in client.progress(name):
                broken = 0.0
                yield moment
                if moment.phase not in (StackPhase.CONVERGING, StackPhase.REMOVING):
                    return
        except Unavailable as error:
            trouble = error
        broken = broken or time.monotonic()
        if time.monotonic() - broken > PATIENCE:
            raise trouble
        time.sleep(AGAIN)


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError naming `what` after `seconds` (0: never), also out of a blocking read."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"timed out after {seconds:g} s waiting for {what}")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sentence(slot: SlotProgress) -> str:
    """One slot's phase in words: "starting on node2", "waiting: it depends on redis: ..."."""
    if slot.phase is SlotPhase.SHIPPING:
        return f"shipping {slot.text} to {slot.node}"
    where = f" on {slot.node}" if slot.node else ""
    text = f": {slot.text}" if slot.text and slot.phase not in _GOOD else ""
    return f"{slot.phase.value}{where}{text}"


class _Display(Protocol):
    def show(self, moment: Progress, board: dict[str, SlotProgress]) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """A line for each slot's new phase; what is good from the beginning is not worth one."""

    def __init__(self, expected: Collection[str]) -> None:
        self._expected = expected
        self._told: dict[str, tuple[SlotPhase, str]] = {}
        self._width = 0
        self._first = True

    def show(self, moment: Progress, board: dict[str, SlotProgress]) -> None:
        self._width = max([self._width, *map(len, board)])
        for slot in moment.slots:
            phase = (slot.phase, slot.node)
            before = self._told.get(slot.slot)
            self._told[slot.slot] = phase
            old = self._first and slot.phase in _GOOD and slot.slot not in self._expected
            if phase != before and not old and slot.phase not in _UNTOLD:
                print(f"{slot.slot:<{self._width}}  {sentence(slot)}", flush=True)
        self._first = False

    def close(self) -> None:
        pass

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _Table:
    """All slots, on a terminal, as they are now; those that have arrived give way to others."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(), refresh_per_second=8, vertical_overflow="crop")

    def show(self, moment: Progress, board: dict[str, SlotProgress]) -> None:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        there = [slot for slot in board.values() if slot.phase is not SlotPhase.GONE]
        room = max(3, shutil.get_terminal_size().lines - FREE)
        unfinished = [slot for slot in there if slot.phase not in _GOOD]
        shown = (there if len(there) <= room else unfinished)[:room]
        table = Table.grid(padding=(0, 2))
        for slot in sorted(shown, key=lambda s: s.slot):
            table.add_row(
                Text(slot.slot),
                Text(slot.phase.value, style=_style(slot.phase)),
                Text(slot.node),
                Text(_detail(slot), overflow="ellipsis", no_wrap=True, style="dim"),
            )
        rest = f" ({len(there) - len(shown)} not shown)" if len(there) > len(shown) else ""
        self._live.update(Group(table, Text(moment.text.split("\n")[0] + rest)))

    def close(self) -> None:
        self._live.stop()

    def __enter__(self) -> _Display:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _style(phase: SlotPhase) -> str:
    if phase in _GOOD:
        return "green"
    return "bold red" if phase in _BAD else "yellow"


def _detail(slot: SlotProgress) -> str:
    share = f" {slot.share:.0%}" if slot.phase is SlotPhase.SHIPPING else ""
    return slot.text + share


def _tell(reasons: Collection[str], log_tail: Collection[str]) -> None:
    for reason in reasons:
        print(reason, file=sys.stderr)
    for line in log_tail:
        print(f"    | {line}", file=sys.stderr)


def _tell_unfinished(
    client: ClusterClient, name: str, board: dict[str, SlotProgress], text: str
) -> None:
    """What has not come up in time: its phase, and the last lines of its container."""
    late = [s for s in board.values() if s.phase not in (*_GOOD, SlotPhase.GONE)]
    tails: list[str] = []
    try:
        containers = {t.slot: t for t in client.tasks(name) if t.container}
        for slot in [s.slot for s in late if s.slot in containers][:TOLD]:
            task = containers[slot]
            for entry in client.engine(task.node).logs(task.container, tail=TAIL):
                tails.append(f"{slot}: {entry.data.decode(errors='replace').rstrip()}")
    except OrchestraError as error:
        tails.append(f"no further logs: {error}")
    _tell([f"{slot.slot}: {sentence(slot)}" for slot in late] or [text], tails)
