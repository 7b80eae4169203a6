"""Filling a volume from an image's directory: everything a file is, and nothing followed."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from orchestra.runtime.copyup import copy_up

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    top = tmp_path / "image"
    (top / "deep/er").mkdir(parents=True)
    (top / "file").write_bytes(b"x" * 300_000)
    (top / "program").write_text("#!")
    os.chown(top / "program", 1000, 2000)
    os.chmod(top / "program", 0o6755)
    os.setxattr(top / "program", "user.note", b"kept")
    os.utime(top / "program", ns=(1_000_000_001, 2_000_000_002))
    os.link(top / "file", top / "deep/er/again")
    (top / "out").symlink_to("/etc/passwd")
    os.lchown(top / "out", 5, 6)
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(top / "deep", 0o1777)
    os.chown(top, 7, 8)
    os.chmod(top, 0o750)
    return top


def fill(image: Path, volume: Path) -> None:
    volume.mkdir(exist_ok=True)
    source, target = (os.open(path, os.O_PATH) for path in (image, volume))
    before = set(os.listdir("/proc/self/fd"))
    try:
        copy_up(source, target)
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(source)
        os.close(target)


def facts(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    times = () if stat.S_ISLNK(info.st_mode) else (info.st_mtime_ns,)
    kind = stat.S_IFMT(info.st_mode)
    device = info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return (info.st_mode, info.st_uid, info.st_gid, device, *times)


def test_owner_mode_times_attributes_and_kinds_are_kept(image: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    fill(image, volume)
    for path in (image, *image.rglob("*")):
        copy = volume / path.relative_to(image)
        if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            assert facts(copy) == facts(path), path
        else:
            assert facts(copy)[:4] == facts(path)[:4], path
    assert (volume / "file").read_bytes() == b"x" * 300_000
    assert os.path.samefile(volume / "file", volume / "deep/er/again")
    assert os.getxattr(volume / "program", "user.note") == b"kept"
    assert os.readlink(volume / "out") == "/etc/passwd"


def test_a_volume_with_anything_in_it_is_left_alone(image: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "mine").touch()
    fill(image, volume)
    assert os.listdir(volume) == ["mine"]


def test_two_first_starts_take_turns(image: Path, tmp_path: Path) -> None:
    for number in range(200):
        (image / f"more-{number}").write_text(str(number))
    volume = tmp_path / "volume"
    volume.mkdir()
    failures: list[BaseException] = []

    def one() -> None:
        try:
            source, target = (os.open(path, os.O_PATH) for path in (image, volume))
            copy_up(source, target)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {p.name for p in volume.iterdir()} == {p.name for p in image.iterdir()}


def test_a_socket_in_the_image_is_made_again(image: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(image / "socket"))
        fill(image, tmp_path / "volume")
    assert stat.S_ISSOCK((tmp_path / "volume/socket").lstat().st_mode)
