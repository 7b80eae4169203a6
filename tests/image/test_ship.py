"""An image goes from one store to another: only what is missing, all or nothing, again after a
break."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from image.box import Blobs, docker_archive, file, leftovers, load, run, tar, tree
from orchestra.image.images import Images
from orchestra.image.ship import ship
from orchestra.model.errors import Invalid, Unavailable

LAYERS = [tar(file(f"layer{n}", bytes([n]) * 700_000)) for n in range(4)]


class Node:
    """The receiving store, on a line that can break after so many bytes."""

    def __init__(self, root: Path) -> None:
        self.images = Images(str(root))
        self.root = root
        self.received: list[str] = []
        self.bytes_left: int | None = None
        self.at_once = 0
        self.most_at_once = 0

    async def missing_blobs(self, digests: Sequence[str]) -> Sequence[str]:
        return self.images.missing_blobs(digests)

    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.images.put_blob(digest, self.line(chunks))
            self.received.append(digest)
        finally:
            self.at_once -= 1

    async def line(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            if self.bytes_left is not None:
                self.bytes_left -= len(chunk)
                if self.bytes_left < 0:
                    raise Unavailable("the line broke")
            await trio.sleep(0)
            yield chunk

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> None:
        await self.images.put_image(manifest_digest, names)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    images = Images(str(tmp_path / "from"))
    load(images, docker_archive(LAYERS, ["app:1"]))
    load(images, docker_archive(LAYERS[:2], ["base:1"]))
    return images


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "to")


def shipped(images: Images, node: Node, name: str) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    manifest = images.get(name).manifest_digest
    run(ship, images, manifest, [name], node, lambda done, total: reports.append((done, total)))
    return reports


def verify_same(images: Images, node: Node, name: str) -> None:
    ours, theirs = images.get(name), node.images.get(name)
    assert (ours.id, ours.manifest_digest) == (theirs.id, theirs.manifest_digest)
    for mine, copy in zip(images.lowers(ours.id), node.images.lowers(theirs.id), strict=True):
        assert tree(mine) == tree(copy)
    assert leftovers(node.root) == []


def test_an_image_arrives_whole_with_its_name(images: Images, node: Node) -> None:
    reports = shipped(images, node, "app:1")
    verify_same(images, node, "app:1")
    total = sum(images.shipment(images.get("app:1").manifest_digest).values())
    assert reports[0] == (0, total) and reports[-1] == (total, total)
    assert reports == sorted(reports)
    assert 1 < node.most_at_once <= 3


def test_only_what_is_missing_travels(images: Images, node: Node) -> None:
    shipped(images, node, "base:1")
    node.received.clear()
    reports = shipped(images, node, "app:1")
    verify_same(images, node, "app:1")
    shared = images.shipment(images.get("base:1").manifest_digest)
    wanted = images.shipment(images.get("app:1").manifest_digest)
    assert set(node.received) == set(wanted) - set(shared)
    assert reports[-1][1] == sum(wanted[digest] for digest in node.received)


def test_an_image_that_is_there_already_costs_one_question(images: Images, node: Node) -> None:
    shipped(images, node, "app:1")
    node.received.clear()
    assert shipped(images, node, "app:1") == [(0, 0)]
    assert node.received == []


def test_compressed_layers_travel_compressed(tmp_path: Path, node: Node) -> None:
    images = Images(str(tmp_path / "packed"))
    blobs = Blobs.empty()
    load(images, blobs.archive(blobs.image(LAYERS, gzip.compress, "+gzip")))
    assert shipped(images, node, "demo:1")[-1][1] == sum(map(len, blobs.content.values()))
    verify_same(images, node, "demo:1")


@pytest.mark.parametrize("length", [0, 100_000, 900_000, 1_600_000, 2_400_000])
def test_a_broken_line_leaves_nothing_half_done_and_the_rest_travels_later(
    images: Images, node: Node, length: int
) -> None:
    node.bytes_left = length
    with pytest.raises(Unavailable, match="the line broke"):
        shipped(images, node, "app:1")
    assert node.images.list() == () and leftovers(node.root) == []
    arrived = list(node.received)
    node.bytes_left = None
    node.received.clear()
    shipped(images, node, "app:1")
    verify_same(images, node, "app:1")
    assert not set(arrived) & set(node.received)  # what was complete did not travel again


def test_what_arrived_before_a_break_survives_the_receivers_restart(
    images: Images, node: Node
) -> None:
    node.bytes_left = 1_600_000
    with pytest.raises(Unavailable):
        shipped(images, node, "app:1")
    arrived = list(node.received)
    assert arrived
    again = Node(node.root)
    shipped(images, again, "app:1")
    assert not set(arrived) & set(again.received)
    verify_same(images, again, "app:1")


def test_two_shipments_at_once_do_not_disturb_each_other(images: Images, node: Node) -> None:
    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for name in ("app:1", "base:1"):
                manifest = images.get(name).manifest_digest
                nursery.start_soon(ship, images, manifest, [name], node, lambda done, total: None)

    run(both)
    verify_same(images, node, "app:1")
    verify_same(images, node, "base:1")


def test_a_shipment_that_is_cancelled_stops_and_leaves_nothing_half_done(
    images: Images, node: Node
) -> None:
    async def cancelled() -> None:
        with trio.CancelScope() as scope:

            def report(done: int, total: int) -> None:
                if done:
                    scope.cancel()

            await ship(images, images.get("app:1").manifest_digest, ["app:1"], node, report)
        assert scope.cancelled_caught

    run(cancelled)
    assert node.images.list() == () and leftovers(node.root) == []
    shipped(images, node, "app:1")
    verify_same(images, node, "app:1")


def test_a_blob_that_is_damaged_here_is_refused_there(
    images: Images, node: Node, tmp_path: Path
) -> None:
    manifest = images.get("app:1").manifest_digest
    layer = max(images.shipment(manifest), key=lambda d: images.shipment(manifest)[d])
    path = tmp_path / "from/blobs/sha256" / layer[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Invalid, match=f"cannot store blob {layer}: it arrived as sha256:"):
        shipped(images, node, "app:1")
    assert node.images.list() == ()
    load(images, docker_archive(LAYERS, ["app:1"]))  # loading again repairs it
    shipped(images, node, "app:1")
    verify_same(images, node, "app:1")


def test_an_image_that_lacks_a_blob_is_no_image(images: Images, node: Node) -> None:
    manifest = images.get("app:1").manifest_digest

    async def without_layers() -> None:
        async with images.open_blob(manifest) as chunks:
            await node.put_blob(manifest, chunks)
        await node.put_image(manifest, ["app:1"])

    with pytest.raises(Invalid, match=f"cannot make image {manifest}: .*lacks blobs: sha256:"):
        run(without_layers)
    assert node.images.list() == ()
