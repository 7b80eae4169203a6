"""Whatever kills a load, and whenever: nothing half-done remains, and loading again works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image.box import digest, docker_archive, file, leftovers, load, run, stream, tar, tree
from orchestra.image import store
from orchestra.image.images import Images
from orchestra.image.layer import chain_ids

CRASH = Path(__file__).parent / "crash.py"
BASE = tar(*[file(f"base{n}", b"b" * 100_000) for n in range(60)])
UPPER = tar(*[file(f"upper{n}", b"u" * 100) for n in range(300)])
ARCHIVE = docker_archive([BASE, UPPER])


def verify_whole(root: Path) -> None:
    """Everything that has its final name is complete, and all that names need is there."""
    for blob in (root / "blobs" / "sha256").iterdir():
        assert digest(blob.read_bytes()) == f"sha256:{blob.name}"
    for layer in (root / "layers").iterdir():
        assert (layer / "diff").is_dir() and json.loads((layer / "layer.json").read_bytes())["size"]
    if not (root / "index.json").exists():
        return
    for target in json.loads((root / "index.json").read_bytes())["manifests"]:
        manifest = json.loads((root / "blobs/sha256" / target["digest"][7:]).read_bytes())
        config = json.loads((root / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())
        for layer in manifest["layers"]:
            assert (root / "blobs/sha256" / layer["digest"][7:]).exists()
        for chain in chain_ids(config["rootfs"]["diff_ids"]):
            assert (root / "layers" / chain.hex).is_dir()


def verify_recovers(root: Path) -> None:
    """Opened again the store holds no unfinished work; loading again completes it."""
    verify_whole(root)
    images = Images(str(root))
    verify_whole(root)
    assert leftovers(root) == []
    assert load(images, ARCHIVE) == ["demo:1"]
    assert len(images.lowers(images.get("demo:1").id)) == 2
    verify_whole(root)
    assert len(list((root / "layers").iterdir())) == 2
    assert len(list((root / "blobs/sha256").iterdir())) == 4
    assert leftovers(root) == []


def feed(command: list[str], data: bytes) -> tuple[int, str]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        out, _ = process.communicate(data, timeout=60)
    except BrokenPipeError:
        out = b""
    finally:
        process.kill()
        process.wait()
    return process.returncode, out.decode()


@pytest.mark.parametrize(("call", "least"), [("rename", 7), ("syncfs", 2)])
def test_a_kill_at_any_durable_step_leaves_nothing_half_done(
    call: str, least: int, tmp_path: Path
) -> None:
    """`rename` gives a thing its final name: 4 blobs, 2 layers, the index; `syncfs` is a layer."""
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    for step in range(1, 30):
        root = tmp_path / f"store{step}"
        inject = ["-e", f"inject={call}:signal=SIGKILL:when={step}"]
        code, out = feed([*trace, *inject, sys.executable, str(CRASH), str(root)], ARCHIVE)
        if code == 0:
            break
        assert out == ""
        verify_recovers(root)
    assert out == "demo:1\n" and step > least


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_a_kill_while_the_archive_arrives_leaves_nothing_half_done(
    tmp_path: Path, part: float
) -> None:
    root = tmp_path / "store"
    process = subprocess.Popen([sys.executable, CRASH, root], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(ARCHIVE[: int(len(ARCHIVE) * part)])
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while not (root / "tmp").exists() or not leftovers(root):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdin.close()
    assert Images(str(root)).list() == ()
    verify_recovers(root)


def test_a_load_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    import trio

    images = Images(str(tmp_path))
    before = tree(tmp_path)

    async def endless():
        async for piece in stream(ARCHIVE[:-5000]):
            yield piece
        await trio.sleep_forever()

    async def cancelled() -> None:
        with trio.move_on_after(0.5):
            await images.load(endless())

    run(cancelled)
    assert tree(tmp_path) == before


def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    images = Images(str(tmp_path))
    before = tree(tmp_path)

    async def broken():
        async for piece in stream(ARCHIVE[: len(ARCHIVE) // 2]):
            yield piece
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        run(images.load, broken())
    assert tree(tmp_path) == before


def test_blobs_of_an_interrupted_shipment_wait_an_hour_and_then_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(str(tmp_path))
    run(images.put_blob, digest(b"blob"), stream(b"blob"))
    assert images.missing_blobs([digest(b"blob")]) == []
    images = Images(str(tmp_path))  # a new process
    assert images.missing_blobs([digest(b"blob")]) == []
    path = tmp_path / "blobs/sha256" / digest(b"blob")[7:]
    old = time.time() - store._GRACE - 1
    os.utime(path, (old, old))
    assert Images(str(tmp_path)).missing_blobs([digest(b"blob")]) == [digest(b"blob")]


def test_a_layer_that_is_gone_from_the_disk_is_unpacked_again(tmp_path: Path) -> None:
    import shutil

    images = Images(str(tmp_path))
    load(images, ARCHIVE)
    before = tree(tmp_path)
    for layer in (tmp_path / "layers").iterdir():
        shutil.rmtree(layer)
    Images(str(tmp_path))
    assert tree(tmp_path) == before


def test_a_damaged_image_does_not_keep_the_others_from_being_used(tmp_path: Path) -> None:
    images = Images(str(tmp_path))
    load(images, ARCHIVE)
    load(images, docker_archive([tar(file("x"))], ["other"]))
    blob = tmp_path / "blobs/sha256" / images.get("demo:1").id[7:]
    blob.write_bytes(blob.read_bytes().replace(b"PATH", b"HTAP"))
    images = Images(str(tmp_path))
    assert [image.names for image in images.list()] == [("other:latest",)]
    assert load(images, ARCHIVE) == ["demo:1"]


def test_one_store_has_one_place_for_everything_and_no_one_else_may_look(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Images(str(root))
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (root, *root.iterdir())} == {
        "store": "0o700", "blobs": "0o700", "layers": "0o700", "tmp": "0o700",
        "oci-layout": "0o644",
    }  # fmt: skip
