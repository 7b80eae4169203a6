"""The tiny init: PID 1 of a container that asks for one (`init: true`)."""

from __future__ import annotations


def init_program() -> bytes:
    """The program's bytes."""
    return b""
