"""Where things are on a node's host, and how they are written: whole or not at all."""

import os

STATE = "/var/lib/orchestra"
RUN = "/run/orchestra"
IDENTITY = f"{STATE}/node.json"


class Refused(Exception):
    """Something the user must know and can mend."""


def write_durably(path: str, text: str, mode: int = 0o600) -> None:
    """Replace the file at `path`; after a power cut it has the old text or the new."""
    fresh = f"{path}.new"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)


def versions(role: str) -> list[str]:
    """Versions of the agent or controller that are wholly unpacked."""
    directory = f"{STATE}/{role}"
    if not os.path.isdir(directory):
        return []
    return sorted(v for v in os.listdir(directory) if os.path.exists(f"{directory}/{v}/.complete"))
