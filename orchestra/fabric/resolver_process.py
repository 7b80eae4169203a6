"""Starting and ending the node's resolver from the agent, whose child it must not stay.

Which resolver runs is read from its lock file, never remembered: the agent restarts, the resolver
does not. One that serves a namespace which has since been replaced is ended and started anew.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

from orchestra.fabric.resolver import locked

_PATIENCE = 10.0


def ensure(run: str, name: str, identity: int) -> None:
    """Have a resolver serve the fabric `name` (its namespace's inode: `identity`).

    Returns when it listens. Raises OSError with the end of its log if it does not come up.
    """
    running = serving(run)
    if running is not None:
        if running[1] == identity:
            return
        stop(run)
    # The directory or archive that holds this package: -I leaves out everything else.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        "import os, sys; os.fork() and os._exit(0); "  # adopted by init, so never our zombie
        f"sys.path.insert(0, {root!r}); "
        "from orchestra.fabric.resolver import main; sys.exit(main(sys.argv[1:]))"
    )
    ready, tell = os.pipe()
    log = f"{run}/resolver.log"
    try:
        with open(log, "wb") as output:
            subprocess.run(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    code,
                    "--run",
                    run,
                    "--netns",
                    name,
                    "--ready",
                    str(tell),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                pass_fds=[tell],
                check=False,
            )
        os.close(tell)
        tell = -1
        select.select([ready], [], [], _PATIENCE)
        os.set_blocking(ready, False)
        if os.read(ready, 1) != b"1":
            with open(log) as file:
                said = file.read().strip().splitlines()
            raise OSError(f"it ended at once: {said[-1] if said else 'without a word'}")
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)


def stop(run: str) -> None:
    """End the resolver of this run directory and wait for its end, if one runs."""
    running = serving(run)
    if running is None:
        return
    try:
        process = os.pidfd_open(running[0])
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)  # it has nothing to put in order
        select.select([process], [], [], _PATIENCE)
    finally:
        os.close(process)


def serving(run: str) -> tuple[int, int] | None:
    """Process and namespace of the resolver that holds the lock; None if nobody does."""
    with locked(run) as lock:
        if lock is not None:
            return None
        with open(f"{run}/resolver.lock") as file:
            words = file.read().split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None
