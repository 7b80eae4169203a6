"""An image store as the engine, the node protocol and the CLI use it.

:class:`Images` satisfies ``api.engine.Images``. Everything that touches the disk, hashes or
decompresses runs in worker threads; listing and lookup read a snapshot in memory. The law: a change
is all or nothing. An image has a name only when its blobs and its unpacked layers are on disk, and
work that fails leaves the store as it was, a full disk included.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from functools import partial
from typing import TypeVar

import trio
from attrs import frozen

from orchestra.image.archive import (
    Saved,
    layer_type,
    manifest_document,
    reachable,
    read_archive,
    write_archive,
)
from orchestra.image.catalog import Catalog, Line, Removal, renamed, taggable
from orchestra.image.changes import apply_changes
from orchestra.image.compression import Compression, decompress, gzip, peek, sniff
from orchestra.image.digest import Digest
from orchestra.image.flow import Measured, ahead, interruptible, pull, push
from orchestra.image.layer import Limits, chain_ids
from orchestra.image.media import (
    CONFIG_LIMIT,
    MANIFEST_LIMIT,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageDocument,
    Manifest,
    Platform,
    config_document,
    encode,
    format_time,
    host_platform,
    parse_image,
    parse_manifest,
    select_platform,
)
from orchestra.image.reference import parse_reference
from orchestra.image.store import (
    LayerSpace,
    Live,
    NoSpace,
    Pins,
    Record,
    Store,
    is_full,
)
from orchestra.image.unpack import unpack
from orchestra.model.container import Image, ImageConfig
from orchestra.model.errors import Failed, Invalid, NotFound, Unavailable

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BLOCK = 4096  # bytes: what a directory entry needs at least


@frozen
class _Known:
    """What one manifest's documents say; they never change, so it is read once."""

    manifest: Manifest
    document: ImageDocument
    chains: tuple[Digest, ...]  # lowest first
    size: int


class Images:
    """The images below `root`, of which `platform` (the host's) is unpacked and shown."""

    def __init__(
        self,
        root: str,
        *,
        platform: Platform | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
    ) -> None:
        self._platform = platform or host_platform()
        self._limits = limits
        self._store = Store(root)
        self._known: dict[Digest, _Known] = {}
        self._catalog = Catalog()
        self._heal()
        self._store.forget_waiting(self._live().blobs)
        self._store.sweep(self._live)
        self._refresh()

    # what is here

    def list(self) -> Sequence[Image]:
        """All images, the newest first."""
        return self._catalog.images

    def get(self, ref: str) -> Image:
        """The image that `ref` (id, name, name@digest, unique beginning of an id) means.

        NotFound("No such image: ..."), Invalid where an id's beginning fits several.
        """
        return self._catalog.find(ref)[0]

    def lowers(self, image_id: str) -> tuple[str, ...]:
        """The directories of the image's layers, topmost first, as overlayfs takes them."""
        catalog = self._catalog
        return catalog.lowers[catalog.by_id(image_id).id]

    def manifest_digest(self, ref: str) -> str:
        return self.get(ref).manifest_digest

    def shipment(self, manifest_digest: str) -> Mapping[str, int]:
        """The blobs that make up an image, the manifest last, with their sizes in bytes."""
        digests = reachable(self._store, Digest(manifest_digest))
        return {str(digest): self._store.blob_size(digest) for digest in digests}

    # bringing images in

    async def load(self, chunks: AsyncIterator[bytes]) -> Sequence[str]:
        """Load an archive (see archive.py); the familiar names, or ids of images without one."""

        def work() -> Sequence[str]:
            with self._changing() as pins:
                with self._trying("load images"):
                    loaded = read_archive(
                        self._store, pins, pull(chunks), self._platform, self._limits
                    )
                shown: list[str] = []
                for image in loaded:
                    names = [parse_reference(name).familiar() for name in image.names]
                    with self._trying(f"load image {', '.join(names) or image.target.digest}"):
                        manifest = self._complete(image.target, pins)
                    shown += names or [str(manifest.config.digest)]
                with self._trying("name the loaded images"):
                    self._name([(image.target, image.names) for image in loaded])
                return shown

        return await trio.to_thread.run_sync(work)

    async def import_rootfs(
        self, chunks: AsyncIterator[bytes], name: str, changes: Sequence[str], message: str = ""
    ) -> str:
        """Make a one-layer image of a root file system's tar (maybe compressed); its id.

        `name` may be "" (untagged); `changes` as in changes.py; `message` is the image's comment.
        """
        config = apply_changes(ImageConfig(), changes)
        canonical = taggable(name).canonical() if name else ""

        def work() -> str:
            with self._changing() as pins:
                return self._import(pull(chunks), canonical, config, message, pins)

        return await self._run(f"import image {name}".rstrip(), work)

    def _import(
        self, chunks: Iterator[bytes], name: str, config: ImageConfig, message: str, pins: Pins
    ) -> str:
        layer = self._store_layer(chunks, pins)
        with self._store.layer_space() as space:
            diff_id, size = self._unpack(layer, space, ())
            if size == 0:
                raise Invalid("the stream is empty")
            self._store.publish_layer(space, diff_id, size, pins)
        created = format_time(time.time())
        document = {
            "created": created,
            "architecture": self._platform.architecture,
            **({"variant": self._platform.variant} if self._platform.variant else {}),
            "os": self._platform.os,
            "config": config_document(config),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "comment": message or "imported"}],
            **({"comment": message} if message else {}),
        }
        raw = encode(document)
        config_blob = Descriptor(OCI_CONFIG, self._store.put(raw, pins), len(raw))
        manifest = manifest_document(config_blob, [layer])
        target = Descriptor(OCI_MANIFEST, self._store.put(manifest, pins), len(manifest))
        self._complete(target, pins)
        self._name([(target, (name,) if name else ())])
        return str(config_blob.digest)

    def _store_layer(self, chunks: Iterator[bytes], pins: Pins) -> Descriptor:
        """Keep a layer as it comes if it is gzip, else as gzip: what is stored will be shipped."""
        head, chunks = peek(chunks)
        if sniff(head) is not Compression.GZIP:
            chunks = gzip(decompress(chunks))
        with self._store.incoming() as blob:
            for piece in chunks:
                blob.write(piece)
            digest = blob.finish()
            self._store.publish(blob, digest, pins)
            return Descriptor(layer_type(Compression.GZIP), digest, blob.size)

    def missing_blobs(self, digests: Sequence[str]) -> Sequence[str]:
        """Those of `digests` that are not here."""
        return [d for d in digests if not self._store.has_blob(Digest(d))]

    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a blob; Invalid, and nothing kept, where its content is another's."""
        wanted = Digest(digest)

        def work() -> None:
            with self._store.pinning() as pins:
                with self._store.incoming(wanted.algorithm) as blob:
                    for piece in pull(chunks):
                        blob.write(piece)
                    found = blob.finish()
                    if found != wanted:
                        raise Invalid(f"it arrived as {found}")
                    self._store.publish(blob, wanted, pins)
                    self._store.wait_for_image(wanted)

        await self._run(f"store blob {wanted}", work)

    def open_blob(self, digest: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A blob's content as it is stored; NotFound at once where it is not here."""
        pieces = self._store.open_blob(Digest(digest))
        return aclosing(push(pieces))

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        """Make an image of blobs that are here, and name it; existing names move to it.

        Invalid names the blobs that are missing.
        """
        digest = Digest(manifest_digest)
        canonical = tuple(taggable(name).canonical() for name in names)

        def work() -> Image:
            with self._changing() as pins:
                pins.add(digest)
                raw = self._store.read_blob(digest, MANIFEST_LIMIT)
                document = parse_manifest(raw, f"manifest {digest}")
                target = Descriptor(document.media_type, digest, len(raw))
                manifest = self._complete(target, pins)
                self._name([(target, canonical)])
                self._store.forget_waiting(reachable(self._store, digest))
                return self._catalog.by_id(str(manifest.config.digest))

        return await self._run(f"make image {digest}", work)

    # taking images out

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """One tar with the images `refs` (archive.py). A repository without a tag means all its
        tags, as with docker. NotFound before the first byte."""
        targets: dict[Digest, Descriptor] = {}
        names: dict[Digest, dict[str, None]] = {}
        for ref in refs:
            for line in self._catalog.to_save(ref):
                targets[line.target.digest] = line.target
                names.setdefault(line.target.digest, {}).update({line.name: None})
        return self._saving(
            [
                Saved(
                    target,
                    self._manifest_at(target)[1],
                    tuple(name for name in names[digest] if name),
                )
                for digest, target in targets.items()
            ]
        )

    async def _saving(self, images: Sequence[Saved]) -> AsyncIterator[bytes]:
        with self._store.pinning() as pins:
            for image in images:
                for digest in reachable(self._store, image.target.digest):
                    pins.add(digest)
            async with aclosing(push(write_archive(self._store, images))) as pieces:
                async for piece in pieces:
                    yield piece

    async def tag(self, ref: str, name: str) -> None:
        """Give the image another name; the name leaves the image that had it."""
        canonical = taggable(name).canonical()
        catalog = self._catalog
        target = catalog.of(catalog.find(ref)[0])[0].target

        def change(records: tuple[Record, ...]) -> tuple[Record, ...]:
            if not any(record.target.digest == target.digest for record in records):
                raise NotFound(f"No such image: {ref}")  # removed since it was found
            return renamed(records, canonical, target)

        await self._run(f"tag {ref} as {name}", lambda: self._change(change))

    async def remove(
        self, ref: str, force: bool = False, in_use: Mapping[str, str] | None = None
    ) -> Sequence[tuple[str, str]]:
        """Take a name away, or the image with all its names where `ref` is an id or the name is
        the last one (catalog.py says what is refused). Returns ("Untagged", name) and
        ("Deleted", id or chain id) pairs."""
        removal = self._catalog.removal(ref, force, in_use or {})
        return await self._run(f"remove image {ref}", lambda: self._remove(removal))

    def _remove(self, removal: Removal) -> Sequence[tuple[str, str]]:
        image = removal.image
        targets = {line.target.digest for line in self._catalog.of(image)}

        def change(records: tuple[Record, ...]) -> tuple[Record, ...]:
            for name in removal.names:
                records = renamed(records, name, None)
            if removal.keep:
                return records
            return tuple(r for r in records if r.name or r.target.digest not in targets)

        self._change(change)
        swept = set(self._store.sweep(self._live))
        pairs = [("Untagged", parse_reference(name).familiar()) for name in removal.names]
        if not removal.keep:
            pairs.append(("Deleted", image.id))
        chains = [chain for chain in chain_ids(image.layers) if chain.hex in swept]
        return pairs + [("Deleted", str(chain)) for chain in reversed(chains)]

    # the steps of it

    def _heal(self) -> None:
        """Unpack layers that are gone from the disk again; forget images whose blobs are damaged,
        and say so: one broken image must not keep the others from being used."""
        for record in self._store.records:
            try:
                with self._store.pinning() as pins:
                    self._complete(record.target, pins)
            except NoSpace:
                raise
            except (Invalid, NotFound, Failed, Unavailable) as error:
                _log.error(
                    "image %s is forgotten, load it again: %s",
                    parse_reference(record.name).familiar() if record.name else "without a name",
                    error,
                )
                self._store.change(partial(_without, gone=record))

    @contextmanager
    def _changing(self) -> Iterator[Pins]:
        """Work that may add to the store: what it added and no name reaches goes at its end."""
        try:
            with self._store.pinning() as pins:
                yield pins
        finally:
            self._store.sweep(self._live)

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        def trying() -> T:
            with self._trying(what):
                return work()

        return await trio.to_thread.run_sync(trying)

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Errors say what could not be done; a full disk says where and what would help."""
        try:
            yield
        except Failed as error:
            raise Failed(f"cannot {what}: {error}") from None
        except (Invalid, Unavailable) as error:
            raise type(error)(f"cannot {what}: {error}") from None
        except OSError as error:
            if not is_full(error):
                raise
            raise Failed(f"cannot {what}: {NoSpace(self._store.root, _BLOCK)}") from None

    def _manifest_at(self, target: Descriptor) -> tuple[Digest, Manifest]:
        """The manifest for our platform that `target` is or leads to."""
        digest = target.digest
        while True:
            document = parse_manifest(
                self._store.read_blob(digest, MANIFEST_LIMIT), f"manifest {digest}"
            )
            if isinstance(document, Manifest):
                return digest, document
            digest = select_platform(document, self._platform, f"index {digest}").digest

    def _complete(self, target: Descriptor, pins: Pins) -> Manifest:
        """Check that an image's blobs are all here, and unpack its layers."""
        digest, manifest = self._manifest_at(target)
        blobs = [manifest.config, *manifest.layers]
        for blob in blobs:
            pins.add(blob.digest)
        missing = [str(b.digest) for b in blobs if not self._store.has_blob(b.digest)]
        if missing:
            raise Invalid(f"image {digest} lacks blobs: {', '.join(missing)}")
        raw = self._store.read_blob(manifest.config.digest, CONFIG_LIMIT)
        document = parse_image(raw, f"image configuration {manifest.config.digest}")
        if len(document.diff_ids) != len(manifest.layers):
            raise Invalid(
                f"image {digest} has {len(manifest.layers)} layers, its configuration names "
                f"{len(document.diff_ids)}"
            )
        chains = chain_ids(document.diff_ids)
        lowers: tuple[str, ...] = ()
        for layer, diff_id, chain in zip(manifest.layers, document.diff_ids, chains):
            pins.add(chain.hex)
            if not self._store.has_layer(chain):
                with self._store.layer_space() as space:
                    found, size = self._unpack(layer, space, lowers, diff_id.algorithm)
                    if found != diff_id:
                        raise Invalid(
                            f"layer {layer.digest} unpacks to {found}, its image says {diff_id}"
                        )
                    self._store.publish_layer(space, chain, size, pins)
            lowers = (self._store.layer(chain), *lowers)
        return manifest

    def _unpack(
        self,
        layer: Descriptor,
        space: LayerSpace,
        lowers: Sequence[str],
        algorithm: str = "sha256",
    ) -> tuple[Digest, int]:
        """Unpack a layer's blob; its diff id and the bytes of its tar."""
        packed = self._store.blob_size(layer.digest)
        blob = self._store.open_blob(layer.digest)
        tar = Measured(decompress(blob, packed=packed, limits=self._limits), algorithm)
        pieces = ahead(tar)
        try:
            unpack(interruptible(pieces), space.diff, lowers=lowers, limits=self._limits)
            for _ in pieces:
                pass  # what follows the tar's end belongs to the digest
        except (Invalid, Unavailable) as error:
            raise type(error)(f"layer {layer.digest}: {error}") from None
        except OSError as error:
            if not is_full(error):
                raise
            for _ in pieces:
                pass  # to know how much it would have been
            raise NoSpace(self._store.root, tar.size) from None
        finally:
            pieces.close()
        return tar.digest(), tar.size

    def _name(self, names: Sequence[tuple[Descriptor, Sequence[str]]]) -> None:
        """Give targets names, all at once; without any a target is, or stays, an untagged image."""

        def change(records: tuple[Record, ...]) -> tuple[Record, ...]:
            for target, its_names in names:
                for name in its_names:
                    records = renamed(records, name, target)
                if not any(r.target.digest == target.digest for r in records):
                    records = (*records, Record("", target))
            return records

        self._change(change)

    def _change(self, change: Callable[[tuple[Record, ...]], tuple[Record, ...]]) -> None:
        with self._store.lock:
            self._store.change(change)
            self._refresh()

    def _refresh(self) -> None:
        """Make the catalog that lookup reads."""
        known: dict[Digest, _Known] = {}
        by_id: dict[str, list[tuple[Record, Digest]]] = {}
        for record in self._store.records:
            digest, manifest = self._manifest_at(record.target)
            known[digest] = self._known.get(digest) or self._describe(manifest)
            by_id.setdefault(str(manifest.config.digest), []).append((record, digest))
        images, all_lines, lowers = [], [], {}
        for image_id, lines in by_id.items():
            digest = lines[0][1]
            records = [record for record, _ in lines]
            image = _image(image_id, digest, records, known[digest])
            images.append(image)
            all_lines += [Line(record.name, record.target, image) for record in records]
            chains = reversed(known[digest].chains)
            lowers[image_id] = tuple(self._store.layer(chain) for chain in chains)
        images.sort(key=lambda image: (-image.created, image.id))
        self._known = known
        self._catalog = Catalog(tuple(images), tuple(all_lines), lowers)

    def _describe(self, manifest: Manifest) -> _Known:
        raw = self._store.read_blob(manifest.config.digest, CONFIG_LIMIT)
        document = parse_image(raw, f"image configuration {manifest.config.digest}")
        chains = chain_ids(document.diff_ids)
        size = sum(self._store.layer_size(chain) for chain in chains)
        return _Known(manifest, document, chains, size)

    def _live(self) -> Live:
        blobs: set[str] = set()
        layers: set[str] = set()
        for record in self._store.records:
            blobs.update(reachable(self._store, record.target.digest))
            _, manifest = self._manifest_at(record.target)
            raw = self._store.read_blob(manifest.config.digest, CONFIG_LIMIT)
            layers.update(chain.hex for chain in chain_ids(parse_image(raw).diff_ids))
        return Live(frozenset(blobs), frozenset(layers))


def _image(image_id: str, manifest: Digest, records: Sequence[Record], known: _Known) -> Image:
    document = known.document
    names = [parse_reference(record.name) for record in records if record.name]
    digests = [
        f"{parse_reference(record.name).familiar_repository}@{record.target.digest}"
        for record in records
        if record.name
    ]
    return Image(
        id=image_id,
        manifest_digest=str(manifest),
        names=tuple(name.familiar() for name in names),
        digests=tuple(dict.fromkeys(digests)),
        created=document.created,
        size=known.size,
        architecture=document.platform.architecture,
        os=document.platform.os,
        variant=document.platform.variant,
        author=document.author,
        comment=document.comment,
        layers=tuple(str(diff_id) for diff_id in document.diff_ids),
        history=document.history,
        config=document.config,
    )


def _without(records: tuple[Record, ...], *, gone: Record) -> tuple[Record, ...]:
    return tuple(record for record in records if record != gone)
