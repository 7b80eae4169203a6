"""An image from a store to its registry: only the blobs that the registry lacks, several at once.

A blob that another repository of the same registry has is mounted from there. One that must travel
is streamed, and goes on where the server has got to when the line breaks. The manifest is last and
byte for byte ours: a pushed image has the digest that it has here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from urllib.parse import urlencode

import trio
from attrs import frozen

from orchestra.image.credentials import CredentialStore
from orchestra.image.digest import Digest
from orchestra.image.images import Images
from orchestra.image.media import MANIFEST_LIMIT, parse_manifest
from orchestra.image.pull import PARALLEL, Report
from orchestra.image.reference import parse_reference
from orchestra.image.registries import Registries
from orchestra.image.registry import MAY_PASS, RegistryServer
from orchestra.model.errors import Forbidden, Invalid, NotFound, Unavailable

_BLOB = (("Content-Type", "application/octet-stream"),)


@frozen
class Pusher:
    """Pushes images out of `images`."""

    images: Images
    registries: Registries
    credentials: CredentialStore

    async def push(self, name: str, report: Report = lambda blob, done, total: None) -> str:
        """Bring the image `name` to the registry that its name says; its digest there.

        NotFound where there is no such image here; Forbidden, Invalid, Unavailable name the server.
        """
        reference = parse_reference(name).tagged()
        image = self.images.get(name)
        if not reference.tag:
            raise Invalid(f"cannot push {name}: give it a tag, a digest is no name to give")
        endpoint = self.registries.endpoints(reference.domain)[-1]  # mirrors are for reading
        server = RegistryServer(endpoint, await self.credentials.find(reference.domain))
        others = [r.path for r in map(parse_reference, image.names) if r.domain == reference.domain]
        try:
            digest = Digest(image.manifest_digest)
            sizes = dict(self.images.shipment(digest))
            del sizes[digest]
            await self._send(server, reference.path, sizes, others, report)
            await self._name(server, reference.path, reference.tag, digest)
        except (NotFound, Forbidden, Unavailable, Invalid) as error:
            raise type(error)(f"cannot push {reference}: {error}") from None
        finally:
            await server.aclose()
        return digest

    async def _send(
        self,
        server: RegistryServer,
        repository: str,
        sizes: dict[str, int],
        others: Iterable[str],
        report: Report,
    ) -> None:
        """Bring blobs there; the first error stops the others."""
        limit = trio.CapacityLimiter(PARALLEL)
        failures: list[Exception] = []

        async def send(digest: str, size: int, scope: trio.CancelScope) -> None:
            try:
                async with limit:
                    upload = _Upload(server, repository, self._content(digest), digest, size)
                    if not await upload.is_there() and not await upload.begin(others):
                        await upload.finish(report)
                    report(digest, size, size)
            except Exception as error:
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for digest, size in sizes.items():
                nursery.start_soon(send, digest, size, nursery.cancel_scope)
        if failures:
            raise failures[0]

    def _content(self, digest: str) -> Callable[[int], AsyncGenerator[bytes, None]]:
        async def content(start: int) -> AsyncGenerator[bytes, None]:
            """The blob from `start` on."""
            async with self.images.open_blob(digest) as pieces:
                async for piece in pieces:
                    yield piece[start:]
                    start = max(0, start - len(piece))

        return content

    async def _name(
        self, server: RegistryServer, repository: str, tag: str, digest: Digest
    ) -> None:
        """Put the manifest under its tag: from now on the image is there."""
        async with self.images.open_blob(digest) as pieces:
            raw = b"".join([piece async for piece in pieces])[: MANIFEST_LIMIT + 1]
        kind = (("Content-Type", parse_manifest(raw).media_type),)

        async def put() -> str:
            async with server.ask(
                "PUT", repository, f"manifests/{tag}", headers=kind, body=raw, fine=(201,)
            ) as answer:
                return answer.headers.get("docker-content-digest", digest)

        if (named := await server.patiently(put)) != digest:
            raise Invalid(f"{server} names the manifest {named}, which is {digest}")


class _Upload:
    """One blob on its way to one repository."""

    def __init__(
        self,
        server: RegistryServer,
        repository: str,
        content: Callable[[int], AsyncGenerator[bytes, None]],
        digest: str,
        size: int,
    ) -> None:
        self._server, self._repository = server, repository
        self._content, self._digest, self._size = content, digest, size
        self._where = ""  # the upload's URL, which every answer may change

    async def is_there(self) -> bool:
        async def look() -> bool:
            try:
                async with self._server.ask("HEAD", self._repository, f"blobs/{self._digest}"):
                    return True
            except NotFound:
                return False

        return await self._server.patiently(look)

    async def begin(self, others: Iterable[str] = ()) -> bool:
        """Ask for an upload; True where the blob was mounted from one of the repositories `others`
        instead."""
        mounts = [{"mount": self._digest, "from": o} for o in others if o != self._repository]

        async def post() -> bool:
            query = f"?{urlencode(mounts[0])}" if mounts else ""
            async with self._server.ask(
                "POST", self._repository, f"blobs/uploads/{query}", fine=(201, 202)
            ) as answer:
                self._where = self._server.located(answer)
                return answer.status == 201

        return await self._server.patiently(post)

    async def finish(self, report: Report) -> None:
        """Stream the content, from where the server has got to, and close the upload."""
        start, tries = 0, 0
        while True:
            try:
                await self._stream(start, report)
                break
            except MAY_PASS as error:
                before = start
                tries = await self._server.pause(tries, error)
                start = await self._server.patiently(self._arrived)
                tries = 0 if start > before else tries

        async def close() -> None:
            mark = "&" if "?" in self._where else "?"
            where = f"{self._where}{mark}{urlencode({'digest': self._digest})}"
            async with self._server.ask("PUT", self._repository, where, fine=(201,)):
                pass

        await self._server.patiently(close)

    async def _stream(self, start: int, report: Report) -> None:
        async def body() -> AsyncGenerator[bytes, None]:
            done = start
            async with aclosing(self._content(start)) as pieces:
                async for piece in pieces:
                    yield piece
                    done += len(piece)
                    report(self._digest, done, self._size)

        async with self._server.ask(
            "PATCH", self._repository, self._where, headers=_BLOB, body=body, fine=(202,)
        ) as answer:
            self._where = self._server.located(answer)

    async def _arrived(self) -> int:
        """How many bytes the server has. Where that is none (or one: both are "0-0") a new upload
        is begun in the place of this one, as where the server has forgotten it."""
        try:
            async with self._server.ask(
                "GET", self._repository, self._where, fine=(204,)
            ) as answer:
                if answer.headers.get("location"):
                    self._where = self._server.located(answer)
                last = answer.headers.get("range", "").rpartition("-")[2]
            if last.isdecimal() and int(last):
                return int(last) + 1
            async with self._server.ask("DELETE", self._repository, self._where, fine=(204,)):
                pass
        except NotFound:
            pass
        await self.begin()
        return 0
