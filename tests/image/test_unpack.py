"""Layers become directories for overlayfs, and nothing outside of them is ever touched."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.box import TIME, Member, file, folder, hardlink, member, symlink, tar, tree
from orchestra.image.layer import OPAQUE_XATTR, Limits
from orchestra.image.unpack import unpack
from orchestra.model.errors import Invalid

DEFAULT = Limits()


class Place:
    """A directory to unpack into, and neighbours that must stay as they are."""

    def __init__(self, root: Path) -> None:
        self.outside = root / "outside"
        self.layer = root / "store" / "layer"
        self.layer.mkdir(parents=True)
        self.outside.mkdir()
        (self.outside / "secret").write_text("untouched")
        (root / "store" / "neighbour").write_text("untouched")
        self.root = root
        self.before = self.everything_else()

    def everything_else(self) -> dict[str, tuple[object, ...]]:
        found = tree(self.root).items()
        return {k: v for k, v in found if k.partition("/")[2].partition("/")[0] != "layer"}

    def unpack(self, *members: Member, lowers: tuple[str, ...] = (), **limits: int) -> None:
        self.unpack_bytes(tar(*members), lowers, Limits(**limits))

    def unpack_bytes(
        self, data: bytes, lowers: tuple[str, ...] = (), limits: Limits = DEFAULT
    ) -> None:
        try:
            pieces = iter([data[at : at + 4096] for at in range(0, len(data), 4096)])
            unpack(pieces, str(self.layer), lowers=lowers, limits=limits)
        finally:
            assert self.everything_else() == self.before

    def refuses(self, message: str, *members: Member, **limits: int) -> None:
        with pytest.raises(Invalid, match=message):
            self.unpack(*members, **limits)

    def content(self) -> dict[str, tuple[object, ...]]:
        return tree(self.layer)

    def opaque(self, path: str) -> bool:
        name = self.layer / path
        return OPAQUE_XATTR in os.listxattr(name) and os.getxattr(name, OPAQUE_XATTR) == b"y"

    def is_whiteout(self, path: str) -> bool:
        status = os.lstat(self.layer / path)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)


# what a layer may say


def test_every_kind_of_file_comes_out_as_it_was_packed(place: Place) -> None:
    place.unpack(
        folder("bin", mode=0o711, uid=3, gid=4),
        file("bin/su", b"program", mode=0o4755, uid=0, gid=5),
        symlink("bin/sh", "/etc/passwd"),
        hardlink("bin/su2", "bin/su"),
        member("fifo", tarfile.FIFOTYPE, mode=0o600),
        member("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE, mode=0o660, devmajor=8, devminor=1),
    )
    assert place.content() == {
        "bin": ("0o40000", "0o711", (3, 4), None),
        "bin/su": ("0o100000", "0o4755", (0, 5), b"program"),
        "bin/su2": ("0o100000", "0o4755", (0, 5), b"program"),
        "bin/sh": ("0o120000", "0o777", (0, 0), "/etc/passwd"),
        "fifo": ("0o10000", "0o600", (0, 0), None),
        "null": ("0o20000", "0o666", (0, 0), (1, 3)),
        "disk": ("0o60000", "0o660", (0, 0), (8, 1)),
    }
    assert (place.layer / "bin/su").stat().st_ino == (place.layer / "bin/su2").stat().st_ino
    assert os.lstat(place.layer / "bin").st_mtime == TIME
    assert os.lstat(place.layer / "bin/sh").st_mtime == TIME


def test_extended_attributes_and_capabilities_survive(place: Place) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "kept",
        "SCHILY.xattr.security.selinux": "the host's own",
    }
    place.unpack(file("ping", b"x", mode=0o755, uid=7, pax_headers=headers))
    path = place.layer / "ping"
    assert os.getxattr(path, "security.capability") == capability
    assert os.getxattr(path, "user.note") == b"kept"
    assert "security.selinux" not in os.listxattr(path)
    assert path.stat().st_uid == 7


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_targets_of_both_formats_are_read(place: Place, form: int) -> None:
    name = "/".join(["a" * 90] * 4) + "/file"
    place.unpack_bytes(tar(file(name), symlink("s", "t" * 300), hardlink("h", name), form=form))
    assert (place.layer / name).read_bytes() == b"content"
    assert os.readlink(place.layer / "s") == "t" * 300
    assert os.path.samefile(place.layer / "h", place.layer / name)


def test_sparse_files_of_gnu_tar_keep_their_holes(place: Place, tmp_path: Path) -> None:
    import subprocess

    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as out:
        for at in range(0, 8 << 20, 100_000):  # more extents than one header holds
            out.seek(at)
            out.write(b"x" * 5000)
        out.truncate(10 << 20)
    place.before = place.everything_else()
    for form in ("gnu", "pax"):
        for version in ("0.0", "0.1", "1.0"):
            more = [f"--sparse-version={version}"] if form == "pax" else []
            command = ["tar", "-C", str(source), f"--format={form}", "-S", *more, "-cf", "-", "."]
            archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            assert len(archive) < 2 << 20
            place.unpack_bytes(archive)
            status = (place.layer / "sparse").stat()
            assert status.st_size == 10 << 20 and status.st_blocks * 512 < 2 << 20
            assert (place.layer / "sparse").read_bytes() == (source / "sparse").read_bytes()


def test_a_later_entry_replaces_an_earlier_one(place: Place) -> None:
    place.unpack(
        file("a", b"one"),
        file("a", b"two"),
        folder("d"),
        file("d/inner"),
        file("d", b"now a file"),
        symlink("l", "/etc"),
        folder("l"),
        file("l/inner", b"in the layer"),
    )
    content = place.content()
    assert content["a"][3] == b"two" and content["d"][3] == b"now a file"
    assert content["l"][0] == "0o40000" and content["l/inner"][3] == b"in the layer"


def test_a_directory_given_again_keeps_its_files_and_takes_the_new_attributes(
    place: Place,
) -> None:
    place.unpack(folder("d", mode=0o700), file("d/f"), folder("d", mode=0o755, uid=9))
    assert place.content()["d"][1:3] == ("0o755", (9, 0))
    assert (place.layer / "d/f").exists()


def test_absolute_names_mean_the_layers_root(place: Place) -> None:
    place.unpack(file("/etc/motd", b"hello"), file("./usr/./x"), hardlink("/m", "/etc/motd"))
    assert (place.layer / "etc/motd").read_bytes() == b"hello"
    assert (place.layer / "usr/x").exists() and (place.layer / "m").exists()


def test_the_root_entry_sets_the_roots_attributes(place: Place) -> None:
    place.unpack(folder("./", mode=0o700, uid=5), file("x"))
    status = place.layer.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o700, 5, TIME)


def test_a_directory_that_is_only_implied_takes_the_attributes_of_the_layer_below(
    place: Place, tmp_path: Path
) -> None:
    lower = tmp_path / "lower"
    (lower / "var/lib").mkdir(parents=True)
    os.chmod(lower / "var/lib", 0o1777)
    os.chown(lower / "var/lib", 11, 12)
    place.before = place.everything_else()
    place.unpack(file("var/lib/x/y"), lowers=(str(lower),))
    content = place.content()
    assert content["var/lib"][1:3] == ("0o1777", (11, 12))
    assert content["var/lib/x"][1:3] == ("0o755", (0, 0))


# deletions


def test_whiteouts_become_overlay_deletions(place: Place) -> None:
    place.unpack(folder("etc"), file("etc/.wh.passwd", b""), file(".wh.tmp", b""))
    assert place.is_whiteout("etc/passwd") and place.is_whiteout("tmp")
    assert not any(name.rpartition("/")[2].startswith(".wh.") for name in place.content())


def test_an_opaque_directory_hides_what_is_below_wherever_the_mark_stands(place: Place) -> None:
    place.unpack(folder("d"), file("d/before"), file("d/.wh..wh..opq", b""), file("d/after"))
    assert place.opaque("d")
    assert sorted(os.listdir(place.layer / "d")) == ["after", "before"]


def test_a_whiteout_beside_its_replacement_hides_the_lower_one_only(place: Place) -> None:
    place.unpack(
        file("a/.wh.one", b""), file("a/one", b"new"),
        file("b/two", b"new"), file("b/.wh.two", b""),
        file(".wh.dir", b""), folder("dir"), file("dir/x"),
        folder("late"), file("late/x"), file(".wh.late", b""),
    )  # fmt: skip
    assert (place.layer / "a/one").read_bytes() == b"new"
    assert (place.layer / "b/two").read_bytes() == b"new"
    assert place.opaque("dir") and place.opaque("late")
    assert (place.layer / "dir/x").exists() and (place.layer / "late/x").exists()


def test_files_below_a_whiteout_are_in_a_new_directory(place: Place) -> None:
    place.unpack(file(".wh.d", b""), file("d/x", b"new"))
    assert place.opaque("d") and (place.layer / "d/x").read_bytes() == b"new"


def test_files_of_aufs_are_left_out(place: Place) -> None:
    place.unpack(file(".wh..wh.aufs", b""), folder(".wh..wh.plnk"), file("x"))
    assert list(place.content()) == ["x"]


# what tries to get out

OUT = "../../outside/secret"
HOSTILE = {
    "up": ("leaves the layer", [file("../evil")]),
    "up in the middle": ("leaves the layer", [folder("a"), file("a/../../evil")]),
    "up and absolute": ("leaves the layer", [file("/../../evil")]),
    "only up": ("leaves the layer", [folder("..", mode=0o777)]),
    "a link out, then a file through it": (
        "goes through something that is no directory",
        [symlink("l", "../../outside"), file("l/evil")],
    ),
    "an absolute link, then a file through it": (
        "goes through something that is no directory",
        [symlink("l", "/tmp"), file("l/evil")],
    ),
    "a link through a link": (
        "goes through something that is no directory",
        [symlink("a", "."), symlink("a/b", ".."), file("a/b/evil")],
    ),
    "a link to itself": (
        "goes through something that is no directory",
        [symlink("l", "l"), file("l/evil")],
    ),
    "a file through a link in a directory": (
        "goes through something that is no directory",
        [folder("d"), symlink("d/l", "../../../outside"), file("d/l/evil")],
    ),
    "a hard link out": ("leaves the layer", [hardlink("h", OUT)]),
    "a hard link through a link": (
        "goes through something that is no directory",
        [symlink("l", "../../outside"), hardlink("h", "l/secret")],
    ),
    "a hard link to a directory": ("cannot be linked to", [folder("d"), hardlink("h", "d")]),
    "a hard link to the root": ("link to the root", [hardlink("h", "/")]),
    "a hard link to nothing": ("which is not in this layer", [hardlink("h", "no")]),
    "a whiteout through a link": (
        "goes through something that is no directory",
        [symlink("l", "../../outside"), file("l/.wh.secret", b"")],
    ),
    "an opaque mark through a link": (
        "goes through something that is no directory",
        [symlink("l", "../../outside"), file("l/.wh..wh..opq", b"")],
    ),
    "a whiteout of nothing": ("whiteout of nothing", [file(".wh.", b"")]),
    "a whiteout of the directory itself": ("whiteout of nothing", [file("d/.wh..", b"")]),
    "a whiteout of the parent": ("whiteout of nothing", [file("d/.wh...", b"")]),
    "the root as a link": ("would replace the root", [symlink(".", "/tmp"), file("evil")]),
    "the root as a file": ("would replace the root", [file("./")]),
    "a device in a linked directory": (
        "goes through something that is no directory",
        [symlink("l", "../../outside"), member("l/disk", tarfile.BLKTYPE, devmajor=8)],
    ),
    "a file as a directory": ("no directory", [file("f"), file("f/inner")]),
    "an overlay attribute": (
        "steers overlayfs",
        [file("f", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})],
    ),
    "a name too long": ("name is too long", [file("x" * 256)]),
    "a path too long": ("more than 4096 bytes", [file("x/" * 2100 + "f")]),
    "too deep": ("deeper than 256", [file("d/" * 300 + "f")]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_gets_out(place: Place, case: str) -> None:
    message, members = HOSTILE[case]
    place.refuses(message, *members)


def test_replacing_a_link_replaces_the_link_alone(place: Place) -> None:
    place.unpack(
        symlink("file", OUT), file("file", b"x", mode=0o777, uid=77),
        symlink("dir", "../../outside"), folder("dir", mode=0o700, uid=77),
        symlink("node", OUT), member("node", tarfile.FIFOTYPE),
        symlink("hard", OUT), file("f"), hardlink("hard", "f"),
        symlink("gone", "../../outside"), file(".wh.gone", b""),
    )  # fmt: skip
    assert place.content()["file"] == ("0o100000", "0o777", (77, 0), b"x")
    assert place.content()["dir"] == ("0o40000", "0o700", (77, 0), None)


def test_attributes_of_a_link_are_its_own(place: Place) -> None:
    place.unpack(member("l", tarfile.SYMTYPE, linkname=OUT, uid=77, gid=78))
    assert place.content()["l"][2] == (77, 78)


def test_a_hard_link_to_a_link_is_a_link(place: Place) -> None:
    place.unpack(symlink("l", OUT), hardlink("h", "l"), file("h2"))
    assert os.readlink(place.layer / "h") == OUT


def test_a_link_below_in_another_layer_is_never_followed(place: Place, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "l").symlink_to("../outside")
    place.before = place.everything_else()
    place.unpack(file("l/evil"), lowers=(str(lower),))
    assert (place.layer / "l").is_dir() and not (place.layer / "l").is_symlink()


# what is too much


def test_entries_and_bytes_have_limits(place: Place) -> None:
    place.refuses("more than 3 entries", *[file(f"f{n}") for n in range(4)], entries=3)


def test_a_layer_that_says_it_is_huge_is_refused_before_it_is_written(place: Place) -> None:
    place.refuses("holds more than 10 bytes", file("a", b"x" * 6), file("b", b"x" * 6), bytes=10)
    assert "b" not in place.content()


def test_a_cut_layer_is_refused(place: Place) -> None:
    data = tar(file("f", b"x" * 5000))
    for cut in (100, 512, 700, 4000):
        with pytest.raises(Invalid, match="ends early"):
            place.unpack_bytes(data[:cut])
