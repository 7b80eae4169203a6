"""`orchestra logs`: the lines of all tasks of a stack, merged over the nodes by time.

Without `-f` the nodes' logs are merged exactly. With `-f` every container is followed by a thread
of its own and the lines are held back for a moment, so that they come out in order; containers
that appear later (a replacement, another replica) are picked up, and it ends when all have ended
for good. A node that cannot be asked costs its own lines only, and is named.
"""

from __future__ import annotations

import argparse
import heapq
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from orchestra.api.blocking import ClusterClient, DockerClient, LogEntry
from orchestra.cli import project
from orchestra.model.errors import Invalid, NotFound, OrchestraError
from orchestra.model.task import TaskStatus

HOLD = 0.2  # seconds that a followed line waits for earlier ones from other nodes
LOOK = 1.0  # seconds between looks for new containers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    parser.add_argument("-n", "--tail", default="all", metavar="N", help="last N lines of each")
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="show the time of each line"
    )
    parser.add_argument(
        "--since", default="", metavar="TIME", help="not older: 90s, 1h30m, or 2026-11-25T17:00:00Z"
    )
    parser.add_argument("--no-log-prefix", action="store_true", help="without the slot's name")
    parser.add_argument("services", nargs="*", metavar="SERVICE")


@frozen(order=True)
class Line:
    time_ns: int
    slot: str
    number: int  # of the line within its container: keeps equal times in writing order
    data: bytes
    stream: int


def lines(slot: str, entries: Iterable[LogEntry]) -> Iterator[Line]:
    for number, entry in enumerate(entries):
        yield Line(entry.time_ns, slot, number, entry.data, entry.stream)


class Printer:
    """Writes lines with their slot in front, aligned."""

    def __init__(self, args: argparse.Namespace, width: int) -> None:
        self.timestamps = args.timestamps
        self.prefix = not args.no_log_prefix
        self.width = width

    def show(self, line: Line) -> None:
        head = f"{line.slot:<{self.width}} | " if self.prefix else ""
        if self.timestamps:
            seconds, nanos = divmod(line.time_ns, 1_000_000_000)
            head += time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z "
        out = sys.stderr.buffer if line.stream == 2 else sys.stdout.buffer
        out.write(head.encode() + line.data.rstrip(b"\n") + b"\n")
        out.flush()


def chosen(
    client: ClusterClient, name: str, services: Sequence[str], waiting: bool = False
) -> list[TaskStatus]:
    """The tasks with a container, so with a log; with `waiting` those that will have one, too."""
    tasks = client.tasks(name)
    wanted = project.services(client, name, tasks, services)
    return [t for t in tasks if t.service in wanted and (t.container or waiting)]


def since(args: argparse.Namespace) -> float:
    """The Unix time that --since means, 0.0 where it is not given. Invalid shows the forms."""
    text = args.since
    if not text:
        return 0.0
    from datetime import datetime

    from orchestra.compose.units import duration

    try:
        return time.time() - duration(text)
    except ValueError:
        pass
    try:
        return float(text) if text.isdigit() else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Invalid(
            f"cannot read --since {text!r}: write 90s, 1h30m, a Unix time or 2026-11-25T17:00:00Z"
        ) from None


def read(engine: DockerClient, task: TaskStatus, args: argparse.Namespace) -> list[Line]:
    """All lines of one container so far; a node that cannot be asked is named and left out."""
    tail = None if args.tail == "all" else int(args.tail)
    try:
        return list(lines(task.slot, engine.logs(task.container, tail=tail, since=since(args))))
    except NotFound:
        return []  # its container was removed meanwhile
    except OrchestraError as error:
        print(f"{task.slot}: no log from {task.node}: {error}", file=sys.stderr)
        return []


class Following:
    """All containers of a stack at once, those that come later too; a thread for each."""

    def __init__(self, client: ClusterClient, name: str, args: argparse.Namespace) -> None:
        self._client = client
        self._name = name
        self._args = args
        self._tail = None if args.tail == "all" else int(args.tail)
        self._arrived: queue.Queue[Line] = queue.Queue()
        self._threads: dict[str, threading.Thread] = {}
        self._over: set[str] = set()  # containers that will not run again
        self._printer = Printer(args, 0)

    def run(self) -> None:
        """Print lines until every container has ended for good, or the stack is removed."""
        held: list[tuple[Line, float]] = []
        looked = 0.0
        more = True
        while more or held or not self._arrived.empty():
            now = time.monotonic()
            if more and now - looked > LOOK:
                looked = now
                more = self._look()
            try:
                heapq.heappush(held, (self._arrived.get(timeout=HOLD), now))
            except queue.Empty:
                pass
            while held and held[0][1] + HOLD <= time.monotonic():
                self._printer.show(heapq.heappop(held)[0])

    def _look(self) -> bool:
        """Begin to follow new containers; say whether there is, or will be, more to come."""
        try:
            tasks = chosen(self._client, self._name, self._args.services, waiting=True)
        except NotFound:
            self._over.update(self._threads)
            return any(thread.is_alive() for thread in self._threads.values())
        self._over.update(task.container for task in tasks if task.final)
        for task in tasks:
            self._printer.width = max(self._printer.width, len(task.slot))
            if task.container and task.container not in self._threads:
                thread = threading.Thread(target=self._watch, args=(task,), daemon=True)
                self._threads[task.container] = thread
                thread.start()
        alive = any(thread.is_alive() for thread in self._threads.values())
        return alive or not all(task.final for task in tasks)

    def _watch(self, task: TaskStatus) -> None:
        """Follow one container, also over its restarts in place and breaks of the connection."""
        last = 0
        while True:
            over = task.container in self._over  # before asking: then this is all there will be
            engine = self._client.engine(task.node)
            begin, seen = last, last / 1e9 or since(self._args)
            try:
                tail = None if begin else self._tail
                entries = engine.logs(task.container, follow=True, tail=tail, since=seen)
                for line in lines(task.slot, entries):
                    if line.time_ns > begin:
                        last = max(last, line.time_ns)
                        self._arrived.put(line)
            except NotFound:
                return
            except OrchestraError as error:
                print(f"{task.slot}: no log from {task.node}: {error}", file=sys.stderr)
            if over:
                return
            time.sleep(LOOK)


def run(args: argparse.Namespace) -> int:
    if args.tail != "all" and not args.tail.isdigit():
        print(f"orchestra logs: --tail takes a number or `all`, not {args.tail!r}", file=sys.stderr)
        return 2
    name = project.stack_name(args)
    client = project.cluster(args)
    since(args)
    if args.follow:
        chosen(client, name, args.services)
        Following(client, name, args).run()
        return 0
    tasks = chosen(client, name, args.services)
    printer = Printer(args, max((len(t.slot) for t in tasks), default=0))
    for line in heapq.merge(*(read(client.engine(t.node), t, args) for t in tasks)):
        printer.show(line)
    return 0
