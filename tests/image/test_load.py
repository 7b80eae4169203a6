"""Archives of every kind become images; hostile or damaged ones leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from image.box import (
    OCI,
    Blobs,
    as_json,
    configuration,
    digest,
    docker_archive,
    file,
    folder,
    hardlink,
    leftovers,
    load,
    machine,
    member,
    symlink,
    tar,
    tree,
)
from orchestra.image.images import Images
from orchestra.image.layer import Limits
from orchestra.model.errors import Invalid

BASE = tar(folder("etc"), file("etc/passwd", b"root"), file("bin", b"program", mode=0o755))
UPPER = tar(folder("etc"), file("etc/motd", b"hello"), file(".wh.bin", b""))
PACKERS = {"none": bytes, "gzip": gzip.compress, "zstd": zstd.compress, "xz": lzma.compress}
PACKERS["bzip2"] = bz2.compress


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(str(tmp_path / "store"))


@pytest.fixture
def untouched(images: Images, tmp_path: Path) -> Iterator[None]:
    """The store and its surroundings are after the test what they were before it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    before = tree(tmp_path)
    yield
    assert tree(tmp_path) == before
    assert images.list() == ()


def refuses(images: Images, data: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        load(images, data)


# what is taken


@pytest.mark.parametrize("kind", PACKERS)
def test_a_docker_archive_is_loaded_compressed_or_not(images: Images, kind: str) -> None:
    assert load(images, PACKERS[kind](docker_archive([BASE, UPPER]))) == ["demo:1"]
    [image] = images.list()
    assert image.names == ("demo:1",)
    assert image.id == digest(configuration([BASE, UPPER]))
    assert (image.config.cmd, image.config.env) == (("sh",), ("PATH=/bin",))
    assert image.created == pytest.approx(1_600_000_000.123456789)
    assert image.size == len(BASE) + len(UPPER)
    upper, base = images.lowers(image.id)
    assert Path(base, "etc/passwd").read_bytes() == b"root"
    assert sorted(tree(upper)) == ["bin", "etc", "etc/motd"]


@pytest.mark.parametrize("kind", ["none", "gzip", "zstd"])
def test_an_oci_archive_keeps_its_digests(images: Images, kind: str) -> None:
    blobs = Blobs.empty()
    suffix = "" if kind == "none" else f"+{kind}"
    target = blobs.image([BASE, UPPER], PACKERS[kind], suffix)
    assert load(images, blobs.archive(target)) == ["demo:1"]
    image = images.get("demo:1")
    assert image.manifest_digest == target["digest"]
    assert set(images.shipment(image.manifest_digest)) == set(blobs.content)
    assert image.digests == (f"demo@{target['digest']}",)


def test_the_names_of_containerd_and_of_layouts_are_understood(images: Images) -> None:
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    one = {**target, "annotations": {"io.containerd.image.name": "docker.io/me/one:2"}}
    two = {**target, "annotations": {"org.opencontainers.image.ref.name": "two:3"}}
    tag = {**target, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    assert load(images, blobs.archive(one, two, tag, name="")) == ["me/one:2", "two:3"]


def test_an_image_without_a_name_is_told_by_its_id(images: Images) -> None:
    assert load(images, docker_archive([BASE], names=())) == [digest(configuration([BASE]))]
    assert images.list()[0].names == ()


def test_an_archive_of_several_images_brings_all_with_all_their_names(images: Images) -> None:
    other = configuration([UPPER])
    manifest = [
        {"Config": "a.json", "RepoTags": ["a:1", "me/a:latest"], "Layers": ["l1"]},
        {"Config": "b.json", "RepoTags": ["b:1"], "Layers": ["l2"]},
    ]
    data = tar(
        file("a.json", configuration([BASE])), file("b.json", other),
        file("l1", BASE), file("l2", UPPER), file("manifest.json", as_json(manifest)),
    )  # fmt: skip
    assert load(images, data) == ["a:1", "me/a:latest", "b:1"]
    assert len(images.list()) == 2


def test_a_layer_that_is_a_link_to_an_equal_one_is_found(images: Images) -> None:
    raw = configuration([BASE, BASE])
    manifest = [{"Config": "c", "RepoTags": ["x"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    data = tar(
        symlink("a/layer.tar", "../b/layer.tar"), file("b/layer.tar", BASE), file("c", raw),
        hardlink("manifest.json", "m"), file("m", as_json(manifest)),
    )  # fmt: skip
    assert load(images, data) == ["x:latest"]


def test_layers_of_a_docker_archive_may_be_compressed(images: Images) -> None:
    raw = configuration([BASE])
    manifest = [{"Config": "c", "RepoTags": ["x"], "Layers": ["l"]}]
    data = tar(
        file("c", raw), file("l", gzip.compress(BASE)), file("manifest.json", as_json(manifest))
    )
    assert load(images, data) == ["x:latest"]


def test_an_index_brings_the_platforms_that_the_archive_has(images: Images) -> None:
    blobs = Blobs.empty()
    ours = {**blobs.image([BASE]), "platform": {"os": "linux", "architecture": machine()}}
    whole = {
        **blobs.image([UPPER], Env=["A=1"]),
        "platform": {"os": "linux", "architecture": "s390x"},
    }
    absent = {
        "mediaType": f"{OCI}.manifest.v1+json", "digest": digest(b"no"), "size": 2,
        "platform": {"os": "linux", "architecture": "riscv64"},
    }  # fmt: skip
    index = blobs.index(blobs.index(whole), absent, ours)
    index["platform"] = {"os": "linux", "architecture": machine()}
    assert load(images, blobs.archive(blobs.index(index))) == ["demo:1"]
    [image] = images.list()
    assert image.manifest_digest == ours["digest"]
    assert images.missing_blobs(list(blobs.content)) == []


def test_loading_again_changes_nothing(images: Images, tmp_path: Path) -> None:
    data = docker_archive([BASE, UPPER])
    load(images, data)
    before = tree(tmp_path)
    assert load(images, data) == ["demo:1"]
    assert tree(tmp_path) == before


def test_a_name_moves_to_the_image_that_comes_later(images: Images) -> None:
    load(images, docker_archive([BASE]))
    load(images, docker_archive([UPPER]))
    first, second = digest(configuration([BASE])), digest(configuration([UPPER]))
    assert images.get("demo:1").id == second
    assert images.get(first).names == ()


def test_layers_that_images_share_are_kept_once(images: Images, tmp_path: Path) -> None:
    load(images, docker_archive([BASE], names=["a"]))
    load(images, docker_archive([BASE, UPPER], names=["b"]))
    assert len(list((tmp_path / "store" / "layers").iterdir())) == 2
    assert images.lowers(images.get("a").id) == images.lowers(images.get("b").id)[1:]


def test_names_of_members_mean_nothing_but_themselves(images: Images, tmp_path: Path) -> None:
    raw = configuration([BASE])
    manifest = [{"Config": "../../c", "RepoTags": ["x"], "Layers": ["/etc/layer"]}]
    data = tar(
        file("../../c", raw), file("/etc/layer", BASE), file("/manifest.json", as_json(manifest)),
        symlink("outside", str(tmp_path)), file("outside/x"),
        member("disk", tarfile.BLKTYPE, devmajor=8), hardlink("h", "../../../etc/passwd"),
    )  # fmt: skip
    assert load(images, data) == ["x:latest"]
    assert not (tmp_path / "x").exists() and leftovers(tmp_path / "store") == []


def test_of_two_members_with_one_name_the_later_counts(images: Images) -> None:
    first = tar(file("manifest.json", b"[]"), file("junk"))
    data = first[:-1024].rstrip(b"\0")
    data += bytes(-len(data) % 512) + docker_archive([BASE])
    assert load(images, data) == ["demo:1"]


# what is refused


def oci(**manifest: Any) -> bytes:
    """An OCI archive whose manifest has some keys changed."""
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    document = {**json.loads(blobs.content[target["digest"]]), **manifest}
    return blobs.archive(blobs.add(as_json(document), f"{OCI}.manifest.v1+json"))


def oci_index(**changes: Any) -> bytes:
    blobs = Blobs.empty()
    return blobs.archive({**blobs.image([BASE]), **changes})


def without(part: str) -> bytes:
    """An OCI archive that lacks the config or the layer of its image."""
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    document = json.loads(blobs.content[target["digest"]])
    gone = document["config"] if part == "config" else document["layers"][0]
    del blobs.content[gone["digest"]]
    return blobs.archive(target)


def docker(**changes: Any) -> bytes:
    item = {"Config": "c", "RepoTags": ["demo:1"], "Layers": ["l"], **changes}
    return tar(
        file("c", configuration([BASE])), file("l", BASE), file("manifest.json", as_json([item]))
    )


def nested(depth: int) -> bytes:
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    for _ in range(depth):
        target = blobs.index(target)
    return blobs.archive(target)


def foreign() -> bytes:
    blobs = Blobs.empty()
    image = blobs.image([BASE])
    platforms = ({"os": "linux", "architecture": f"a{n // 2}"} for n in range(60))
    return blobs.archive(blobs.index(*({**image, "platform": p} for p in platforms)))


REFUSED = {
    "nothing": (b"", "neither index.json nor manifest.json"),
    "text": (b"hello" * 300, "is no tar archive"),
    "a root file system": (BASE, "is taken by `image import`"),
    "an empty list": (tar(file("manifest.json", b"[]")), "holds no image"),
    "no JSON": (tar(file("manifest.json", b"{")), "is not JSON"),
    "JSON without end": (tar(file("manifest.json", b"[" * 100_000)), "is not JSON"),
    "a list of numbers": (tar(file("manifest.json", b"[1]")), "not a list of objects"),
    "no configuration": (docker(Config=None), "Config is not a string"),
    "a configuration that is absent": (docker(Config="x"), "lacks 'x'"),
    "layers that are no list": (docker(Layers="l"), "Layers is not a list of strings"),
    "a layer that is absent": (docker(Layers=["../l"]), r"lacks '\.\./l'"),
    "too many layers": (docker(Layers=["l", "l"]), "names 1 layers"),
    "a bad name": (docker(RepoTags=["UP:1"]), "must be lower-case"),
    "a layer that is another": (docker(Layers=["c"]), "layer sha256:.*ends early"),
    "an index without our platform": (
        foreign(),
        r"has no image for linux/\w+; it offers linux/a0, .*linux/a11, \.\.\.$",
    ),
    "links in a circle": (
        tar(symlink("manifest.json", "a"), symlink("a", "manifest.json")),
        "go in circles",
    ),
    "a manifest and index in one": (oci(manifests=[]), "both a manifest and an index"),
    "an index that has layers": (oci(mediaType=f"{OCI}.index.v1+json"), "calls itself"),
    "a digest that is a path": (oci_index(digest="sha256:../../x"), "invalid digest"),
    "a digest of nothing here": (oci_index(digest=digest(b"?")), "lacks blob"),
    "a wrong size": (oci_index(size=5), "is not of the 5 bytes"),
    "a negative size": (oci_index(size=-5), "is not a number of bytes"),
    "too many layers of overlayfs": (oci(layers=[{}] * 501), "overlayfs takes 500"),
    "a configuration absent": (without("config"), "lacks blob"),
    "a layer absent": (without("layer"), "lacks blob"),
    "indexes in indexes": (nested(9), "nest deeper than"),
    "a cut archive": (docker_archive([BASE])[:9000], "ends early"),
    "a cut stream": (gzip.compress(docker_archive([BASE]))[:-20], "ends early"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("untouched")
def test_what_is_no_image_is_refused_and_leaves_nothing(images: Images, case: str) -> None:
    data, message = REFUSED[case]
    refuses(images, data, message)


@pytest.mark.usefixtures("untouched")
def test_a_layer_with_another_digest_than_its_image_says_is_refused(images: Images) -> None:
    raw = configuration([UPPER])
    item = {"Config": "c", "RepoTags": ["demo:1"], "Layers": ["l"]}
    data = tar(file("c", raw), file("l", BASE), file("manifest.json", as_json([item])))
    refuses(
        images, data, f"cannot load image demo:1: layer .* unpacks to {digest(BASE)}, its image"
    )


@pytest.mark.usefixtures("untouched")
def test_a_blob_with_another_digest_than_its_name_is_refused(images: Images) -> None:
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    layer = json.loads(blobs.content[target["digest"]])["layers"][0]["digest"]
    blobs.content[layer] = UPPER
    refuses(images, blobs.archive(target), f"lacks blob {layer}")


HOSTILE = {
    "up": tar(file("../../../../outside/secret", b"evil")),
    "through a link": tar(symlink("l", "../../../../outside"), file("l/secret", b"evil")),
    "a hard link out": tar(hardlink("h", "../../../../outside/secret")),
    "a whiteout through a link": tar(
        symlink("l", "../../../../outside"), file("l/.wh.secret", b"")
    ),
    "the root as a link": tar(symlink("./", "../../../outside")),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.usefixtures("untouched")
def test_a_layer_that_tries_to_get_out_names_the_image_and_leaves_nothing(
    images: Images, case: str
) -> None:
    refuses(images, docker_archive([BASE, HOSTILE[case]]), "cannot load image demo:1: layer sha")


@pytest.mark.usefixtures("untouched")
def test_more_members_than_any_image_has_are_refused(images: Images) -> None:
    refuses(images, tar(folder("d"))[:512] * 20_002, "more than 20000 members")


def test_indexes_that_repeat_themselves_cost_no_more_than_once(images: Images) -> None:
    """Each level names the one below a thousand times: a million million manifests in all."""
    blobs = Blobs.empty()
    target = blobs.image([BASE])
    for _ in range(4):
        other = {**blobs.image([BASE], User="other"), "platform": {"os": "linux"}}
        target["platform"] = {"os": "linux", "architecture": machine()}
        target = blobs.index(*[target] * 1000, other)
    assert load(images, blobs.archive(target)) == ["demo:1"]
    assert len(images.shipment(target["digest"])) == len(blobs.content)


def small_store(tmp_path: Path) -> Images:
    limits = Limits(entries=10, bytes=1 << 20, ratio=20, ratio_from=100_000)
    return Images(str(tmp_path / "small"), limits=limits)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(docker_archive([tar(file("f", bytes(900_000)))])), "decompression bomb"),
        (docker_archive([tar(*[file(f"f{n}") for n in range(11)])]), "more than 10 entries"),
        (docker_archive([tar(file("f", bytes(2 << 20)))]), "holds more than 1048576 bytes"),
    ],
)
def test_bombs_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    images = small_store(tmp_path)
    refuses(images, data, message)
    assert images.list() == () and leftovers(tmp_path / "small") == []
    assert not list((tmp_path / "small" / "blobs" / "sha256").iterdir())


def test_a_compressed_layer_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    blobs = Blobs.empty()
    target = blobs.image([tar(file("f", bytes(900_000)))], gzip.compress, "+gzip")
    refuses(small_store(tmp_path), blobs.archive(target), "image demo:1: layer .* bomb")
