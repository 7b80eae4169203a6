"""The `orchestra` command: finds the one module that a command needs, and imports nothing else.

Two tables say which module serves which word; both hold the one-line help, so that `--help` costs
no import. A verb's module has `add_arguments(parser)` and `run(args) -> int`; a noun's has
`register(subparsers)`, whose parsers set `run`. Exit codes: 0 done, 1 failed, 2 usage, 3 the plan
would change something, 124 timed out; `exec` and `run` pass on the container's.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import orchestra

VERBS: dict[str, tuple[str, str]] = {
    "up": ("stack_up", "bring the stack of this folder to life on the cluster"),
    "down": ("stack_down", "stop and remove the stack"),
    "plan": ("stack_plan", "show what `up` would change, and why"),
    "ps": ("stack_ps", "list the stack's tasks"),
    "logs": ("stack_logs", "show the logs of the stack's tasks, merged by time"),
    "exec": ("stack_exec", "run a command in a running task, wherever it is"),
    "config": ("stack_config", "check the compose files and show the result"),
    "stop": ("stack_services", "stop services; their volumes and ports are kept"),
    "start": ("stack_services", "start services that `stop` stopped"),
    "restart": ("stack_services", "restart services in place"),
    "kill": ("stack_kill", "send a signal to running tasks"),
    "scale": ("stack_scale", "set the number of replicas of services"),
    "top": ("stack_top", "show the processes of the stack's tasks"),
    "port": ("stack_port", "show where a service's port answers"),
    "images": ("stack_images", "list the images of the stack's services"),
    "events": ("stack_events", "watch what is done for the stack"),
    "ls": ("stack_ls", "list the stacks of the cluster"),
    "version": ("version", "show the versions of client, controller and agents"),
}

NOUNS: dict[str, tuple[str, str]] = {
    "image": ("image", "images of the cluster (or of one engine with --host)"),
    "container": ("container", "containers of one engine (--host)"),
    "node": ("node", "the cluster's nodes"),
    "cluster": ("cluster", "the clusters this user knows"),
    "controller": ("controller_cmd", "the cluster's controller"),
    "lab": ("lab", "a cluster of namespace hosts on this machine, to try things on"),
    "agent": ("agent_cmd", "the engine on this host"),
    "completion": ("completion", "commands, options and names, completed by your shell"),
}

# Run by other processes of ours, not shown: each is an entry point of `cli.serve`.
PROCESSES = ("session", "serve-controller", "resolver")


def overview() -> str:
    width = max(map(len, [*VERBS, *NOUNS])) + 2
    lines = [
        "Usage: orchestra [OPTIONS] COMMAND",
        "",
        "Today's whole compose language on many hosts, on our own container runtime.",
        "",
        "The stack of this folder:",
        *(f"  {word:<{width}}{text}" for word, (_, text) in VERBS.items()),
        "",
        "The cluster and its engines:",
        *(f"  {word:<{width}}{text}" for word, (_, text) in NOUNS.items()),
        "",
        "Options:",
        "  -f, --file FILE           compose file (may be given several times)",
        "  -p, --project-name NAME   name of the stack",
        "      --profile NAME        activate a profile (several times)",
        "      --env-file FILE       read variables from FILE (several times)",
        "      --project-directory D resolve relative paths against D",
        "      --cluster NAME|FILE   the cluster to act on (ORCHESTRA_CLUSTER)",
        "  -H, --host URL            one engine: unix://PATH (ORCHESTRA_HOST)",
        "",
        "Run `orchestra COMMAND --help` for a command's own options.",
    ]
    return "\n".join(lines)


def global_options(parser: argparse.ArgumentParser, short: bool) -> None:
    """Options that may stand before the command, or (long forms only) after it."""

    def add(*names: str, **settings: object) -> None:
        names = names if short else tuple(n for n in names if n.startswith("--"))
        parser.add_argument(*names, default=argparse.SUPPRESS, **settings)  # type: ignore[arg-type]

    add("-f", "--file", action="append", metavar="FILE", help="compose file")
    add("-p", "--project-name", metavar="NAME", help="name of the stack")
    add("--profile", action="append", metavar="NAME", help="activate a profile")
    add("--env-file", action="append", metavar="FILE", help="read variables from FILE")
    add("--project-directory", metavar="DIR", help="resolve relative paths against DIR")
    add("--cluster", metavar="NAME|FILE", help="the cluster to act on")
    add("-H", "--host", metavar="URL", help="one engine: unix://PATH")


def where_options(parser: argparse.ArgumentParser) -> None:
    """Let the words after a noun's command say where it acts, unless it has such words itself."""
    known = parser.format_usage()
    for name, metavar in (("--cluster", "NAME|FILE"), ("--host", "URL")):
        if name not in known:
            parser.add_argument(
                name, metavar=metavar, default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )


DEFAULTS: dict[str, object] = {
    "file": (),
    "project_name": None,
    "profile": (),
    "env_file": (),
    "project_directory": None,
    "cluster": None,
    "host": None,
}


def split(argv: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Divide into global options, the command's word ("" where there is none) and the rest."""
    takes_value = {"-f", "-p", "-H", "--file", "--project-name", "--profile", "--env-file"}
    takes_value |= {"--project-directory", "--cluster", "--host"}
    index = 0
    while index < len(argv) and argv[index].startswith("-"):
        index += 2 if argv[index] in takes_value else 1
    head, rest = list(argv[:index]), list(argv[index:])
    return (head, rest[0], rest[1:]) if rest else (head, "", [])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse one command line. Exits 2 with usage where it cannot be understood."""
    head, word, rest = split(argv)
    first = argparse.ArgumentParser(prog="orchestra", add_help=False)
    global_options(first, short=True)
    first.add_argument("-h", "--help", action="store_true", dest="overview")
    first.add_argument("-v", "--version", action="store_true", dest="show_version")
    before = first.parse_args(head)
    if before.show_version:
        print(f"orchestra {orchestra.__version__}")
        raise SystemExit(0)
    if before.overview or not word or word == "help":
        print(overview())
        raise SystemExit(0 if before.overview or word == "help" else 2)
    parser = parser_of(word)
    if parser is None:
        from orchestra.cli import unserved

        print(f"orchestra: {unserved.verb(word, [*VERBS, *NOUNS])}", file=sys.stderr)
        raise SystemExit(2)
    after, strange = parser.parse_known_args(rest)
    if strange:
        from orchestra.cli import unserved

        parser.error(unserved.arguments(word, strange))
    values = {**DEFAULTS, **vars(before), **vars(after)}
    values["command"] = word
    return argparse.Namespace(**values)


def parser_of(word: str) -> argparse.ArgumentParser | None:
    """The parser of what follows a command's word; None where there is no such command."""
    if word in VERBS:
        module = importlib.import_module(f"orchestra.cli.{VERBS[word][0]}")
        parser = argparse.ArgumentParser(prog=f"orchestra {word}", description=VERBS[word][1])
        global_options(parser, short=False)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)
    elif word in NOUNS:
        module = importlib.import_module(f"orchestra.cli.{NOUNS[word][0]}")
        parser = argparse.ArgumentParser(prog=f"orchestra {word}", description=NOUNS[word][1])
        global_options(parser, short=False)
        commands = parser.add_subparsers(metavar="COMMAND", required=True)
        module.register(commands)
        for command in {id(c): c for c in commands.choices.values()}.values():
            where_options(command)
    else:
        return None
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in PROCESSES:
        from orchestra.cli import serve

        return serve.main(arguments)
    if arguments[:2] == ["completion", "words"]:  # before any parser: these words are not for us
        from orchestra.cli import completion

        return completion.print_words(arguments[2:])
    from orchestra.model.errors import Invalid, OrchestraError

    try:
        args = parse(arguments)
        return int(args.run(args))
    except Invalid as error:
        print(f"orchestra: {error}", file=sys.stderr)
        return 2
    except (OrchestraError, TimeoutError) as error:
        print(f"orchestra: {error}", file=sys.stderr)
        return 124 if isinstance(error, TimeoutError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
