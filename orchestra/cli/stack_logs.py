"""`orchestra logs`: the lines of all tasks of a stack, merged over the nodes by time.

Without `-f` the nodes' logs are merged exactly. With `-f` every container is followed by a thread
of its own and the lines are held back for a moment, so that they come out in order; containers
that appear later (a replacement, another replica) are picked up. A node that cannot be asked costs
its own lines only, and is named.
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
from orchestra.model.cluster import TaskStatus
from orchestra.model.errors import NotFound, OrchestraError

HOLD = 0.2  # seconds that a followed line waits for earlier ones from other nodes
LOOK = 1.0  # seconds between looks for new containers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    parser.add_argument("-n", "--tail", default="all", metavar="N", help="last N lines of each")
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="show the time of each line"
    )
    parser.add_argument("--since", type=float, default=0.0, metavar="SECONDS", help="not older")
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


def chosen(tasks: Sequence[TaskStatus], services: Sequence[str]) -> list[TaskStatus]:
    unknown = set(services) - {t.service for t in tasks}
    if unknown:
        raise NotFound(f"the stack has no service {', '.join(sorted(unknown))}")
    return [t for t in tasks if t.container and (not services or t.service in services)]


def read(engine: DockerClient, task: TaskStatus, args: argparse.Namespace) -> list[Line]:
    """All lines of one container so far; a node that cannot be asked is named and left out."""
    tail = None if args.tail == "all" else int(args.tail)
    since = time.time() - args.since if args.since else 0.0
    try:
        return list(lines(task.slot, engine.logs(task.container, tail=tail, since=since)))
    except NotFound:
        return []  # its container was removed meanwhile
    except OrchestraError as error:
        print(f"{task.slot}: no log from {task.node}: {error}", file=sys.stderr)
        return []


def follow(client: ClusterClient, name: str, args: argparse.Namespace) -> int:
    arrived: queue.Queue[Line] = queue.Queue()
    followed: dict[str, threading.Thread] = {}
    tail = None if args.tail == "all" else int(args.tail)

    def watch(task: TaskStatus) -> None:
        """Follow one container, also over its restarts in place."""
        last = 0
        while True:
            try:
                entries = client.engine(task.node).logs(
                    task.container, follow=True, tail=None if last else tail, since=last / 1e9
                )
                for line in lines(task.slot, entries):
                    if line.time_ns > last:
                        last = line.time_ns
                        arrived.put(line)
            except NotFound:
                return
            except OrchestraError as error:
                print(f"{task.slot}: no log from {task.node}: {error}", file=sys.stderr)
            time.sleep(LOOK)

    printer = Printer(args, 0)
    held: list[tuple[Line, float]] = []
    looked = 0.0
    while True:
        now = time.monotonic()
        if now - looked > LOOK:
            looked = now
            for task in chosen(client.tasks(name), args.services):
                printer.width = max(printer.width, len(task.slot))
                if task.container not in followed:
                    thread = threading.Thread(target=watch, args=(task,), daemon=True)
                    followed[task.container] = thread
                    thread.start()
        try:
            heapq.heappush(held, (arrived.get(timeout=HOLD), now))
        except queue.Empty:
            pass
        while held and held[0][1] + HOLD <= time.monotonic():
            printer.show(heapq.heappop(held)[0])


def run(args: argparse.Namespace) -> int:
    if args.tail != "all" and not args.tail.isdigit():
        print(f"orchestra logs: --tail takes a number or `all`, not {args.tail!r}", file=sys.stderr)
        return 2
    name = project.stack_name(args)
    client = project.cluster(args)
    if args.follow:
        return follow(client, name, args)
    tasks = chosen(client.tasks(name), args.services)
    printer = Printer(args, max((len(t.slot) for t in tasks), default=0))
    for line in heapq.merge(*(read(client.engine(t.node), t, args) for t in tasks)):
        printer.show(line)
    return 0
