"""The content store: blobs by digest, unpacked layers by chain id, and the names of images.

```
ROOT/oci-layout, index.json    an OCI image layout: index.json holds one descriptor per name
ROOT/blobs/ALGORITHM/HEX       exact bytes as received
ROOT/layers/HEX/diff           an unpacked layer (HEX of its chain id), as overlayfs wants it
ROOT/layers/HEX/layer.json     {"size": bytes of its tar, "writer": ...}
ROOT/tmp                       everything that is not complete yet; emptied at start
```
The law: whatever has its final name is complete and on disk. Content is written below tmp, synced,
and renamed; the index is replaced by rename, after what it names. So neither kill -9 nor power loss
nor a full disk leaves anything half-done: what no name reaches is swept. Methods block and may be
called from any thread; `records` is a snapshot that needs no lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from orchestra.image.digest import Digest
from orchestra.image.flow import read_file
from orchestra.image.media import (
    CONTAINERD_NAME,
    MANIFEST_LIMIT,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    Index,
    encode,
    parse_manifest,
)
from orchestra.image.reference import parse_reference
from orchestra.model.errors import Failed, Invalid, NotFound

_GRACE = 3600.0  # seconds that blobs put for an image may wait for it
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class NoSpace(Failed):
    """The disk is full: the text says where, how much is needed and how much is free."""

    def __init__(self, path: str, needed: int) -> None:
        free = free_space(path)
        super().__init__(
            f"no space left on {path}: {needed} bytes needed, {free} free; "
            "remove unused images (`image rm`) or enlarge the file system"
        )


def free_space(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@frozen
class Record:
    """A line of the index: a canonical name ("" for an untagged image) and what it names."""

    name: str
    target: Descriptor


@frozen
class Live:
    """What the records reach."""

    blobs: frozenset[str]
    layers: frozenset[str]  # hex of chain ids


class Pins:
    """Blobs and layers that a piece of work needs: none is swept while it goes on."""

    def __init__(self, counts: Counter[str], lock: threading.RLock) -> None:
        self._counts, self._lock = counts, lock
        self._mine: list[str] = []

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            self._mine.append(name)

    def release(self) -> None:
        with self._lock:
            self._counts.subtract(self._mine)
            self._mine.clear()


class Incoming:
    """A blob being written: it has no name until :meth:`Store.publish`."""

    def __init__(self, path: str, algorithm: str) -> None:
        self.path = path
        self.size = 0
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by finish or discard

    def write(self, data: bytes | memoryview) -> None:
        """Append. OSError where the disk is full."""
        self._hasher.update(data)
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> Digest:
        """Close; the content's digest."""
        self._file.close()
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class LayerSpace:
    """A layer being unpacked below tmp; `diff` is its directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.diff = f"{path}/diff"
        os.mkdir(self.diff, 0o755)


class Store:
    """The store at `root`, which one process at a time may use."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.lock = threading.RLock()
        self._pins: Counter[str] = Counter()
        self._graves = itertools.count()
        self._waiting: dict[str, float] = {}  # blobs put for an image to come -> until when
        os.makedirs(root, mode=0o700, exist_ok=True)
        for part in ("blobs", "blobs/sha256", "blobs/sha512", "layers", "tmp"):
            os.makedirs(f"{root}/{part}", mode=0o700, exist_ok=True)
        self._empty_tmp()
        if not os.path.exists(f"{root}/oci-layout"):
            self._replace("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self.records: tuple[Record, ...] = self._read_index()
        self._adopt_waiting()

    def _empty_tmp(self) -> None:
        for item in os.scandir(f"{self.root}/tmp"):
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path)
            else:
                os.unlink(item.path)

    def _adopt_waiting(self) -> None:
        """Blobs of an interrupted shipment stay for a while, so that it need not begin anew."""
        now, wall = time.monotonic(), time.time()
        for algorithm in ("sha256", "sha512"):
            for item in os.scandir(f"{self.root}/blobs/{algorithm}"):
                age = max(0.0, wall - item.stat().st_mtime)
                if age < _GRACE:
                    self._waiting[f"{algorithm}:{item.name}"] = now + _GRACE - age

    # blobs

    def blob_path(self, digest: Digest) -> str:
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def has_blob(self, digest: Digest) -> bool:
        return os.path.exists(self.blob_path(digest))

    def blob_size(self, digest: Digest) -> int:
        """Bytes; NotFound where there is none."""
        try:
            return os.stat(self.blob_path(digest)).st_size
        except FileNotFoundError:
            raise NotFound(f"No such blob: {digest}") from None

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """A small blob's content, its digest verified; Invalid if larger than `limit`."""
        if self.blob_size(digest) > limit:
            raise Invalid(f"blob {digest} is larger than {limit} bytes")
        with open(self.blob_path(digest), "rb") as file:
            data = file.read()
        if Digest.of(data, digest.algorithm) != digest:
            raise Failed(f"blob {digest} on disk is damaged: remove its image and load it again")
        return data

    def open_blob(self, digest: Digest) -> Iterator[bytes]:
        self.blob_size(digest)
        return read_file(self.blob_path(digest))

    @contextlib.contextmanager
    def incoming(self, algorithm: str = "sha256", size: int = 0) -> Iterator[Incoming]:
        """A blob to write; gone again unless published within. NoSpace where `size` bytes (0: not
        known) or what was written do not fit."""
        folder = f"{self.root}/tmp"
        if size > free_space(folder):
            raise NoSpace(self.root, size)
        handle, path = tempfile.mkstemp(dir=folder, prefix="blob-")
        os.close(handle)
        blob = Incoming(path, algorithm)
        try:
            yield blob
        except OSError as error:
            if is_full(error):
                blob.discard()
                raise NoSpace(self.root, max(size, blob.size)) from None
            raise
        finally:
            blob.discard()

    def publish(self, blob: Incoming, digest: Digest, pins: Pins) -> None:
        """Give a finished blob its name, durably."""
        pins.add(digest)
        path = self.blob_path(digest)
        with open(blob.path, "rb") as file:
            os.fsync(file.fileno())
        os.rename(blob.path, path)
        self._sync(os.path.dirname(path))

    def put(self, data: bytes, pins: Pins) -> Digest:
        """Store a small blob; its digest."""
        with self.incoming(size=len(data)) as blob:
            blob.write(data)
            digest = blob.finish()
            self.publish(blob, digest, pins)
        return digest

    def wait_for_image(self, digest: Digest) -> None:
        """Keep a blob for a while although no image has it yet."""
        with self.lock:
            self._waiting[digest] = time.monotonic() + _GRACE

    # layers

    def layer(self, chain: Digest) -> str:
        """The directory of an unpacked layer, there or not."""
        return f"{self.root}/layers/{chain.hex}/diff"

    def has_layer(self, chain: Digest) -> bool:
        return os.path.isdir(self.layer(chain))

    def layer_size(self, chain: Digest) -> int:
        """Bytes of the layer's tar."""
        with open(f"{self.root}/layers/{chain.hex}/layer.json", "rb") as file:
            return int(json.load(file)["size"])

    @contextlib.contextmanager
    def layer_space(self) -> Iterator[LayerSpace]:
        """A place to unpack a layer; gone again unless published within."""
        path = tempfile.mkdtemp(dir=f"{self.root}/tmp", prefix="layer-")
        try:
            yield LayerSpace(path)
        finally:
            if os.path.exists(path):
                shutil.rmtree(path)

    def publish_layer(self, space: LayerSpace, chain: Digest, size: int, pins: Pins) -> None:
        """Give an unpacked layer its name, durably: one syncfs instead of an fsync per file."""
        pins.add(chain.hex)
        with open(f"{space.path}/layer.json", "w") as file:
            json.dump({"size": size}, file)
        _syncfs(space.path)
        try:
            os.rename(space.path, f"{self.root}/layers/{chain.hex}")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return  # another task was quicker with the same layer
        self._sync(f"{self.root}/layers")

    # names

    def _read_index(self) -> tuple[Record, ...]:
        path = f"{self.root}/index.json"
        if not os.path.exists(path):
            return ()
        with open(path, "rb") as file:
            index = parse_manifest(file.read(), path)
        if not isinstance(index, Index):
            raise Failed(f"{path} is no OCI index")
        return tuple(Record(d.annotations.get(CONTAINERD_NAME, ""), d) for d in index.manifests)

    def change(self, change: Callable[[tuple[Record, ...]], tuple[Record, ...]]) -> None:
        """Replace the records by `change(records)`, durably; NoSpace changes nothing."""
        with self.lock:
            records = change(self.records)
            if records == self.records:
                return
            document = {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [self._line(record) for record in records],
            }
            raw = encode(document)
            if len(raw) > MANIFEST_LIMIT:
                raise Failed(f"cannot name more images: {self.root}/index.json is full")
            self._replace("index.json", raw)
            self.records = records

    @staticmethod
    def _line(record: Record) -> dict[str, object]:
        line = record.target.to_json()
        line.pop("annotations", None)
        if record.name:
            familiar = parse_reference(record.name).familiar()
            line["annotations"] = {CONTAINERD_NAME: record.name, REF_NAME: familiar}
        return line

    def _replace(self, name: str, data: bytes) -> None:
        path = f"{self.root}/tmp/{name}"
        try:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if is_full(error):
                raise NoSpace(self.root, len(data)) from None
            raise
        os.rename(path, f"{self.root}/{name}")
        self._sync(self.root)

    # what may go

    @contextlib.contextmanager
    def pinning(self) -> Iterator[Pins]:
        pins = Pins(self._pins, self.lock)
        try:
            yield pins
        finally:
            pins.release()

    def sweep(self, live: Callable[[], Live]) -> list[str]:
        """Remove blobs and layers that neither `live()` nor pins nor waiting hold.

        Returns the names of removed layers (hex of chain ids). A layer loses its name first, in
        one step, and its files after that, without the lock.
        """
        layers = []
        graves = []
        with self.lock:
            alive = live()
            now = time.monotonic()
            self._waiting = {d: t for d, t in self._waiting.items() if t > now}
            held = {name for name, count in self._pins.items() if count > 0} | set(self._waiting)
            for algorithm in ("sha256", "sha512"):
                for name in os.listdir(f"{self.root}/blobs/{algorithm}"):
                    digest = f"{algorithm}:{name}"
                    if digest not in alive.blobs and digest not in held:
                        os.unlink(f"{self.root}/blobs/{algorithm}/{name}")
            for name in os.listdir(f"{self.root}/layers"):
                if name not in alive.layers and name not in held:
                    layers.append(name)
                    graves.append(f"{self.root}/tmp/gone-{next(self._graves)}")
                    os.rename(f"{self.root}/layers/{name}", graves[-1])
        for grave in graves:
            shutil.rmtree(grave)
        return layers

    def forget_waiting(self, digests: Iterable[str]) -> None:
        """The image that these blobs waited for is here (or never comes)."""
        with self.lock:
            for digest in digests:
                self._waiting.pop(digest, None)

    @staticmethod
    def _sync(directory: str) -> None:
        fd = os.open(directory, _DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _syncfs(path: str) -> None:
    """syncfs(2) on the file system of `path`; the stdlib has sync() for all of them only."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, _DIRECTORY)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
