"""`orchestra exec SERVICE CMD`: run a command in a running task, on whichever node it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from orchestra.api.blocking import DockerClient
from orchestra.cli import project, terminal
from orchestra.model.errors import NotFound
from orchestra.model.task import TaskState, TaskStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-T", "--no-tty", "--no-TTY", action="store_true", help="no terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-u", "--user", default="", help="run as this user of the container")
    parser.add_argument("-w", "--workdir", default="", help="working directory")
    parser.add_argument("--index", type=int, help="number of the replica (web.2 is 2)")
    parser.add_argument("--privileged", action="store_true", help="with all capabilities")
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")


def choose(tasks: Sequence[TaskStatus], service: str, index: int | None) -> TaskStatus:
    """The running task that is meant; NotFound says what there is instead."""
    mine = [t for t in tasks if t.service == service]
    if not mine:
        known = ", ".join(sorted({t.service for t in tasks})) or "none"
        raise NotFound(f"the stack has no service {service!r}; it has: {known}")
    wanted = f"{service}.{index}" if index is not None else ""
    running = sorted(
        (t for t in mine if t.state is TaskState.RUNNING and t.desired == "running"),
        key=lambda t: (len(t.slot), t.slot),
    )
    for task in running:
        if not wanted or task.slot == wanted:
            return task
    states = ", ".join(f"{t.slot} is {t.state.value}" for t in mine)
    raise NotFound(f"{wanted or service} is not running: {states}")


def execute(
    engine: DockerClient, container: str, args: argparse.Namespace, command: Sequence[str]
) -> int:
    """Run `command` in `container` with the options of `exec`; its exit code."""
    tty = not args.no_tty and sys.stdin.isatty() and sys.stdout.isatty()
    exec_id = engine.exec_create(
        container,
        command,
        tty=tty,
        stdin=not args.detach,
        env=args.env,
        user=args.user,
        working_dir=args.workdir,
        privileged=args.privileged,
    )
    if args.detach:
        engine.json("POST", f"/exec/{exec_id}/start", value={"Detach": True, "Tty": tty})
        return 0
    with ExitStack() as stack:
        window = terminal.size() if tty else None
        stream = stack.enter_context(engine.exec_start(exec_id, tty=tty, console_size=window))
        if tty:
            stack.enter_context(
                terminal.following_size(lambda r, c: engine.exec_resize(exec_id, r, c))
            )
            stack.enter_context(terminal.raw_mode())
        terminal.pump(stream, stdin=True)
    return int(engine.exec_inspect(exec_id)["ExitCode"] or 0)


def run(args: argparse.Namespace) -> int:
    if not args.argv:
        print("orchestra exec: name a command to run, for example `sh`", file=sys.stderr)
        return 2
    client = project.cluster(args)
    task = choose(client.tasks(project.stack_name(args)), args.service, args.index)
    return execute(client.engine(task.node), task.container, args, args.argv)
