"""Replacing a file so that after a power cut either the old or the whole new one is there."""

from __future__ import annotations

import os


def write_durably(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write beside it, fsync, rename, fsync the directory (rename(2), fsync(2)). OSError."""
    beside = f"{path}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)  # a leftover may have had another one
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(beside, path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
