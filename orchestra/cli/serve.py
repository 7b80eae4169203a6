"""The processes' entry points: what other processes of ours start as `orchestra WORD ...`.

The only module of the CLI that knows agent and controller; it parses a process's few options and
hands over. `session` is the CLI's background controller (or its wire to the daemon),
`serve-controller` the daemon on a node, `resolver` the DNS process of a node.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the process named by argv[0] and return its exit code."""
    word, rest = argv[0], list(argv[1:])
    if word == "resolver":
        from orchestra.fabric import resolver

        return int(resolver.main(rest) or 0)
    if word == "agent":
        from orchestra.agent import main as agent

        return int(agent.main(["agent", *rest]) or 0)
    if word == "serve-controller":
        from orchestra.controller import main as controller

        return int(controller.main(rest) or 0)
    from orchestra.cli import session

    return int(session.main(rest) or 0)
