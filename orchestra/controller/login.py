"""A login on a host that is, was or becomes a node: requests to the package `host`, done as root.

The package is sent along each time, so that nothing has to be there but a Python and a shell.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import resources
from typing import Any

from attrs import frozen

from orchestra.controller.package import Archive, Platform
from orchestra.controller.reach import ssh_target
from orchestra.model.errors import Failed, Unavailable
from orchestra.model.node import InventoryNode
from orchestra.transport.errors import TransportError
from orchestra.transport.ssh import SshConnection, connect

Report = Callable[[str], None]

FAREWELL = 60.0  # seconds in which a host must let go of what was begun there

# Exit codes of the login shell's part, before Python runs.
NO_PYTHON, NO_ROOT = 42, 43

# Finds a Python and root rights, then runs the package `host`, which comes first on stdin: a zip
# archive of `length` bytes, imported from a memfd, so that no file has to be made for it.
SHELL = """exec sh -c '
s=; if [ "$(id -u)" != 0 ]; then sudo -n true 2>/dev/null || exit 43; s="sudo -n"; fi
for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3 \
  /opt/*/bin/python3; do
  p=$(command -v "$p" 2>/dev/null) || continue
  if "$p" -I -S -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
    exec $s "$p" -I -S -c "import os, sys
archive = os.memfd_create(\\"host\\")
os.write(archive, sys.stdin.buffer.read({length}))
sys.path.insert(0, f\\"/proc/self/fd/{{archive}}\\")
from orchestra.controller.host.serve import serve
serve()"
  fi
done
exit 42'"""

INSTALL_PYTHON = """exec sh -c '
s=; if [ "$(id -u)" != 0 ]; then s="sudo -n"; fi
if command -v apt-get >/dev/null; then $s apt-get update; $s apt-get install -y python3
elif command -v dnf >/dev/null; then $s dnf install -y python3
elif command -v apk >/dev/null; then $s apk add python3
else echo "no apt-get, dnf or apk here" >&2; exit 1
fi'"""


@frozen
class Looked:
    """What `check` saw on a host."""

    platform: Platform
    node: Mapping[str, str] | None
    interfaces: Mapping[str, str]
    versions: Mapping[str, Sequence[str]]
    problems: Sequence[Mapping[str, str]]


@lru_cache(maxsize=1)
def host_modules() -> bytes:
    """The package `host` as a zip archive; stored, because a bare Python may lack zlib."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("orchestra", "orchestra/controller"):
            archive.writestr(f"{name}/__init__.py", "")
        for source in resources.files("orchestra.controller.host").iterdir():
            if source.name.endswith(".py"):
                archive.writestr(f"orchestra/controller/host/{source.name}", source.read_bytes())
    return out.getvalue()


class Host:
    """A login on a host that is, was or becomes a node."""

    def __init__(self, node: InventoryNode, connection: SshConnection) -> None:
        self.node = node
        self.connection = connection

    async def ask(self, *requests: Mapping[str, Any], payload: bytes = b"") -> list[Any]:
        """Do these requests there, in order, as root; their answers.

        Unavailable where the host has no Python or no root for us, Failed with the host's own
        words where a request is refused.
        """
        modules = host_modules()
        command = SHELL.format(length=len(modules))
        stdin = modules + json.dumps(requests).encode() + b"\n" + payload
        name = self.node.name
        done = await self.connection.run(command, stdin)
        if done.exit_status == NO_PYTHON:
            raise Unavailable(
                f"no Python 3.11 or newer on {name} ({self.node.address}); install it there "
                "(apt-get install python3, dnf install python3.11, apk add python3) or let "
                "`orchestra node add --install` try"
            )
        if done.exit_status == NO_ROOT:
            raise Unavailable(
                f"{self.node.user}@{self.node.address} is not root on {name} and may not use sudo "
                "without a password; log in as root, or allow it in /etc/sudoers.d"
            )
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.exit_status or not lines:
            words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"{name}: {' '.join(words) or f'exit status {done.exit_status}'}")
        answers = json.loads(lines[-1])
        if "error" in answers[-1]:
            raise Failed(f"{name}: {answers[-1]['error']}")
        return list(answers)

    async def install_python(self) -> None:
        """With the host's own package manager. Unavailable with its last words."""
        done = await self.connection.run(INSTALL_PYTHON)
        if done.exit_status:
            words = done.stderr.decode(errors="replace").strip().splitlines()[-2:]
            raise Unavailable(f"cannot install Python on {self.node.name}: {' '.join(words)}")

    async def look(self) -> Looked:
        (seen,) = await self.ask({"do": "check"})
        return Looked(
            platform=Platform(*seen["platform"]),
            node=seen["node"],
            interfaces=seen["interfaces"],
            versions=seen["versions"],
            problems=seen["problems"],
        )

    async def push(self, role: str, archive: Archive, there: Sequence[str]) -> None:
        """Bring the archive to the host unless it has it."""
        if archive.version in there:
            return
        request = {"do": "unpack", "role": role, "version": archive.version, "needs": archive.needs}
        await self.ask(request, payload=archive.data)


@asynccontextmanager
async def open_host(node: InventoryNode) -> AsyncIterator[Host]:
    """Log in at a node's host. Unavailable, with the transport's words, where that fails."""
    try:
        async with connect(ssh_target(node)) as connection:
            yield Host(node, connection)
    except TransportError as error:
        raise Unavailable(f"cannot reach {node.name}: {error}") from error
