"""A process that opens a runtime, starts containers, and waits to be killed: an agent that dies."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from orchestra.model.service import Mount, MountType
from tests.runtime.box import Box, shell, start

# Half of the lines are written while the agent lives, half (and the end) after the word to go on.
SCRIPT = """
i=0
while [ $i -lt 3000 ]; do
    echo "$NAME line $i"
    i=$((i+1))
    if [ $i = 1500 ]; then until [ -e /go/on ]; do sleep 0.02; done; fi
done
: >/go/done-$NAME
"""


async def main(base: str, layer: str, count: int, tail: str, tty: bool) -> None:
    box = Box(Path(base), Path(layer))
    async with box.open() as runtime:
        for number in range(count):
            env = (f"NAME=c{number}", f"CODE={number}")
            go = Mount(MountType.BIND, "/go", f"{base}/go", create_host_path=True)
            script = SCRIPT + (tail or "exit $CODE")
            wanted = shell(script, env=env, mounts=(go,), tty=tty, open_stdin=tty)
            container = await start(runtime, box, wanted)
            print(number, container, flush=True)
        print("all", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "tty")
