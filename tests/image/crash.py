"""The process that test_crash.py kills: it loads the archive on its stdin into a store.

Usage: crash.py STORE
"""

import sys
from collections.abc import AsyncIterator

import trio

from orchestra.image.images import Images


async def stdin() -> AsyncIterator[bytes]:
    while data := await trio.to_thread.run_sync(sys.stdin.buffer.read1, 64 << 10):
        yield data


async def main(store: str) -> None:
    images = Images(store)
    print(*await images.load(stdin()), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
