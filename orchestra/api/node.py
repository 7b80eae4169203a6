"""The node protocol: what the controller says to an agent, beside Docker's routes.

Assignments travel as sections by digest: the controller first sends digests and the bodies it
believes to be new; the agent answers with the names of those it lacks, and has then stored nothing.
Blobs travel the same way: only those that are missing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from attrs import frozen

from orchestra.api.answers import answer, nothing, stream
from orchestra.api.call import Call
from orchestra.api.engine import Engine, Images, Node
from orchestra.api.table import Table
from orchestra.model.codec import to_json
from orchestra.model.errors import Invalid
from orchestra.wire.message import Response

LONGEST_WAIT = 300.0  # seconds


@frozen
class NodeRoutes:
    engine: Engine
    node: Node

    def table(self) -> Table:
        return [
            ("GET", "/orchestra/v1/node", self.facts),
            ("GET", "/orchestra/v1/observed", self.observed),
            ("GET", "/orchestra/v1/assignment", self.assignment),
            ("PUT", "/orchestra/v1/assignment", self.put_assignment),
            ("POST", "/orchestra/v1/blobs/missing", self.missing_blobs),
            ("PUT", "/orchestra/v1/blobs/{name}", self.put_blob),
            ("GET", "/orchestra/v1/blobs/{name}", self.blob),
            ("PUT", "/orchestra/v1/images/{name}", self.put_image),
        ]

    async def facts(self, call: Call) -> Response:
        return answer(to_json(self.engine.facts))

    async def observed(self, call: Call) -> Response:
        after = call.integer("after")
        if after is None:
            return answer(to_json(self.node.observed()))
        # Streamed, so that the wait ends when the controller hangs up.
        return stream(self._next_observed(after, min(call.time("timeout"), LONGEST_WAIT)))

    async def _next_observed(self, after: int, timeout: float) -> AsyncIterator[bytes]:
        observed = await self.node.wait_observed(after, timeout)
        yield json.dumps(to_json(observed)).encode() + b"\n"

    async def assignment(self, call: Call) -> Response:
        generation, digests = self.node.assignment_digests()
        value: dict[str, object] = {"generation": generation, "digests": dict(digests)}
        if call.flag("bodies"):
            value["bodies"] = dict(self.node.assignment_bodies())
        return answer(value)

    async def put_assignment(self, call: Call) -> Response:
        body = await call.object()
        generation, digests = body.get("generation"), body.get("digests")
        bodies = body.get("bodies")
        if not isinstance(generation, int) or not isinstance(digests, dict):
            raise Invalid("an assignment needs a generation and the digests of its sections")
        missing = await self.node.put_assignment(generation, digests, bodies or {})
        return answer({"missing": list(missing)})

    async def missing_blobs(self, call: Call) -> Response:
        digests = (await call.object()).get("digests")
        if not isinstance(digests, list):
            raise Invalid("digests must be a list")
        return answer({"missing": list(self._images.missing_blobs(digests))})

    async def put_blob(self, call: Call) -> Response:
        await self._images.put_blob(call.names["name"], aiter(call.request.body))
        return nothing(201)

    async def blob(self, call: Call) -> Response:
        return stream(await _opened(self._images, call.names["name"]), "application/octet-stream")

    async def put_image(self, call: Call) -> Response:
        names = (await call.object()).get("names") or []
        image = await self._images.put_image(call.names["name"], names)
        return answer(to_json(image), 201)

    @property
    def _images(self) -> Images:
        return self.engine.images


async def _opened(images: Images, digest: str) -> AsyncIterator[bytes]:
    """The blob's chunks; the first is read here, so that an absent blob is an error."""
    chunks = _chunks(images, digest)
    first = await anext(chunks, b"")

    async def rest() -> AsyncIterator[bytes]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    return rest()


async def _chunks(images: Images, digest: str) -> AsyncIterator[bytes]:
    async with images.open_blob(digest) as chunks:
        async for chunk in chunks:
            yield chunk
