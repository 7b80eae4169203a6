"""Many at once on one store: what each sees is whole, and what remains is what names reach."""

from __future__ import annotations

import random
from pathlib import Path

import trio

from image.box import docker_archive, file, leftovers, run, stream, tar, tree
from image.test_crash import verify_whole
from orchestra.image.images import Images
from orchestra.model.errors import NotFound

LAYERS = [tar(*[file(f"{n}-{m}", bytes([n]) * 20_000) for m in range(20)]) for n in range(5)]
ARCHIVES = {f"image{n}:1": docker_archive(LAYERS[: n + 1], [f"image{n}:1"]) for n in range(5)}


def test_loading_naming_saving_and_removing_at_once(tmp_path: Path) -> None:
    images = Images(str(tmp_path))

    async def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(12):
            name, archive = choice.choice(list(ARCHIVES.items()))
            try:
                match choice.randrange(5):
                    case 0 | 1:
                        await images.load(stream(archive))
                    case 2:
                        await images.tag(name, f"other{seed}:{choice.randrange(2)}")
                    case 3:
                        await images.remove(name, force=True)
                    case 4:
                        async for _ in images.save([name]):
                            pass
            except NotFound:
                pass  # somebody was quicker
            for image in images.list():
                assert image.layers

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(work, seed)

    run(all_of_them)
    assert leftovers(tmp_path) == []
    verify_whole(tmp_path)
    again = Images(str(tmp_path))
    assert {i.id: i.names for i in again.list()} == {i.id: i.names for i in images.list()}
    for image in list(images.list()):
        assert all(Path(lower).is_dir() for lower in images.lowers(image.id))
        run(images.remove, image.id, True)
    assert not list((tmp_path / "layers").iterdir())
    assert not list((tmp_path / "blobs/sha256").iterdir())


def test_the_same_image_loaded_many_times_at_once_is_there_once(tmp_path: Path) -> None:
    images = Images(str(tmp_path / "many"))

    async def loads() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(images.load, stream(ARCHIVES["image4:1"]))

    run(loads)
    alone = Images(str(tmp_path / "one"))
    run(alone.load, stream(ARCHIVES["image4:1"]))
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
