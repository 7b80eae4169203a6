"""Which engine a noun acts on: `--host`, ORCHESTRA_HOST, `--node`, or this host's own agent."""

from __future__ import annotations

import argparse
import os
import socket

from orchestra.api.blocking import DockerClient
from orchestra.cli import project
from orchestra.model.errors import Invalid, Unavailable
from orchestra.model.paths import NodePaths


def unix(path: str) -> socket.socket:
    """Connect to an engine's socket; Unavailable says what to do where none listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise Unavailable(
            f"cannot reach an engine at {path}: {error.strerror}. `orchestra agent run` starts one "
            "on this host; --host or --node choose another"
        ) from None
    return connection


def host(args: argparse.Namespace) -> str:
    """The socket that --host or ORCHESTRA_HOST name, "" where neither is given."""
    url: str = args.host or os.environ.get("ORCHESTRA_HOST", "")
    if not url:
        return ""
    scheme, _, path = url.partition("://")
    if scheme != "unix" or not path:
        raise Invalid(
            f"cannot use --host {url!r}: write unix:///path/of/agent.sock, or --node NAME"
        )
    return path


def engine(args: argparse.Namespace) -> DockerClient:
    """One engine: of --host, of --node through the controller, else of this host."""
    path = host(args)
    if path:
        return DockerClient(lambda: unix(path))
    if getattr(args, "node", None):
        return project.cluster(args).engine(args.node)
    return DockerClient(lambda: unix(NodePaths().agent_socket))


def images(args: argparse.Namespace) -> DockerClient:
    """Where image commands act: one engine if one is named, else the cluster's own store."""
    if host(args) or getattr(args, "node", None):
        return engine(args)
    return project.cluster(args).images
