"""`orchestra completion SHELL`: a script for bash, zsh or fish that completes our commands.

The scripts know nothing: on each tab they ask `orchestra completion words`, which reads the same
parsers that will read the finished line, so that no list of options stands twice. Names of
services, nodes, clusters and labs come from files on this machine; nothing is asked over a network.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

BASH = """\
_orchestra() {
    local IFS=$'\\n'
    COMPREPLY=($(orchestra completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [ "${#COMPREPLY[@]}" = 0 ] && compopt -o default
}
complete -F _orchestra orchestra
"""

ZSH = """\
#compdef orchestra
_orchestra() {
    local found=("${(@f)$(orchestra completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [ -n "$found[1]" ] && compadd -a found || _files
}
compdef _orchestra orchestra
"""

FISH = """\
function __orchestra_words
    set -l line (commandline -opc) (commandline -ct)
    orchestra completion words $line[2..-1] 2>/dev/null
end
complete -c orchestra -a '(__orchestra_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HINTS = {
    "bash": 'eval "$(orchestra completion bash)"      in ~/.bashrc',
    "zsh": 'eval "$(orchestra completion zsh)"       in ~/.zshrc, after compinit',
    "fish": "orchestra completion fish | source       in ~/.config/fish/config.fish",
}


def register(subparsers: Any) -> None:
    for shell, script in SCRIPTS.items():
        parser = subparsers.add_parser(shell, help=HINTS[shell])
        parser.set_defaults(run=_printer(script))


def _printer(script: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        print(script, end="")
        return 0

    return run


def print_words(line: Sequence[str]) -> int:
    """Print what the last word of the line (perhaps empty) could become, one per line."""
    *before, last = line or [""]
    for word in sorted({w for w in candidates(before) if w.startswith(last)}):
        print(word)
    return 0


def candidates(before: Sequence[str]) -> Iterable[str]:
    """Everything that could follow the words of a line, whatever it begins with."""
    from orchestra.cli import main

    first = argparse.ArgumentParser(add_help=False)
    main.global_options(first, short=True)
    head, word, rest = main.split(before)
    if not word:
        if _awaited(first, head):
            return _names(_awaited(first, head), before)
        return [*main.VERBS, *main.NOUNS, *_options(first)]
    parser = main.parser_of(word)
    if parser is None:
        return ()
    commands = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if commands is not None:
        chosen = next((i for i, text in enumerate(rest) if text in commands.choices), None)
        if chosen is None:
            return _names(_awaited(parser, rest), before) or [*commands.choices, *_options(parser)]
        parser, rest = commands.choices[rest[chosen]], rest[chosen + 1 :]
    awaited = _awaited(parser, rest)
    if awaited is not None:
        return _names(awaited, before)
    found = _options(parser)
    for action in parser._actions:
        if not action.option_strings:
            found += _names(action, before)
    return found


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]


def _awaited(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Action | None:
    """The option whose value comes next, if the last word is one that takes a value."""
    last = words[-1] if words else ""
    for action in parser._actions:
        if last in action.option_strings and action.nargs != 0:
            return action
    return None


def _names(action: argparse.Action | None, before: Sequence[str]) -> list[str]:
    """The values that an argument can have, as far as this machine knows."""
    if action is None:
        return []
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    kind = str(action.metavar or action.dest).upper()
    source = SOURCES.get(kind)
    try:
        return list(source(before)) if source else []
    except Exception:  # a broken file: the command itself will say what is wrong with it
        return []


def _values(before: Sequence[str], *options: str) -> list[str]:
    """What the line gives for an option."""
    return [value for option, value in itertools.pairwise(before) if option in options]


def _services(before: Sequence[str]) -> Iterable[str]:
    from orchestra.compose.find import load_project

    loaded = load_project(
        _values(before, "-f", "--file"),
        project_name=None,
        project_directory=next(iter(_values(before, "--project-directory")), None),
        profiles=["*"],
        env_files=_values(before, "--env-file"),
        environ=dict(os.environ),
    )
    return loaded.stack.services


def _nodes(before: Sequence[str]) -> Iterable[str]:
    import yaml

    from orchestra.cli import context

    wish = next(iter(_values(before, "--cluster")), None)
    chosen = context.chosen(argparse.Namespace(cluster=wish))
    with open(chosen.inventory) as file:
        return [node["name"] for node in yaml.safe_load(file)["nodes"]]


def _clusters(before: Sequence[str]) -> Iterable[str]:
    from orchestra.cli import context

    return context.names()


def _labs(before: Sequence[str]) -> Iterable[str]:
    from orchestra.testing.lab import hosts

    return hosts.names()


SOURCES: dict[str, Callable[[Sequence[str]], Iterable[str]]] = {
    "SERVICE": _services,
    "SERVICE=N": lambda before: [f"{name}=" for name in _services(before)],
    "NODE": _nodes,
    "CLUSTER": _clusters,
    "NAME|FILE": _clusters,
    "LAB": _labs,
}
