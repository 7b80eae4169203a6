"""Which image a name means: the controller's own store first, then what some node holds.

An image that is only on a node is fetched into the controller's store, blob by missing blob, so
that from then on it can be shipped to any node. An image found nowhere is an error that names both
ways out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from orchestra.api.client import NodeClient
from orchestra.controller.link import Link, Silence
from orchestra.image.images import Images
from orchestra.image.reference import parse_reference
from orchestra.model.cluster import ImageNeed
from orchestra.model.container import Image
from orchestra.model.errors import Failed, NotFound
from orchestra.model.node import NodeState
from orchestra.model.service import Stack
from orchestra.plan.state import ImageFacts

MANIFEST_LIMIT = 4 << 20  # bytes; registries refuse larger ones (OCI distribution spec, "Push")


def image_texts(stack: Stack) -> list[str]:
    """The images that the stack's services name, each once."""
    return sorted({service.image for service in stack.services.values() if service.image})


async def resolve(images: Images, links: Iterable[Link], text: str) -> ImageNeed:
    """Find the image; `manifest` "" where neither the controller nor a node has it."""
    try:
        found = images.get(text)
    except NotFound:
        return await _from_nodes(images, links, text)
    return ImageNeed(text, found.manifest_digest, found.id)


def facts_of(images: Images, need: ImageNeed) -> ImageFacts:
    """What planning needs of a resolved image."""
    image: Image = images.get(need.image)
    return ImageFacts(image.id, image.architecture, image.os, image.config)


def require(need: ImageNeed) -> None:
    """Raise NotFound, naming both ways out, for an image that was found nowhere."""
    if not need.manifest:
        raise NotFound(
            f"image {need.image} is neither in the controller's store nor on any node: load it "
            "with `orchestra image load FILE` (an archive made by `docker save` or `orchestra "
            "image save`), or put it on one of the nodes (`docker -H ssh://NODE load`, or a pull "
            "there); its other nodes get it from there"
        )


async def _from_nodes(images: Images, links: Iterable[Link], text: str) -> ImageNeed:
    name = parse_reference(text).tagged().familiar()
    for link in links:
        if link.state is not NodeState.READY:
            continue
        try:
            client = link.ask()
            manifest = await _held_manifest(client, name)
            if manifest:
                image = await _fetch(images, client, manifest, name)
                return ImageNeed(text, manifest, image.id, (link.node.name,))
        except Silence as error:
            raise Failed(
                f"image {text} is on {link.node.name} but could not be fetched from there: {error}"
            ) from error
    return ImageNeed(text)


async def _held_manifest(client: NodeClient, name: str) -> str:
    """The manifest digest under which a node holds the image `name`, "" where it does not."""
    for row in await client.json("GET", "/images/json"):
        if name in (row.get("RepoTags") or ()) or name in (row.get("RepoDigests") or ()):
            for digest in row.get("RepoDigests") or ():
                return str(digest.partition("@")[2])
    return ""


async def _fetch(images: Images, client: NodeClient, manifest: str, name: str) -> Image:
    """Bring an image's blobs from a node into the controller's store and name it there."""
    async with client.blob(manifest) as chunks:
        body = b""
        async for chunk in chunks:
            body += chunk
            if len(body) > MANIFEST_LIMIT:
                raise Failed(f"the manifest {manifest} is larger than {MANIFEST_LIMIT} bytes")
    document = json.loads(body)
    digests = [document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]
    for digest in images.missing_blobs([*digests, manifest]):
        async with client.blob(digest) as chunks:
            await images.put_blob(digest, chunks)
    return await images.put_image(manifest, [name])
