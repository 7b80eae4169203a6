"""Path walks that must stay inside, and mounts that hang on descriptors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestra.linux import mounts as m
from orchestra.linux.syscalls import (
    CLONE_NEWNS,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    mount,
    openat2,
    unshare,
)
from tests.linux.test_seccomp import in_child


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`root` with links of every kind, and `outside` beside it."""
    root = tmp_path / "root"
    (root / "real/below").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (root / "file").write_text("file")
    for name, target in {
        "in": "real",
        "absolute": "/real",
        "out": "../outside",
        "far": str(tmp_path / "outside"),
        "dangling": "nowhere/at/all",
        "loop": "loop",
        "magic": "/proc/self/root",
    }.items():
        (root / name).symlink_to(target)
    return root


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def place(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("real/below", "real/below"),
        ("/real//./below/", "real/below"),
        ("in/below", "real/below"),
        ("absolute/below", "real/below"),
        ("../../../real", "real"),
        ("in/../real", "real"),
        ("new/one/two", "new/one/two"),
        ("absolute/new", "real/new"),
        ("", ""),
        ("/..", ""),
    ],
)
def test_a_directory_is_found_or_made_inside(tree: Path, root: int, path: str, where: str) -> None:
    assert place(m.make_directory(root, path)) == str(tree / where).rstrip("/")


@pytest.mark.parametrize("path", ["out/x", "far/x", "out/../../outside/x"])
def test_a_link_that_leads_out_is_followed_inside_or_refused(
    tree: Path, root: int, path: str
) -> None:
    # As chroot would: what it names does not exist inside, and where it leads is not ours to make.
    with pytest.raises(FileNotFoundError, match="dangling symbolic link"):
        m.make_directory(root, path)
    assert os.listdir(tree.parent / "outside") == ["secret"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("dangling", errno.ENOENT),
        ("loop/x", errno.ELOOP),
        ("file/x", errno.ENOTDIR),
        ("file", errno.ENOTDIR),
    ],
)
def test_what_is_no_directory_is_refused(root: int, path: str, number: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        m.make_directory(root, path)
    assert caught.value.errno == number
    assert set(os.listdir("/proc/self/fd")) == before


def test_magic_links_are_refused(tree: Path) -> None:
    top = os.open("/", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError) as caught:
        m.make_directory(top, f"/proc/self/fd/{top}/etc")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError):
        m.make_file(top, "/proc/self/cwd/x")
    os.close(top)


def test_a_place_for_a_file_is_kept_or_made(tree: Path, root: int) -> None:
    assert place(m.make_file(root, "/file")) == str(tree / "file")
    assert place(m.make_file(root, "/a/b/new")) == str(tree / "a/b/new")
    assert (tree / "a/b/new").read_bytes() == b""
    assert stat.S_IMODE((tree / "a/b/new").stat().st_mode) & 0o644 == 0o644 & ~os.umask(0o022)
    with pytest.raises(FileExistsError):
        m.make_file(root, "/dangling")
    assert (tree / "file").read_text() == "file"


def test_a_plain_directory_is_no_link(tree: Path, root: int) -> None:
    assert place(m.open_plain(root, "proc")) == str(tree / "proc")
    assert place(m.open_plain(root, "proc")) == str(tree / "proc")
    for name in ("in", "far", "dangling"):
        with pytest.raises(OSError) as caught:
            m.open_plain(root, name)
        assert caught.value.errno == errno.ELOOP


def test_openat2_keeps_its_rules(tree: Path, root: int) -> None:
    (tree.parent / "x").touch()
    for path, rules, number in (
        ("../x", RESOLVE_BENEATH, errno.EXDEV),
        ("out/secret", RESOLVE_BENEATH, errno.EXDEV),
        ("far/secret", RESOLVE_BENEATH, errno.EXDEV),
        ("/real", RESOLVE_BENEATH, errno.EXDEV),
        ("in", RESOLVE_NO_SYMLINKS, errno.ELOOP),
        ("magic", RESOLVE_NO_MAGICLINKS, errno.ELOOP),
        ("nowhere", 0, errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            openat2(root, path, os.O_PATH, rules)
        assert (caught.value.errno, caught.value.filename) == (number, path)
    with pytest.raises(OSError) as caught:
        openat2(os.open("/", os.O_PATH | os.O_CLOEXEC), "proc/stat", os.O_PATH, RESOLVE_NO_XDEV)
    assert caught.value.errno == errno.EXDEV
    fd = openat2(root, "in/below", os.O_PATH, RESOLVE_BENEATH)
    assert not os.get_inheritable(fd)
    assert place(fd) == str(tree / "real/below")


# --- mounts, in a mount namespace of a child -----------------------------------------------------


def apart(body: Callable[[], object]) -> object:
    def alone() -> object:
        unshare(CLONE_NEWNS)
        mount("", "/", "", m.MS_REC | m.MS_PRIVATE)
        return body()

    return in_child(alone)


def mounted(path: Path) -> str:
    """Options, kind and source of what is mounted at `path`; "" of nothing."""
    with open("/proc/self/mountinfo") as file:
        for line in reversed(file.readlines()):
            left, _, right = line.partition(" - ")
            if left.split()[4] == str(path):
                return f"{left.split()[5]} {right.split()[0]}"
    return ""


@pytest.mark.root
def test_a_new_file_system_hangs_nowhere_until_it_is_attached(tree: Path) -> None:
    def body() -> list[str]:
        flags = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
        made = m.new_filesystem("tmpfs", {"mode": "0751", "size": "1m"}, flags)
        os.mkdir("inside", dir_fd=made)
        before = mounted(tree / "real")
        target = os.open(tree / "real", os.O_PATH)
        os.rename(tree / "real", tree / "moved")  # whoever renames it does not move the target
        (tree / "real").symlink_to(tree.parent / "outside")
        m.attach(made, target)
        mode = oct((tree / "moved").stat().st_mode)
        return [before, mounted(tree / "moved"), mode, *os.listdir(tree / "moved")]

    told = apart(body)
    assert told == ["", "rw,nosuid,nodev,noexec,relatime tmpfs", "0o40751", "inside"]


@pytest.mark.root
def test_a_clone_is_made_read_only_below_too_and_leaves_its_source_alone(tree: Path) -> None:
    def body() -> list[object]:
        mount("below", str(tree / "real/below"), "tmpfs")
        source = os.open(tree / "real", os.O_PATH)
        copy = m.clone(source, recursive=True)
        m.set_attributes(copy, m.MOUNT_ATTR_RDONLY, m.MS_PRIVATE, recursive=True)
        os.mkdir(tree / "copy")
        m.attach(copy, os.open(tree / "copy", os.O_PATH))
        found: list[object] = []
        for place in ("copy", "copy/below", "real", "real/below"):
            try:
                (tree / place / "new").touch()
                found.append(0)
            except OSError as error:
                found.append(error.errno)
        return found

    assert apart(body) == [errno.EROFS, errno.EROFS, 0, 0]


@pytest.mark.root
def test_an_overlay_of_many_layers_shows_the_topmost_and_no_path(tree: Path) -> None:
    layers = [tree.parent / f"a layer, with: odd\\name {n}" for n in range(120)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / "same").write_text(str(number))
        (layer / f"only-{number}").touch()
    for name in ("upper", "work", "top"):
        (tree / name).mkdir()

    def body() -> list[object]:
        fds = [os.open(layer, os.O_PATH) for layer in layers]
        upper, work = (os.open(tree / name, os.O_PATH) for name in ("upper", "work"))
        m.overlay(str(tree / "top"), fds, upper, work)
        (tree / "top/new").touch()
        with open("/proc/self/mounts") as file:
            shown = [line for line in file if f"{tree}/top" in line]
        inside = (tree / "top/same").read_text()
        return [inside, len(os.listdir(tree / "top")), "odd" in shown[0].partition(" overlay ")[2]]

    assert apart(body) == ["0", 122, False]
    assert os.listdir(tree / "upper") == ["new"]


@pytest.mark.root
def test_a_refused_mount_carries_the_kernels_reason(tree: Path) -> None:
    def body() -> str:
        try:
            m.new_filesystem("tmpfs", {"bogus": "1"})
        except OSError as error:
            return f"{error.errno} {error.strerror} {error.filename}"
        return ""

    told = str(apart(body))
    assert told.startswith(f"{errno.EINVAL} ")
    assert "bogus" in told or "Invalid argument" in told
    assert told.endswith("mount tmpfs")
