"""Words and flags of compose's command line that are not served yet, and what does the same.

Imported only when somebody typed one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

VERBS: dict[str, str] = {
    "attach": "`orchestra logs -f SERVICE` shows the output, `orchestra exec SERVICE sh` goes in",
    "build": "build elsewhere and `orchestra image load` the archive",
    "commit": "`orchestra image import` makes an image of a root file system",
    "cp": "`orchestra exec -T SERVICE tar -c PATH | tar -x`, and the other way round",
    "create": "`orchestra up --detach` creates and starts",
    "pause": "`orchestra container pause --node NODE CONTAINER` pauses one",
    "pull": "`orchestra image load` an archive; `up` brings it to the nodes that need it",
    "push": "`orchestra image save` writes an archive that any registry tool can push",
    "rm": "`orchestra down` removes the stack, `orchestra scale SERVICE=0` one service's tasks",
    "rollback": "`orchestra up` with the former files goes back",
    "run": "`orchestra exec SERVICE COMMAND` runs a command in a running task",
    "stats": "`orchestra top` shows the processes",
    "unpause": "`orchestra container unpause --node NODE CONTAINER` goes on with one",
    "wait": "`orchestra up` waits until one-shot services have completed",
    "watch": "`orchestra up` again applies what has changed",
}

FLAGS: dict[tuple[str, str], str] = {
    ("up", "--abort-on-container-exit"): "`orchestra up && orchestra down` runs jobs to their end",
    ("up", "--always-recreate-deps"): "`orchestra restart SERVICE` restarts it in place",
    ("up", "--attach"): "`orchestra logs -f SERVICE` shows the output",
    ("up", "--build"): VERBS["build"],
    ("up", "--exit-code-from"): "`orchestra ps --format json` has every task's exit code",
    ("up", "--force-recreate"): "`orchestra restart` restarts in place, `down` and `up` make anew",
    ("up", "--no-deps"): "bring up the whole stack; what has not changed is left alone",
    ("up", "--no-recreate"): "`orchestra plan` shows what would be replaced",
    ("up", "--no-start"): "`orchestra stop SERVICE` keeps services from running",
    ("up", "--pull"): VERBS["pull"],
    ("up", "--renew-anon-volumes"): "`orchestra down` and `up` make them anew",
    ("up", "--scale"): "`orchestra scale SERVICE=N`, or `deploy.replicas` in the file",
    ("up", "--watch"): VERBS["watch"],
    ("down", "--rmi"): "`orchestra image rm` removes images",
    ("ps", "--filter"): "name the services, or filter the output of `--format json`",
    ("ps", "--services"): "`orchestra config --services` lists them",
    ("ps", "--status"): "filter the output of `--format json`",
    ("logs", "--until"): "`--since` and `--tail` bound the other end",
    ("logs", "--index"): "the slot's number is in front of each line",
    ("logs", "--no-color"): "lines have no colour",
    ("stop", "-t"): "`stop_grace_period` in the file is how long a container may take",
    ("restart", "-t"): "`stop_grace_period` in the file is how long a container may take",
    ("restart", "--no-deps"): "only the named services are restarted",
}


def verb(word: str, known: Collection[str]) -> str:
    """What to say of a word that is no command."""
    if word in VERBS:
        return f"{word!r} is not served yet: {VERBS[word]}"
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; see `orchestra --help`"
    return f"unknown command {word!r}{hint}"


def arguments(word: str, unknown: Sequence[str]) -> str:
    """What to say of arguments that a command does not take."""
    first = unknown[0].partition("=")[0]
    if (word, first) in FLAGS:
        return f"{first} is not served yet: {FLAGS[word, first]}"
    if word in ("up", "plan", "down") and not first.startswith("-"):
        return (
            f"{first!r}: a stack is brought up and taken down whole, what has not changed is left "
            "alone; `orchestra stop`, `start` and `restart` take services"
        )
    return f"unrecognized arguments: {' '.join(unknown)}"
