"""An image from its registry into a store: only the blobs that the store lacks, several at once.

Mirrors are asked before the registry itself. The manifest's bytes are kept as they come, an index
with them, so that digests survive. What arrived before a failure stays in the store for a while: a
pull that is tried again goes on. Every blob is verified against its digest as it is written.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import trio
from attrs import field, frozen

from orchestra.image.credentials import CredentialStore
from orchestra.image.digest import Digest
from orchestra.image.images import Images
from orchestra.image.media import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    host_platform,
    parse_manifest,
    select_platform,
)
from orchestra.image.reference import Reference, parse_reference
from orchestra.image.registries import Registries
from orchestra.image.registry import RegistryServer
from orchestra.model.container import Image
from orchestra.model.errors import Forbidden, Invalid, NotFound, OrchestraError, Unavailable

PARALLEL = 3  # blobs at once, as docker does
_DEPTH = 4  # indexes within indexes
_KNOWN = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

log = logging.getLogger(__name__)

# report(blob's digest, bytes that are here, bytes in all)
Report = Callable[[str, int, int], None]


@frozen
class Puller:
    """Pulls images into `images`, with the host's platform unless another is named."""

    images: Images
    registries: Registries
    credentials: CredentialStore
    platform: Platform = field(factory=host_platform)

    async def pull(self, name: str, report: Report = lambda blob, done, total: None) -> Image:
        """Bring the image `name` (its tag is "latest" if none is said) and give it that name.

        NotFound where no server has it; Forbidden, Invalid, Unavailable name the server, and
        Failed a full disk.
        """
        reference = parse_reference(name).tagged()
        failure: OrchestraError | None = None
        for endpoint in self.registries.endpoints(reference.domain):
            who = None if endpoint.is_mirror else await self.credentials.find(reference.domain)
            server = RegistryServer(endpoint, who)
            try:
                return await self._pull(server, reference, report)
            except (NotFound, Forbidden, Unavailable, Invalid) as error:
                failure = error
                if endpoint.is_mirror:
                    log.warning("mirror %s cannot give %s: %s", server, reference, error)
            finally:
                await server.aclose()
        assert failure is not None  # there is always the registry itself
        raise type(failure)(f"cannot pull {reference}: {failure}") from None

    async def _pull(self, server: RegistryServer, reference: Reference, report: Report) -> Image:
        repository = reference.path
        raw, kind = await server.manifest(repository, reference.digest or reference.tag)
        top = _parsed(raw, kind, str(server))
        found, documents = top, [raw]
        while isinstance(found, Index):
            if len(documents) > _DEPTH:
                raise Invalid(f"{server}: the indexes of {reference} nest deeper than {_DEPTH}")
            chosen = select_platform(found, self.platform, f"{server}: {reference}")
            raw, kind = await server.manifest(repository, chosen.digest)
            if len(raw) != chosen.size:
                raise Invalid(f"{server}: manifest {chosen.digest} is not of {chosen.size} bytes")
            found = _parsed(raw, kind, str(server))
            documents.append(raw)
        await self._fetch(server, repository, found, report)
        for document in reversed(documents):
            await self.images.put_blob(Digest.of(document), _once(document))
        names = [] if reference.digest and not reference.tag else [_named(reference)]
        return await self.images.put_image(Digest.of(top.raw), names)

    async def _fetch(
        self, server: RegistryServer, repository: str, manifest: Manifest, report: Report
    ) -> None:
        """Bring the manifest's blobs that are not here; the first error stops the others."""
        blobs = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
        missing = set(self.images.missing_blobs(list(blobs)))
        limit = trio.CapacityLimiter(PARALLEL)
        failures: list[Exception] = []

        async def fetch(blob: Descriptor, scope: trio.CancelScope) -> None:
            try:
                async with limit, aclosing(server.blob(repository, blob)) as pieces:
                    await self.images.put_blob(blob.digest, _counted(pieces, blob, report))
            except Exception as error:
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for digest, blob in blobs.items():
                if digest in missing:
                    nursery.start_soon(fetch, blob, nursery.cancel_scope)
                else:
                    report(digest, blob.size, blob.size)
        if failures:
            raise failures[0]


def _named(reference: Reference) -> str:
    """The name that the pulled image gets; a digest pins, but is no name to give."""
    return f"{reference.repository}:{reference.tag}"


def _parsed(raw: bytes, kind: str, server: str) -> Manifest | Index:
    """A manifest or index whose media type is what the server said (distribution-spec, "Pull")."""
    document = parse_manifest(raw, f"{server}: the manifest")
    if kind in _KNOWN and kind != document.media_type:
        raise Invalid(
            f"{server}: the manifest came as {kind} and calls itself {document.media_type}"
        )
    return document


async def _counted(
    pieces: AsyncIterator[bytes], blob: Descriptor, report: Report
) -> AsyncIterator[bytes]:
    done = 0
    async for piece in pieces:
        yield piece
        done += len(piece)
        report(blob.digest, done, blob.size)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
