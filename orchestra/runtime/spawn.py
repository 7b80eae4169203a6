"""Start the shim: apart from the agent's session and cgroup, from an interpreter nobody can write.

The shim's children run for a moment inside containers, where /proc/self/exe is the interpreter: a
script of the container with the line `#!/proc/self/exe` would get hold of the host's Python and
could write to it (CVE-2019-5736). So the shim is run from a detached, read-only bind mount of the
interpreter: through it nobody can open that file for writing, and it costs no copy.
"""

from __future__ import annotations

import os
import subprocess
import sys

import trio

from orchestra.linux import mounts
from orchestra.linux.cgroups import ROOT, Group, Hierarchy
from orchestra.model.errors import Unavailable
from orchestra.model.paths import NodePaths

# Where our own package lies: a directory, or the archive that the agent runs from.
_TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from orchestra.runtime.shim import main; main(sys.argv[1:])"
)


async def start_shim(paths: NodePaths, hierarchy: Hierarchy, cgroup_parent: str) -> None:
    """Return once the shim listens at `paths.shim_socket`. Unavailable with the reason."""
    os.makedirs(paths.run, 0o700, exist_ok=True)
    group = Group(hierarchy, f"{cgroup_parent.strip('/')}/shim")
    group.create()
    directories = [*group.directories(), *_systemd_directories(group.path)]
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, _TREE, "--socket", paths.shim_socket]
    command += ["--keeper", paths.keeper_socket, "--containers", f"{paths.run}/containers"]
    for directory in directories:
        command += ["--cgroup", directory]
    interpreter = _read_only_interpreter()
    try:
        with open(f"{paths.run}/shim.log", "ab") as log:
            process = await trio.to_thread.run_sync(
                lambda: subprocess.run(
                    command,
                    executable=f"/proc/self/fd/{interpreter}",
                    pass_fds=(interpreter,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                    check=False,
                )
            )
    finally:
        os.close(interpreter)
    if process.returncode:
        raise Unavailable(
            f"cannot start the shim (exit code {process.returncode}): see {paths.run}/shim.log"
        )


def _read_only_interpreter() -> int:
    fd = os.open(os.path.realpath(sys.executable), os.O_PATH | os.O_CLOEXEC)
    try:
        tree = mounts.clone(fd)
        mounts.set_attributes(tree, mounts.MOUNT_ATTR_RDONLY)
        return tree
    finally:
        os.close(fd)


def _systemd_directories(path: str) -> list[str]:
    """systemd ends what is in its own unit's cgroup: step out of its hierarchies too."""
    found = []
    for name in ("systemd", "unified"):
        if os.path.exists(f"{ROOT}/{name}/cgroup.procs"):
            os.makedirs(f"{ROOT}/{name}/{path}", 0o755, exist_ok=True)
            found.append(f"{ROOT}/{name}/{path}")
    return found
