"""Named volumes: made durably, described beside their data, removed with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.model.paths import NodePaths
from orchestra.runtime.volumes import Volumes, write_durably


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    return NodePaths(str(tmp_path / "state"), str(tmp_path / "run"))


def test_a_volume_is_there_again_after_a_restart_with_its_data(paths: NodePaths) -> None:
    made = Volumes(paths).create("data", {"a": "b"}, {})
    Path(made.mountpoint, "file").write_text("kept")
    again = Volumes(paths)
    assert again.get("data") == made
    assert again.list() == [made]
    assert Path(again.path("data"), "file").read_text() == "kept"
    assert (made.labels, made.anonymous) == ({"a": "b"}, False)
    # Others may pass through to what is mounted, but see nothing of the node's state.
    assert os.stat(paths.volumes).st_mode & 0o777 == 0o700


def test_making_it_again_is_the_same_one_unless_options_differ(paths: NodePaths) -> None:
    volumes = Volumes(paths)
    made = volumes.create("data", {}, {})
    assert volumes.create("data", {"other": "label"}, {}) is made
    device = {"type": "none", "o": "bind", "device": paths.state}
    with pytest.raises(Conflict, match="volume data already exists with other options"):
        volumes.create("data", {}, device)


@pytest.mark.parametrize("name", ["", "x", "../x", "a/b", ".hidden", "-x", "a b", "x" * 256, "é1"])
def test_a_name_that_is_none_is_refused(paths: NodePaths, name: str) -> None:
    with pytest.raises(Invalid, match="invalid characters for a local volume name"):
        Volumes(paths).create(name, {}, {})
    assert os.listdir(paths.volumes) == []


def test_a_bind_keeps_its_device_when_it_goes(paths: NodePaths, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    (device / "file").touch()
    volumes = Volumes(paths)
    made = volumes.create("data", {}, {"type": "none", "o": "bind,ro", "device": str(device)})
    assert made.mountpoint == str(device)
    volumes.remove("data")
    assert (device / "file").exists()
    with pytest.raises(NotFound, match="get data: no such volume"):
        volumes.get("data")
    assert os.listdir(paths.volumes) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": "1g"}, "volume option 'size' is not known"),
        ({"type": "nfs", "o": "addr=x", "device": ":/x"}, "only for binds"),
        ({"type": "none", "device": "/tmp"}, "only for binds"),
        ({"type": "none", "o": "bind", "device": "/no/such"}, "device='/no/such': not a directory"),
    ],
)
def test_options_that_the_driver_does_not_have_are_refused(
    paths: NodePaths, options: dict[str, str], told: str
) -> None:
    with pytest.raises(Invalid, match=told):
        Volumes(paths).create("data", {}, options)


def test_one_whose_making_was_cut_short_is_none(paths: NodePaths) -> None:
    Volumes(paths).create("whole", {}, {})
    os.makedirs(f"{paths.volumes}/cut/_data")
    Path(f"{paths.volumes}/cut/volume.json.new").write_text('{"name": "c')
    assert [volume.name for volume in Volumes(paths).list()] == ["whole"]
    assert os.listdir(paths.volumes) == ["whole"]


def test_a_file_is_replaced_whole_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(str(path), json.dumps({"a": 1}).encode())
    write_durably(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]
