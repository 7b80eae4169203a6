"""Images in one tar: what `load` reads and `save` writes.

Read are docker-archives of every age (`<id>/layer.tar`, layers that are links to equal ones,
`blobs/` paths of Docker >= 25) and OCI layouts with nested indexes, compressed or not, in one pass
over a stream that may be larger than memory. Written is one tar that is both an OCI layout and a
docker-archive, so that manifests keep their digests (docker-archive alone loses them).
The law: a name in an archive is no digest and no path. Every member is hashed as it comes and is
found by what it is; names only say which member is meant.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from orchestra.image.compression import HEAD, Compression, decompress, sniff
from orchestra.image.digest import Digest
from orchestra.image.layer import Limits
from orchestra.image.media import (
    CONFIG_LIMIT,
    CONTAINERD_NAME,
    MANIFEST_LIMIT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode,
    encode,
    parse_image,
    parse_manifest,
    select_platform,
)
from orchestra.image.reference import parse_reference
from orchestra.image.store import Incoming, Pins, Store
from orchestra.image.tar import END, Entry, Kind, TarReader, header, padding
from orchestra.model.errors import Invalid

_MEMBER_LIMIT = 20_000
_INDEX_DEPTH = 4
LAYER_TYPES = {
    Compression.NONE: OCI_LAYER,
    Compression.GZIP: f"{OCI_LAYER}+gzip",
    Compression.ZSTD: f"{OCI_LAYER}+zstd",
}


@frozen
class Loaded:
    """An image of an archive, its blobs published: what is named, and its names (canonical)."""

    target: Descriptor
    names: tuple[str, ...]


@frozen
class Saved:
    """An image to write: `target` with the names it shall have (canonical), and its manifest."""

    target: Descriptor
    manifest: Manifest
    names: tuple[str, ...] = field(factory=tuple)


# reading


def read_archive(
    store: Store, pins: Pins, chunks: Iterator[bytes], platform: Platform, limits: Limits
) -> list[Loaded]:
    """Take an archive's images into the store; layers are not unpacked yet.

    Raises Invalid where the archive is damaged, is none, or lacks something; NoSpace.
    """
    with contextlib.ExitStack() as stack:
        members = _Members(store, pins)
        members.take(decompress(chunks, limits=limits), stack)
        if members.find("index.json"):
            loaded = _read_layout(members, platform)
        elif members.find("manifest.json"):
            loaded = _read_docker_archive(members)
        else:
            raise Invalid(
                "the archive holds neither index.json nor manifest.json: it is no OCI layout and "
                "no docker-archive (a root file system's tar is taken by `image import`)"
            )
        if not loaded:
            raise Invalid("the archive holds no image")
        return loaded


@frozen
class _Member:
    blob: Incoming
    digest: Digest
    head: bytes  # the first bytes, to sniff


class _Members:
    """An archive's files, below the store's tmp until they are found to be needed."""

    def __init__(self, store: Store, pins: Pins) -> None:
        self._store = store
        self._pins = pins
        self._files: dict[str, _Member] = {}
        self._links: dict[str, str] = {}
        self._by_digest: dict[Digest, _Member] = {}
        self._published: set[Digest] = set()

    def take(self, chunks: Iterator[bytes], stack: contextlib.ExitStack) -> None:
        reader = TarReader(chunks)
        for count, entry in enumerate(reader):
            if count > _MEMBER_LIMIT:
                raise Invalid(f"the archive has more than {_MEMBER_LIMIT} members")
            path = posixpath.normpath(entry.name).lstrip("/")
            if entry.kind is Kind.FILE and entry.extents is None:
                self._files[path] = self._file(path, entry, reader, stack)
            elif entry.kind is Kind.SYMLINK:
                target = posixpath.join(posixpath.dirname(path), entry.linkname)
                self._links[path] = posixpath.normpath(target)
            elif entry.kind is Kind.HARDLINK:
                self._links[path] = posixpath.normpath(entry.linkname).lstrip("/")
        for _ in chunks:
            pass  # to the sender's last byte, which else would find nobody reading

    def _file(
        self, path: str, entry: Entry, reader: TarReader, stack: contextlib.ExitStack
    ) -> _Member:
        algorithm = "sha512" if path.startswith("blobs/sha512/") else "sha256"
        blob = stack.enter_context(self._store.incoming(algorithm, entry.size))
        head = b""
        for piece in reader.data():
            if len(head) < HEAD:
                head += bytes(piece[:HEAD])
            blob.write(piece)
        digest = blob.finish()
        return self._by_digest.setdefault(digest, _Member(blob, digest, head[:HEAD]))

    def find(self, path: str) -> _Member | None:
        """The file at `path`, through links of the archive."""
        for _ in range(8):
            if path in self._files:
                return self._files[path]
            if path not in self._links:
                return None
            path = self._links[path]
        raise Invalid(f"the archive's links at {path!r:.200} go in circles")

    def named(self, path: str) -> _Member:
        member = self.find(posixpath.normpath(path).lstrip("/"))
        if member is None:
            raise Invalid(f"the archive lacks {path!r:.200}, which its manifest names")
        return member

    def text(self, member: _Member, limit: int, what: str) -> bytes:
        if member.blob.size > limit:
            raise Invalid(f"{what} is larger than {limit} bytes")
        published = member.digest in self._published
        path = self._store.blob_path(member.digest) if published else member.blob.path
        with open(path, "rb") as file:
            return file.read()

    def has(self, digest: Digest) -> bool:
        return digest in self._by_digest or self._store.has_blob(digest)

    def document(self, descriptor: Descriptor, what: str) -> Manifest | Index:
        """A manifest or index by its digest, from the archive or from the store, published."""
        self.keep(descriptor)
        raw = self._store.read_blob(descriptor.digest, MANIFEST_LIMIT)
        return parse_manifest(raw, f"{what} {descriptor.digest}")

    def keep(self, descriptor: Descriptor) -> None:
        """Publish the blob that `descriptor` names."""
        digest = descriptor.digest
        member = self._by_digest.get(digest)
        if member is not None:
            self.publish(member)
        elif self._store.has_blob(digest):
            self._pins.add(digest)
        else:
            raise Invalid(f"the archive lacks blob {digest}, which a manifest of it names")
        if self._store.blob_size(digest) != descriptor.size:
            raise Invalid(f"blob {digest} is not of the {descriptor.size} bytes its manifest says")

    def publish(self, member: _Member) -> None:
        """Give a file its name in the store; it takes the place of one that may be damaged."""
        if member.digest not in self._published:
            self._store.publish(member.blob, member.digest, self._pins)
            self._published.add(member.digest)

    def put(self, data: bytes) -> Digest:
        return self._store.put(data, self._pins)


def _read_layout(members: _Members, platform: Platform) -> list[Loaded]:
    member = members.named("index.json")
    index = parse_manifest(members.text(member, MANIFEST_LIMIT, "index.json"), "index.json")
    if not isinstance(index, Index):
        raise Invalid("the archive's index.json is no OCI index")
    by_config = _repo_tags(members)
    names: dict[Digest, list[str]] = {}
    targets: dict[Digest, Descriptor] = {}
    for descriptor in index.manifests:
        manifest = _keep_image(members, descriptor, platform)
        targets.setdefault(descriptor.digest, descriptor)
        found = names.setdefault(descriptor.digest, [])
        found += _annotated_names(descriptor)
        found += by_config.get(manifest.config.digest, ())
    return [
        Loaded(evolve(target, annotations={}), tuple(dict.fromkeys(names[digest])))
        for digest, target in targets.items()
    ]


def _keep_image(members: _Members, target: Descriptor, platform: Platform) -> Manifest:
    """Publish what `target` reaches; the manifest for `platform`. Other platforms' images come
    along where the archive has all of them (an index may be sparse)."""
    document = members.document(target, "the archive's manifest")
    others: list[Descriptor] = []
    for _ in range(_INDEX_DEPTH):
        if isinstance(document, Manifest):
            break
        chosen = select_platform(document, platform, f"index {target.digest}")
        others += [other for other in document.manifests if other.digest != chosen.digest]
        document = members.document(chosen, "the archive's manifest")
    if isinstance(document, Index):
        raise Invalid(f"the archive's indexes nest deeper than {_INDEX_DEPTH}")
    for blob in (document.config, *document.layers):
        members.keep(blob)
    _keep_others(members, others)
    return document


def _keep_others(members: _Members, waiting: list[Descriptor]) -> None:
    """Publish the images among `waiting`, and below, that the archive has all of."""
    seen: set[Digest] = set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.digest in seen or not members.has(descriptor.digest):
            continue
        seen.add(descriptor.digest)
        document = members.document(descriptor, "manifest")
        if isinstance(document, Index):
            waiting += document.manifests
        elif all(members.has(blob.digest) for blob in (document.config, *document.layers)):
            for blob in (document.config, *document.layers):
                members.keep(blob)


def _annotated_names(descriptor: Descriptor) -> list[str]:
    """Names by containerd's and the layout's annotation; a bare tag names no repository."""
    for key in (CONTAINERD_NAME, REF_NAME):
        text = descriptor.annotations.get(key, "")
        if "/" in text or ":" in text:
            return [_canonical(text)]
    return []


def _canonical(text: str) -> str:
    reference = parse_reference(text)
    return evolve(reference, digest="").tagged().canonical()


def _repo_tags(members: _Members) -> dict[Digest, list[str]]:
    """Names by the digest of the image's configuration, from manifest.json where there is one."""
    if not members.find("manifest.json"):
        return {}
    return {
        members.named(item.config).digest: [_canonical(name) for name in item.names]
        for item in _docker_manifest(members)
        if members.find(posixpath.normpath(item.config))
    }


@frozen
class _DockerImage:
    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def _docker_manifest(members: _Members) -> list[_DockerImage]:
    raw = members.text(members.named("manifest.json"), MANIFEST_LIMIT, "manifest.json")
    document = decode(raw, "manifest.json")

    def texts(item: Mapping[str, object], key: str) -> tuple[str, ...]:
        value = item.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise Invalid(f"the archive's manifest.json: {key} is not a list of strings")
        return tuple(value)

    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise Invalid("the archive's manifest.json is not a list of objects")
    images = []
    for item in document:
        config = item.get("Config")
        if not isinstance(config, str):
            raise Invalid("the archive's manifest.json: Config is not a string")
        images.append(_DockerImage(config, texts(item, "Layers"), texts(item, "RepoTags")))
    return images


def _read_docker_archive(members: _Members) -> list[Loaded]:
    loaded = []
    for image in _docker_manifest(members):
        config = members.named(image.config)
        document = parse_image(members.text(config, CONFIG_LIMIT, image.config), image.config)
        if len(document.diff_ids) != len(image.layers):
            raise Invalid(
                f"{image.config} names {len(document.diff_ids)} layers, "
                f"the archive's manifest.json {len(image.layers)}"
            )
        layers = [members.named(path) for path in image.layers]
        for member in (config, *layers):
            members.publish(member)
        raw = manifest_document(
            Descriptor(OCI_CONFIG, config.digest, config.blob.size),
            [Descriptor(layer_type(sniff(m.head)), m.digest, m.blob.size) for m in layers],
        )
        target = Descriptor(OCI_MANIFEST, members.put(raw), len(raw))
        loaded.append(Loaded(target, tuple(_canonical(name) for name in image.names)))
    return loaded


def layer_type(compression: Compression) -> str:
    """The media type of a layer; bzip2 and xz have none of their own, and are told by content."""
    return LAYER_TYPES.get(compression, OCI_LAYER)


def manifest_document(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """The bytes of an OCI manifest."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )


# writing


def write_archive(store: Store, images: Sequence[Saved]) -> Iterator[bytes]:
    """Yield one tar with all `images`: an OCI layout and a docker-archive in one."""
    written: set[Digest] = set()
    for image in images:
        for digest in reachable(store, image.target.digest):
            if digest not in written:
                written.add(digest)
                yield from _blob(store, digest)
    yield from _file("index.json", _index(images))
    yield from _file("manifest.json", encode([_docker_item(image) for image in images]))
    yield from _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield from _file("repositories", encode(_repositories(images)))
    yield END


def reachable(store: Store, digest: Digest) -> list[Digest]:
    """The blobs at hand that `digest` (of a manifest or index) reaches, each once, itself last."""
    found: dict[Digest, None] = {}
    waiting = [digest]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = None
        document = parse_manifest(store.read_blob(name, MANIFEST_LIMIT), f"manifest {name}")
        if isinstance(document, Index):
            waiting += [m.digest for m in document.manifests if store.has_blob(m.digest)]
        else:
            blobs = (document.config, *document.layers)
            found.update((b.digest, None) for b in blobs if store.has_blob(b.digest))
    return [*reversed(found)]


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _blob(store: Store, digest: Digest) -> Iterator[bytes]:
    size = store.blob_size(digest)
    yield header(Entry(_path(digest), size=size))
    yield from store.open_blob(digest)
    yield padding(size)


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield header(Entry(name, size=len(data))) + data + padding(len(data))


def _index(images: Sequence[Saved]) -> bytes:
    lines = []
    for image in images:
        for name in image.names or ("",):
            line = image.target.to_json()
            if name:
                tag = parse_reference(name).tag
                line["annotations"] = {CONTAINERD_NAME: name, REF_NAME: tag}
            lines.append(line)
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": lines})


def _docker_item(image: Saved) -> dict[str, object]:
    return {
        "Config": _path(image.manifest.config.digest),
        "RepoTags": [parse_reference(name).familiar() for name in image.names],
        "Layers": [_path(layer.digest) for layer in image.manifest.layers],
    }


def _repositories(images: Sequence[Saved]) -> dict[str, dict[str, str]]:
    """The oldest form of names: repository -> tag -> the top layer."""
    out: dict[str, dict[str, str]] = {}
    for image in images:
        layers = image.manifest.layers
        for name in image.names:
            reference = parse_reference(name)
            top = (layers[-1] if layers else image.manifest.config).digest
            out.setdefault(reference.familiar_repository, {})[reference.tag] = top.hex
    return out
