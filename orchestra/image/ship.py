"""An image from one store to another, moving only the blobs that the other lacks.

The receiver says what it lacks, gets those blobs, several at a time, and makes the image of them;
asked again after a break, it lacks less. Blobs travel as they are stored: imported layers are kept
as gzip for that reason, and an uncompressed layer of a docker-archive must arrive with the digest
its manifest says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import trio

from orchestra.image.images import Images

_PARALLEL = 3  # blobs at once: a stream's window fills a line, more only hides its pauses


class Receiver(Protocol):
    """The other store: a client of the node protocol."""

    async def missing_blobs(self, digests: Sequence[str]) -> Sequence[str]: ...
    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> Any: ...
    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Any: ...


async def ship(
    images: Images,
    manifest_digest: str,
    names: Sequence[str],
    to: Receiver,
    report: Callable[[int, int], None],
) -> None:
    """Bring the image of `manifest_digest` to `to` and name it there.

    `report(done, total)` is called as bytes are sent: those of missing blobs only. The first error
    of a transfer stops the others and is raised.
    """
    sizes = await trio.to_thread.run_sync(images.shipment, manifest_digest)
    missing = await to.missing_blobs(list(sizes))
    total = sum(sizes[digest] for digest in missing)
    sent = 0
    failures: list[Exception] = []
    limit = trio.CapacityLimiter(_PARALLEL)
    report(0, total)

    async def counted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        nonlocal sent
        async for chunk in chunks:
            yield chunk
            sent += len(chunk)
            report(sent, total)

    async def send(digest: str, scope: trio.CancelScope) -> None:
        async with limit:
            try:
                async with images.open_blob(digest) as chunks:
                    await to.put_blob(digest, counted(chunks))
            except Exception as error:
                failures.append(error)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        for digest in missing:
            nursery.start_soon(send, digest, nursery.cancel_scope)
    if failures:
        raise failures[0]
    await to.put_image(manifest_digest, names)
