"""Asking an agent from trio, over whatever stream reaches it: the controller's side of the API.

`EngineClient` speaks Docker's routes in plain JSON, `NodeClient` the node protocol in model
values. An answer's error is raised as the model's error; a connection that breaks is Unavailable.
What the opener raises passes through unchanged.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

import trio

from orchestra.api.refusal import refusal, target
from orchestra.model.codec import from_json
from orchestra.model.container import Image
from orchestra.model.errors import Unavailable
from orchestra.model.node import NodeFacts, Observed
from orchestra.wire.client import Answer, HttpClient, Opener, Refused
from orchestra.wire.jsonlines import json_values
from orchestra.wire.message import WireError

JSON = (("Content-Type", "application/json"),)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except WireError as error:
        raise Unavailable(f"the agent does not answer: {error}") from error


class EngineClient:
    """Docker's Engine API of one agent."""

    def __init__(self, opener: Opener) -> None:
        self.http = HttpClient(opener)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
        body: bytes | AsyncIterable[bytes] = b"",
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer, which was no error, can be read within the context.

        `value` is sent as JSON; `body` as it is.
        """
        headers = JSON if value is not None else ()
        content = json.dumps(value).encode() if value is not None else body
        with _translated():
            async with self.http.request(
                method, target(path, query), headers=headers, body=content
            ) as answer:
                if answer.status >= 400:
                    raise refusal(answer.status, await answer.read())
                yield answer

    async def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
    ) -> Any:
        """The answer's JSON, None where it has no body."""
        async with self.request(method, path, query=query, value=value) as answer:
            content = await answer.read()
        return json.loads(content) if content.strip() else None

    async def lines(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] = {},
        body: bytes | AsyncIterable[bytes] = b"",
    ) -> AsyncIterator[Any]:
        """The values of a stream of JSON lines."""
        async with self.request(method, path, query=query, body=body) as answer:
            async for value in json_values(answer):
                yield value

    async def hijack(
        self,
        path: str,
        *,
        query: Mapping[str, object] = {},
        value: Any = None,
    ) -> trio.abc.HalfCloseableStream:
        """POST and take over the connection: attach, exec start."""
        headers = JSON if value is not None else ()
        content = json.dumps(value).encode() if value is not None else b""
        with _translated():
            stream = await self.http.upgrade(
                "POST", target(path, query), headers=headers, body=content
            )
        if isinstance(stream, Refused):
            raise refusal(stream.status, stream.body)
        return stream

    async def aclose(self) -> None:
        """Close the idle connections."""
        await self.http.aclose()


class NodeClient(EngineClient):
    """The node protocol of one agent, beside its Engine API."""

    async def facts(self) -> NodeFacts:
        return from_json(NodeFacts, await self.json("GET", "/orchestra/v1/node"))

    async def observed(self) -> Observed:
        """What the agent observes now."""
        return from_json(Observed, await self.json("GET", "/orchestra/v1/observed"))

    async def wait_observed(self, after: int, timeout: float) -> Observed:
        """The agent's report as soon as it is beyond `after`, at the latest after `timeout` s."""
        query = {"after": after, "timeout": timeout}
        return from_json(Observed, await self.json("GET", "/orchestra/v1/observed", query=query))

    async def assignment_digests(self) -> tuple[int, Mapping[str, str]]:
        """(generation, digest of each section) of the stored assignment."""
        value = await self.json("GET", "/orchestra/v1/assignment")
        return value["generation"], value["digests"]

    async def assignment_bodies(self) -> Mapping[str, Any]:
        """The sections of the stored assignment."""
        value = await self.json("GET", "/orchestra/v1/assignment", query={"bodies": True})
        bodies: Mapping[str, Any] = value["bodies"]
        return bodies

    async def put_assignment(
        self, generation: int, digests: Mapping[str, str], bodies: Mapping[str, Any]
    ) -> Sequence[str]:
        """Names of the sections whose bodies the agent lacks; where there are none it is stored."""
        value = {"generation": generation, "digests": dict(digests), "bodies": dict(bodies)}
        answer = await self.json("PUT", "/orchestra/v1/assignment", value=value)
        return tuple(answer["missing"])

    async def missing_blobs(self, digests: Iterable[str]) -> Sequence[str]:
        value = {"digests": list(digests)}
        answer = await self.json("POST", "/orchestra/v1/blobs/missing", value=value)
        return tuple(answer["missing"])

    async def put_blob(self, digest: str, chunks: AsyncIterable[bytes]) -> None:
        """Send a blob; Invalid where its content has another digest."""
        path = f"/orchestra/v1/blobs/{quote(digest)}"
        async with self.request("PUT", path, body=chunks) as answer:
            await answer.read()

    @asynccontextmanager
    async def blob(self, digest: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A blob's chunks, within the context."""
        async with self.request("GET", f"/orchestra/v1/blobs/{quote(digest)}") as answer:
            yield aiter(answer)

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        """Make an image of blobs that are all there; the agent unpacks its layers."""
        path = f"/orchestra/v1/images/{quote(manifest_digest)}"
        return from_json(Image, await self.json("PUT", path, value={"names": list(names)}))
