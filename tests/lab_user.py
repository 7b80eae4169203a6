"""The user of a lab, for tests: types commands as a user does, and walks up to the hosts.

Everything goes through the command line in a process of its own, with a configuration and a run
directory of its own, so that no test sees the clusters of whoever runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from orchestra.testing.lab import hosts

T = TypeVar("T")

# What a node has of ours, seen from its console: files, processes, wires, rules, cgroups, keys.
TRACES = r"""
ls -d /var/lib/orchestra/* /run/orchestra/* /run/netns/* 2>/dev/null
for p in /proc/[0-9]*; do
    c=$(tr '\0' ' ' <$p/cmdline 2>/dev/null)
    case $c in *node_init.py*) ;; *orchestra*) echo "process $c";; esac
done
ls /sys/class/net | grep -v -x -e lo -e eth0
nft list tables
grep -o ' /[^ ]*orchestra[^ ]*' /proc/self/mountinfo | grep -v -x ' /.*-lab/.*'
find /sys/fs/cgroup -name 'orchestra*'
grep -o 'orchestra-controller.*' /root/.ssh/authorized_keys
true
"""


class LabUser:
    """`name` is the lab that the user's commands mean."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        (scratch / "run").mkdir(mode=0o700, exist_ok=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRA_", "COMPOSE_"))},
            "ORCHESTRA_CONFIG": str(scratch / "config"),
            "XDG_RUNTIME_DIR": str(scratch / "run"),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "orchestra.cli.main", *words]

    def __call__(
        self, *words: str, code: int | None = 0, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command of ours; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            self.command(*words),
            cwd=settings.pop("cwd", self.scratch),
            env={**self.environment, **settings.pop("env", {})},
            text=True,
            stdin=settings.pop("stdin", subprocess.DEVNULL),
            capture_output=True,
            timeout=settings.pop("timeout", 110),
            **settings,
        )
        if code is not None:
            assert done.returncode == code, (
                f"orchestra {' '.join(words)} ended with {done.returncode}, not {code}\n"
                f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--format", "json").stdout)

    def refused(self, *words: str, code: int = 1, **settings: Any) -> str:
        """What a command says that must fail."""
        done = self(*words, code=code, **settings)
        return done.stdout + done.stderr

    def wired(self, *words: str) -> tuple[str, ...]:
        """A command of ours, typed on the lab's client: a machine that reaches the hosts."""
        return ("lab", "client", "--name", self.name, "--", *self.command(*words))

    def inside(self, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self(*self.wired(*words), **settings)

    def refused_inside(self, *words: str, **settings: Any) -> str:
        return self.refused(*self.wired(*words), **settings)

    def lab(self, verb: str, *words: str, **settings: Any) -> str:
        """Run `orchestra lab VERB` on this lab; its output."""
        return self("lab", verb, "--name", self.name, *words, **settings).stdout

    @property
    def key(self) -> str:
        return f"/var/lib/orchestra-lab/{self.name}/id_ed25519"

    def address(self, node: str) -> str:
        return hosts.load(self.name).host(node).address

    def on(self, node: str, script: str) -> str:
        """Run a shell script at a host's console."""
        lab = hosts.load(self.name)
        command = hosts.on_host(lab, lab.host(node), ["sh", "-c", script])
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def on_disk(self, node: str, path: str) -> str:
        """A path of a host as this machine sees it, while the host is on."""
        lab = hosts.load(self.name)
        return f"/proc/{hosts.pid(lab, lab.host(node))}/root{path}"

    def traces(self, node: str) -> list[str]:
        """Everything of ours on a host; [] of a plain one."""
        return self.on(node, TRACES).splitlines()

    @contextmanager
    def hidden(self, node: str, *paths: str) -> Iterator[None]:
        """Take files (globs) away from a host: nobody there can read or run them."""
        script = (
            f"for f in {' '.join(paths)}; do [ -f $f ] && mount --bind /dev/null $f; done; true"
        )
        self.on(node, script)
        try:
            yield
        finally:
            self.on(node, f"for f in {' '.join(paths)}; do umount $f; done 2>/dev/null; true")

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.json("node", "ls")}

    def wait(self, what: str, found: Callable[[], T], patience: float = 60.0) -> T:
        deadline = time.monotonic() + patience
        while not (answer := found()):
            assert time.monotonic() < deadline, f"{what} did not come true within {patience} s"
            time.sleep(0.1)
        return answer
