"""What is saved can be loaded, by us and by others, and keeps every digest."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from image.box import (
    Blobs,
    digest,
    docker_archive,
    file,
    folder,
    gathered,
    hardlink,
    load,
    machine,
    run,
    stream,
    symlink,
    tar,
    tree,
)
from orchestra.image.images import Images
from orchestra.image.pack import pack
from orchestra.model.errors import NotFound

A = tar(folder("etc"), file("etc/a", b"a"), file("su", b"x", mode=0o4755, uid=5), symlink("l", "a"))
B = tar(folder("etc"), file("etc/b", b"b"), hardlink("etc/c", "etc/b"), file("etc/.wh.a", b""))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    images = Images(str(tmp_path / "store"))
    load(images, docker_archive([A, B], ["app:1", "app:2", "me/app:1"]))
    load(images, docker_archive([A], ["base:1"]))
    return images


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for info in archive:
            content = archive.extractfile(info)
            assert content is not None and info.isfile()
            found[info.name] = content.read()
        return found


def test_saved_images_load_as_they_were(images: Images, tmp_path: Path) -> None:
    data = gathered(images.save(["app", "base:1"]))
    other = Images(str(tmp_path / "other"))
    assert set(load(other, data)) == {"app:1", "app:2", "base:1"}
    for name in ("app:1", "base:1"):
        assert other.get(name).id == images.get(name).id
        assert other.get(name).manifest_digest == images.get(name).manifest_digest
    assert tree(other.lowers(other.get("app:1").id)[0]) == tree(
        images.lowers(images.get("app:1").id)[0]
    )
    assert gathered(other.save(["app", "base:1"])) == data


def test_one_archive_is_both_a_layout_and_a_docker_archive(images: Images) -> None:
    found = members(gathered(images.save(["app:1", "me/app"])))
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(found["index.json"])["manifests"]
    assert [m["annotations"]["io.containerd.image.name"] for m in index] == [
        "docker.io/library/app:1",
        "docker.io/me/app:1",
    ]
    [item] = json.loads(found["manifest.json"])
    assert item["RepoTags"] == ["app:1", "me/app:1"]
    for path in (item["Config"], *item["Layers"]):
        assert digest(found[path]) == f"sha256:{path.rpartition('/')[2]}"


def test_a_repository_means_all_its_tags_and_an_id_none(images: Images) -> None:
    def tags(ref: str) -> list[str]:
        [item] = json.loads(members(gathered(images.save([ref])))["manifest.json"])
        return list(item["RepoTags"])

    assert tags("app") == ["app:1", "app:2"]
    assert tags("app:2") == ["app:2"]
    assert tags(images.get("app:1").id) == []


def test_blobs_that_images_share_are_written_once(images: Images) -> None:
    with tarfile.open(fileobj=io.BytesIO(gathered(images.save(["app:1", "base:1"])))) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))


def test_the_same_images_give_the_same_bytes(images: Images) -> None:
    assert gathered(images.save(["app"])) == gathered(images.save(["app"]))


def test_an_absent_image_is_an_error_before_the_first_byte(images: Images) -> None:
    with pytest.raises(NotFound, match="No such image: no:latest"):
        images.save(["app:1", "no"])


def test_compressed_layers_and_indexes_are_saved_as_they_came(tmp_path: Path) -> None:
    blobs = Blobs.empty()
    target = {
        **blobs.image([A], gzip.compress, "+gzip"),
        "platform": {"os": "linux", "architecture": machine()},
    }
    index = blobs.index(target)
    images = Images(str(tmp_path / "store"))
    load(images, blobs.archive(index))
    found = members(gathered(images.save(["demo:1"])))
    for name, content in blobs.content.items():
        assert found[f"blobs/{name.replace(':', '/')}"] == content
    assert json.loads(found["index.json"])["manifests"][0]["digest"] == index["digest"]


def test_a_layer_that_is_packed_again_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "f").write_bytes(b"x" * 5000)
    (source / "etc" / "long").symlink_to("t" * 200)
    (source / "h").hardlink_to(source / "etc" / "f")
    first = b"".join(pack(str(source), root=True))
    images = Images(str(tmp_path / "store"))
    identity = run(images.import_rootfs, stream(first), "x", ())
    assert b"".join(pack(images.lowers(identity)[0], root=True)) == first


# what others make of it


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: `make test` does that (apt-get install {name})")
    return path


def others(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def archive(images: Images, tmp_path: Path) -> Path:
    path = tmp_path / "saved.tar"
    path.write_bytes(gathered(images.save(["app:1"])))
    return path


def test_skopeo_reads_it_as_docker_archive_and_as_oci_archive(
    images: Images, archive: Path, tmp_path: Path
) -> None:
    skopeo = tool("skopeo")
    for form in ("docker-archive", "oci-archive"):
        raw = others(skopeo, "inspect", "--config", "--raw", f"{form}:{archive}")
        assert digest(raw.encode()) == images.get("app:1").id, form
    layout = tmp_path / "layout"
    others(skopeo, "copy", "-q", f"docker-archive:{archive}", f"oci:{layout}:x")
    raw = others(skopeo, "inspect", "--raw", f"oci-archive:{archive}")
    assert digest(raw.encode()) == images.get("app:1").manifest_digest


def test_what_skopeo_writes_is_loaded(images: Images, archive: Path, tmp_path: Path) -> None:
    skopeo = tool("skopeo")
    for form in ("docker-archive", "oci-archive"):
        target = tmp_path / f"{form}.tar"
        others(skopeo, "copy", "-q", f"docker-archive:{archive}", f"{form}:{target}:app:9")
        other = Images(str(tmp_path / form))
        assert load(other, target.read_bytes()) == ["app:9"], form
        ours, theirs = images.get("app:1"), other.get("app:9")
        assert theirs.layers == ours.layers and theirs.config == ours.config
        for mine, copy in zip(images.lowers(ours.id), other.lowers(theirs.id)):
            assert tree(mine) == tree(copy)


def test_umoci_unpacks_the_same_files(images: Images, archive: Path, tmp_path: Path) -> None:
    skopeo, umoci = tool("skopeo"), tool("umoci")
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    others(skopeo, "copy", "-q", f"docker-archive:{archive}", f"oci:{layout}:x")
    others(umoci, "unpack", "--image", f"{layout}:x", str(bundle))
    upper, lower = images.lowers(images.get("app:1").id)
    merged = {**tree(lower), **tree(upper)}
    del merged["etc/a"]  # the whiteout
    assert tree(bundle / "rootfs") == merged
