"""A full disk: the error names the image, the place and the remedy; nothing half-done remains."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.box import docker_archive, file, leftovers, load, run, stream, tar, tree
from orchestra.image.images import Images
from orchestra.model.errors import Failed

MB = 1 << 20
REMEDY = r"remove unused images \(`image rm`\) or enlarge the file system"


def noise(size: int) -> bytes:
    return os.urandom(size)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB and 2,000 files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=16m,nr_inodes=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def images(disk: Path) -> Images:
    images = Images(str(disk / "images"))
    load(images, docker_archive([tar(file("small"))], ["small"]))
    return images


def refused(images: Images, disk: Path, data: bytes, message: str) -> None:
    before = tree(disk)
    with pytest.raises(Failed, match=message):
        load(images, data)
    assert tree(disk) == before and leftovers(disk / "images") == []
    assert [image.names for image in images.list()] == [("small:latest",)]


def test_an_archive_that_does_not_fit_is_refused_before_it_is_written(
    images: Images, disk: Path
) -> None:
    data = docker_archive([tar(file("big", noise(20 * MB)))], ["big"])
    message = rf"cannot load images: no space left on {disk}/images: \d+ bytes needed, \d+ free; "
    refused(images, disk, data, message + REMEDY)


def test_an_image_that_does_not_fit_unpacked_is_named(images: Images, disk: Path) -> None:
    data = docker_archive([tar(file("big", noise(9 * MB)))], ["big:1", "large"])
    place = f"{disk}/images"
    message = rf"cannot load image big:1, large:latest: no space left on {place}: \d+ bytes needed"
    refused(images, disk, data, message + r", \d+ free; " + REMEDY)


def test_of_several_images_none_comes_where_one_does_not_fit(images: Images, disk: Path) -> None:
    layers = [tar(file("a", noise(4 * MB)))], [tar(file("b", noise(7 * MB)))]
    run(images.remove, "small")
    before = tree(disk)
    both = [docker_archive(layer, [f"x{n}"]) for n, layer in enumerate(layers)]
    load(images, both[0])
    with pytest.raises(Failed, match="cannot load image x1:latest: no space left"):
        load(images, both[1])
    run(images.remove, "x0")
    assert tree(disk) == before


def test_too_many_files_are_a_full_disk_too(images: Images, disk: Path) -> None:
    data = docker_archive([tar(*[file(f"f{n}", b"") for n in range(2500)])], ["many"])
    refused(images, disk, data, "cannot load image many:latest: no space left on")


def test_an_import_that_does_not_fit_names_the_image(images: Images, disk: Path) -> None:
    before = tree(disk)
    with pytest.raises(Failed, match="cannot import image root:1: no space left on .*; " + REMEDY):
        run(images.import_rootfs, stream(tar(file("big", noise(20 * MB)))), "root:1", ())
    assert tree(disk) == before


def test_a_blob_that_does_not_fit_is_named(images: Images, disk: Path) -> None:
    from image.box import digest

    data = noise(20 * MB)
    before = tree(disk)
    with pytest.raises(Failed, match=f"cannot store blob {digest(data)}: no space left on"):
        run(images.put_blob, digest(data), stream(data))
    assert tree(disk) == before


def test_there_is_no_size_at_which_something_half_done_remains(images: Images, disk: Path) -> None:
    """The disk fills up to each point of a load in turn."""
    data = docker_archive([tar(file("a", noise(MB)), file("b", noise(MB)))], ["image"])
    ballast = disk / "ballast"
    ended = []
    for free in range(0, 6 * MB, MB // 3):
        status = os.statvfs(disk)
        with open(ballast, "wb") as out:
            os.posix_fallocate(out.fileno(), 0, status.f_bavail * status.f_frsize - free or 1)
        before = tree(disk / "images")
        try:
            load(images, data)
        except Failed as error:
            assert "no space left on" in str(error) and tree(disk / "images") == before
            ended.append("full")
        else:
            run(images.remove, "image")
            ended.append("loaded")
        assert leftovers(disk / "images") == []
        ballast.unlink()
    assert ended[0] == "full" and ended[-1] == "loaded" and ended == sorted(ended)
