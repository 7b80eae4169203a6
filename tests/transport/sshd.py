"""A real OpenSSH server of one's own: a free port of 127.0.0.1, own keys, own configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from orchestra.transport.ssh import SshTarget


@frozen
class Sshd:
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def target(self, **changes: object) -> SshTarget:
        """How to log in as root with the key that this server knows."""
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "identity": str(self.folder / "user_key"),
            "host_key": (self.folder / "host_key.pub").read_text(),
        }
        return SshTarget(**{**values, **changes})  # type: ignore[arg-type]

    def sessions(self) -> list[int]:
        """Process ids of the connections' own sshd processes."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    status = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(status[1]) == self.process.pid:
                        pids.append(int(entry.name))
        return pids

    def descendants(self) -> list[int]:
        """Every process below this server, each parent before its children."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    status = (entry / "stat").read_text().rpartition(")")[2].split()
                    children.setdefault(int(status[1]), []).append(int(entry.name))
        found, queue = [], [self.process.pid]
        while queue:
            below = children.get(queue.pop(), [])
            found += below
            queue += below
        return found


def make_key(path: Path, kind: str = "ed25519") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)


@contextlib.contextmanager
def running_sshd(settings: Mapping[str, str] = {}) -> Iterator[Sshd]:
    """Run an sshd; with the context it ends, its sessions too, and its folder goes."""
    with tempfile.TemporaryDirectory(prefix="orchestra-sshd-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the key file is read as the user who logs in
        make_key(folder / "host_key")
        make_key(folder / "user_key")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.makedirs("/run/sshd", exist_ok=True)  # privilege separation directory
        values = {
            "Port": str(port),
            "ListenAddress": "127.0.0.1",
            "HostKey": f"{folder}/host_key",
            "AuthorizedKeysFile": f"{folder}/user_key.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "200",
            "LogLevel": "ERROR",
            **settings,
        }
        config = folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
        process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=sys.stderr
        )
        server = Sshd(folder, port, process)
        try:
            _wait_for_port(port)
            yield server
        finally:
            below = server.descendants()
            process.terminate()
            process.wait()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _wait_for_port(port: int) -> None:
    for _ in range(200):
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
        time.sleep(0.02)
    raise TimeoutError(f"sshd does not listen on port {port}")
