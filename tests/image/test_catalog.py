"""Looking images up, naming and removing them: docker's rules and docker's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.box import configuration, digest, docker_archive, file, leftovers, load, run, tar
from orchestra.image.images import Images
from orchestra.model.errors import Conflict, Invalid, NotFound

A, B = tar(file("a", b"a")), tar(file("b", b"b"))
ID_A, ID_B = digest(configuration([A])), digest(configuration([A, B]))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """`a` has two names in two repositories; `b`, on top of it, has one."""
    images = Images(str(tmp_path / "store"))
    load(images, docker_archive([A], ["a:1", "other/a:2"]))
    load(images, docker_archive([A, B], ["b"]))
    return images


def names(images: Images) -> dict[str, tuple[str, ...]]:
    return {image.id: image.names for image in images.list()}


def remove(
    images: Images, ref: str, force: bool = False, used: str = "", by: str = "container web"
) -> list[tuple[str, str]]:
    done = run(images.remove, ref, force, {used: by} if used else {})
    return [(verb, what) for verb, what in done]


@pytest.mark.parametrize(
    "ref",
    [
        "a:1",
        "docker.io/library/a:1",
        "index.docker.io/a:1",
        "other/a:2",
        ID_A,
        ID_A[7:],
        ID_A[7:12],
    ],
)
def test_an_image_is_found_by_any_name_and_by_its_id(images: Images, ref: str) -> None:
    assert images.get(ref).id == ID_A


def test_an_image_is_found_by_the_digest_of_its_manifest(images: Images) -> None:
    manifest = images.get("b").manifest_digest
    assert images.get(f"b@{manifest}").id == images.get(manifest).id == ID_B
    with pytest.raises(NotFound, match=f"No such image: other@{manifest}"):
        images.get(f"other@{manifest}")


def test_a_name_beats_the_beginning_of_an_id(images: Images) -> None:
    run(images.tag, "b", ID_A[7:13])
    assert images.get(ID_A[7:13]).id == ID_B


@pytest.mark.parametrize(
    ("ref", "shown"), [("a", "a:latest"), ("a:3", "a:3"), ("no", "no:latest"), ("f" * 64, "f" * 64)]
)
def test_what_is_absent_is_named_as_docker_names_it(images: Images, ref: str, shown: str) -> None:
    with pytest.raises(NotFound) as caught:
        images.get(ref)
    assert str(caught.value) == f"No such image: {shown}"


def test_a_beginning_of_several_ids_is_refused(images: Images) -> None:
    for number in range(17):  # ids begin with one of 16 digits
        layer = tar(file(f"{number}"))
        load(images, docker_archive([layer], [f"x{number}"]))
    beginnings = [image.id[7:8] for image in images.list()]
    twice = next(b for b in beginnings if beginnings.count(b) > 1)
    with pytest.raises(Invalid, match=f"'{twice}' is ambiguous: {beginnings.count(twice)} images"):
        images.get(twice)


def test_the_newest_image_comes_first(images: Images) -> None:
    raw = configuration([B]).replace(b"2020", b"2021")
    manifest = b'[{"Config": "c", "RepoTags": ["new"], "Layers": ["l"]}]'
    load(images, tar(file("c", raw), file("l", B), file("manifest.json", manifest)))
    assert images.list()[0].names == ("new:latest",)


# tag


def test_a_tag_is_one_more_name(images: Images) -> None:
    run(images.tag, "a:1", "mine/a")
    assert set(images.get(ID_A).names) == {"a:1", "other/a:2", "mine/a:latest"}


def test_a_tag_leaves_the_image_that_had_it(images: Images) -> None:
    run(images.tag, ID_A[:20], "b:latest")
    assert images.get("b").id == ID_A
    assert names(images)[ID_B] == ()  # untagged, not gone


def test_a_digest_is_no_name_to_give(images: Images) -> None:
    with pytest.raises(Invalid, match="a digest is what it is, not a name to give"):
        run(images.tag, "a:1", f"a@{ID_A}")


def test_names_survive_the_process(images: Images, tmp_path: Path) -> None:
    run(images.tag, "a:1", "mine/a")
    run(images.tag, ID_A, "b:latest")
    assert names(Images(str(tmp_path / "store"))) == names(images)


# rm


def test_removing_one_of_several_names_only_untags(images: Images) -> None:
    assert remove(images, "a:1") == [("Untagged", "a:1")]
    assert names(images)[ID_A] == ("other/a:2",)


def test_removing_the_last_name_deletes_what_nothing_else_needs(
    images: Images, tmp_path: Path
) -> None:
    assert remove(images, "b") == [
        ("Untagged", "b:latest"),
        ("Deleted", ID_B),
        ("Deleted", digest(f"{digest(A)} {digest(B)}".encode())),
    ]
    assert list(names(images)) == [ID_A]
    assert len(list((tmp_path / "store/layers").iterdir())) == 1
    assert len(list((tmp_path / "store/blobs/sha256").iterdir())) == 3
    assert leftovers(tmp_path / "store") == []


def test_removing_a_layers_last_user_empties_the_store(images: Images, tmp_path: Path) -> None:
    remove(images, "a:1")
    remove(images, "other/a:2")
    remove(images, ID_B)
    assert images.list() == ()
    for part in ("layers", "blobs/sha256", "tmp"):
        assert not list((tmp_path / "store" / part).iterdir())


def test_an_id_of_an_image_in_several_repositories_needs_force(images: Images) -> None:
    with pytest.raises(Conflict) as caught:
        remove(images, ID_A)
    assert str(caught.value) == (
        f"conflict: unable to delete {ID_A[7:19]} (must be forced) - image is referenced in "
        "multiple repositories"
    )
    assert remove(images, ID_A, force=True)[:2] == [("Untagged", "a:1"), ("Untagged", "other/a:2")]


def test_an_image_in_use_keeps_its_last_name(images: Images) -> None:
    with pytest.raises(Conflict) as caught:
        remove(images, "b", used=ID_B)
    assert str(caught.value) == (
        'conflict: unable to remove repository reference "b" (must force) - container web is '
        f"using its referenced image {ID_B[7:19]}"
    )
    assert names(images)[ID_B] == ("b:latest",)


def test_force_takes_the_name_of_an_image_in_use_and_leaves_its_data(images: Images) -> None:
    assert remove(images, "b", force=True, used=ID_B) == [("Untagged", "b:latest")]
    assert names(images)[ID_B] == ()
    assert all(Path(lower).is_dir() for lower in images.lowers(ID_B))


def test_an_image_in_use_cannot_be_removed_by_its_id(images: Images) -> None:
    for force in (False, True):
        with pytest.raises(Conflict) as caught:
            remove(images, ID_B, force=force, used=ID_B)
        assert str(caught.value) == (
            f"conflict: unable to delete {ID_B[7:19]} (cannot be forced) - image is being used by "
            "container web"
        )


def test_one_name_of_several_may_go_though_the_image_is_in_use(images: Images) -> None:
    assert remove(images, "a:1", used=ID_A) == [("Untagged", "a:1")]
