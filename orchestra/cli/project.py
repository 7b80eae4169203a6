"""What the stack verbs share: the compose project of this folder and the cluster it runs on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestra.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from orchestra.api.blocking import ClusterClient
    from orchestra.compose.load import Loaded
    from orchestra.model.cluster import TaskStatus


def load(args: argparse.Namespace) -> Loaded:
    """Load and check the project; warnings go to stderr. Invalid lists all errors, with places."""
    import sys

    from orchestra.compose.errors import ComposeErrors
    from orchestra.compose.find import load_project

    try:
        loaded = load_project(
            list(args.file),
            project_name=args.project_name,
            project_directory=args.project_directory,
            profiles=list(args.profile),
            env_files=list(args.env_file),
            environ=dict(os.environ),
        )
    except ComposeErrors as errors:
        raise Invalid(f"the compose files have errors:\n{errors}") from None
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return loaded


def stack_name(args: argparse.Namespace) -> str:
    """The stack that a verb like `ps` means: `-p`, else the project of this folder.

    The files are loaded only where their name cannot be read off; `ps` works although they have
    errors.
    """
    from orchestra.compose.errors import ComposeErrors
    from orchestra.compose.find import name_of_project

    if args.project_name:
        return str(args.project_name)
    try:
        name = name_of_project(
            list(args.file),
            project_directory=args.project_directory,
            env_files=list(args.env_file),
            environ=dict(os.environ),
        )
    except ComposeErrors as errors:
        raise Invalid(f"the compose files have errors:\n{errors}") from None
    return name or load(args).stack.name


def cluster(args: argparse.Namespace) -> ClusterClient:
    """The controller of the chosen cluster."""
    from orchestra.api.blocking import ClusterClient
    from orchestra.cli import session

    return ClusterClient(session.connect(args))


def services(
    client: ClusterClient, stack: str, tasks: Sequence[TaskStatus], wanted: Sequence[str]
) -> set[str]:
    """The wanted services, or all that have tasks. NotFound says which services there are."""
    known = {task.service for task in tasks}
    if set(wanted) - known:  # one without tasks is stopped, or does not exist
        known |= set(client.stack(stack).stack.services)
    unknown = ", ".join(sorted(set(wanted) - known))
    if unknown:
        there = ", ".join(sorted(known))
        raise NotFound(f"stack {stack} has no service {unknown}; it has: {there}")
    return set(wanted) or known


def refuse_relative_binds(loaded: Loaded) -> None:
    """A relative bind source means a folder of this host, which no node has."""
    if not loaded.relative_binds:
        return
    service, target, source = loaded.relative_binds[0]
    raise Invalid(
        f"services.{service}.volumes: bind source {source!r} (on {target}) is relative: it would "
        "name a folder of this host, but bind sources are paths on the node. Give an absolute "
        "path that exists on the nodes, use a named volume, or pass single files as configs."
    )
