"""The processes' entry points: what other processes of ours start as `orchestra WORD ...`.

It only hands over. `session` is a user's background controller (or the wire to the daemon),
`serve-controller` the daemon on a node, `agent` the engine of this host, `resolver` its DNS.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the process named by argv[0] and return its exit code."""
    word, rest = argv[0], list(argv[1:])
    if word == "session":
        from orchestra.controller import session

        return session.main(rest)
    if word == "serve-controller":
        from orchestra.controller import main as controller

        return controller.main(rest)
    from orchestra.agent import main as agent

    return agent.main([word, *rest])
