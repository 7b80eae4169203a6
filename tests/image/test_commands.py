"""`orchestra image ...` as a user types it, against a store behind a real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from image.box import configuration, digest, docker_archive, file, leftovers, tar, tree
from orchestra.api.server import controller_app, serve_unix
from orchestra.cli.main import main
from orchestra.image.images import Images
from orchestra.model.cluster import ImageNeed, StackRecord
from orchestra.model.service import Stack

A, B = tar(file("a", b"a" * 3000)), tar(file("b", b"b"))
ID_A, ID_B = digest(configuration([A])), digest(configuration([A, B], Labels={"k": "v"}))

Command = Callable[..., int]


class Server:
    """The image routes over one store, in a thread with a trio of its own."""

    def __init__(self, root: Path, path: str) -> None:
        self.images = Images(str(root))
        self.records: list[StackRecord] = []
        self.root = root
        self.url = f"unix://{path}"
        self._scope = trio.CancelScope()
        started = threading.Event()

        async def serve() -> None:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    app = controller_app(self)  # type: ignore[arg-type]
                    await nursery.start(serve_unix, path, app)
                    self._token = trio.lowlevel.current_trio_token()
                    started.set()
                    await trio.sleep_forever()

        self._thread = threading.Thread(target=trio.run, args=(serve,))
        self._thread.start()
        assert started.wait(20)

    def stacks(self) -> list[StackRecord]:
        return self.records

    def close(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "store", str(tmp_path / "sock"))
    yield server
    server.close()


@pytest.fixture
def orchestra(server: Server) -> Command:
    return lambda *words: main(["-H", server.url, "image", *map(str, words)])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(docker_archive([A], ["a:1", "me/a:1", "me/a:2"]))
    return path


@pytest.fixture
def loaded(
    orchestra: Command, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    (tmp_path / "b.tar").write_bytes(docker_archive([A, B], ["b"], Labels={"k": "v"}))
    assert orchestra("load", "-i", archive) == orchestra("load", "-i", tmp_path / "b.tar") == 0
    capsys.readouterr()
    return orchestra


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    return [*out.splitlines(), *err.splitlines()]


def test_load_says_what_it_loaded(
    orchestra: Command, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestra("load", "--input", archive) == 0
    assert told(capsys) == ["Loaded image: a:1", "Loaded image: me/a:1", "Loaded image: me/a:2"]


def test_load_reads_stdin(server: Server) -> None:
    command = [sys.executable, "-m", "orchestra.cli.main", "-H", server.url, "image", "load"]
    data = docker_archive([A], ["a:1"])
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Loaded image: a:1\n", b"")


def test_the_listing_is_dockers(loaded: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded("ls") == 0
    head, *rows = told(capsys)
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert sorted(row.split()[:3] for row in rows) == [
        ["a", "1", ID_A[7:19]],
        ["b", "latest", ID_B[7:19]],
        ["me/a", "1", ID_A[7:19]],
        ["me/a", "2", ID_A[7:19]],
    ]
    assert all(row.endswith("kB") and " days ago " in row for row in rows)


def test_the_listing_as_json_ids_and_in_full(
    loaded: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = server.images.get("b").manifest_digest
    loaded("ls", "--format", "json", "b")
    assert json.loads("".join(told(capsys))) == [
        {
            "repository": "b",
            "tag": "latest",
            "digest": manifest,
            "id": ID_B,
            "created": 1_600_000_000,
            "size": len(A) + len(B),
        }
    ]
    loaded("ls", "-q")
    assert sorted(told(capsys)) == sorted([ID_A[7:19], ID_B[7:19]])
    loaded("ls", "-q", "--no-trunc", "b")
    assert told(capsys) == [ID_B]
    loaded("ls", "--digests", "--no-trunc", "b")
    assert told(capsys)[1].split()[:4] == ["b", "latest", manifest, ID_B]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["me/a"], ["me/a:1", "me/a:2"]),
        (["me/a:2"], ["me/a:2"]),
        (["me/*"], ["me/a:1", "me/a:2"]),
        (["no"], []),
        (["--filter", "reference=b", "--filter", "reference=a"], ["a:1", "b:latest"]),
        (["-f", "label=k"], ["b:latest"]),
        (["-f", "label=k=w"], []),
        (["-f", "dangling=true"], []),
        (["-f", "dangling=false", "-f", "reference=a"], ["a:1"]),
        (["-f", "until=2020-01-01T00:00:00Z"], []),
        (["-f", "until=2020-10-01", "a"], ["a:1"]),
        (["-f", "until=1h30m", "a"], ["a:1"]),
        (["-f", "until=1500000000"], []),
    ],
)
def test_filters_choose_what_is_listed(
    loaded: Command, capsys: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:
    assert loaded("ls", "--format", "json", *words) == 0
    rows = json.loads("".join(told(capsys)))
    assert sorted(f"{row['repository']}:{row['tag']}" for row in rows) == names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("size=5", "invalid filter 'size'"),
        ("until=x", "'x' is no time: write Unix seconds"),
        ("dangling", "write KEY=VALUE, like dangling=true"),
    ],
)
def test_a_filter_that_is_none_is_refused(
    loaded: Command, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert loaded("ls", "--filter", word) == 2
    assert message in told(capsys)[0]


def test_an_image_that_lost_its_name_is_listed_without_one(
    loaded: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded("tag", "a:1", "b:latest")
    loaded("ls", "-f", "dangling=true")
    assert told(capsys)[1].split()[:3] == ["<none>", "<none>", ID_B[7:19]]


def test_names_are_given_and_taken(
    loaded: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loaded("tag", "b", "localhost:5000/b") == 0
    assert loaded("tag", ID_B[7:15], "host.io/b:3") == 0
    assert set(server.images.get("b").names) == {
        "b:latest",
        "localhost:5000/b:latest",
        "host.io/b:3",
    }
    assert loaded("rm", "localhost:5000/b", "host.io/b:3") == 0
    assert told(capsys) == ["Untagged: localhost:5000/b:latest", "Untagged: host.io/b:3"]
    assert loaded("rm", "b") == 0
    assert told(capsys)[:2] == ["Untagged: b:latest", f"Deleted: {ID_B}"]
    assert loaded("rm", "b") == 1
    assert told(capsys) == ["orchestra: No such image: b:latest"]


def test_an_image_that_a_stack_needs_is_not_removed(
    loaded: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    need = ImageNeed("b", server.images.get("b").manifest_digest, ID_B)
    server.records = [StackRecord(Stack("shop"), 1, 0.0, {"b": need})]
    assert loaded("rm", "b") == 1 and loaded("rm", "-f", ID_B) == 1
    short = ID_B[7:19]
    assert told(capsys) == [
        'orchestra: conflict: unable to remove repository reference "b" (must force) - stack shop '
        f"is using its referenced image {short}",
        f"orchestra: conflict: unable to delete {short} (cannot be forced) - image is being used "
        "by stack shop",
    ]
    server.records = []
    assert loaded("rm", "b") == 0


def test_rm_goes_on_after_what_it_cannot_remove(
    loaded: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loaded("rm", "no", "b") == 1
    assert told(capsys) == [
        "Untagged: b:latest",
        f"Deleted: {ID_B}",
        f"Deleted: {digest(f'{digest(A)} {digest(B)}'.encode())}",
        "orchestra: No such image: no:latest",
    ]


def test_inspect_shows_all_of_it(loaded: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded("inspect", "b", "a:1") == 0
    first, second = json.loads("".join(told(capsys)))
    assert (first["Id"], second["Id"]) == (ID_B, ID_A)
    assert first["RepoTags"] == ["b:latest"] and first["Config"]["Labels"] == {"k": "v"}
    assert first["RootFS"]["Layers"] == [digest(A), digest(B)]
    assert loaded("inspect", "no") == 1


def test_save_and_load_go_round(
    loaded: Command, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "saved.tar"
    assert loaded("save", "-o", path, "b", "me/a") == 0
    before = [(i.id, i.manifest_digest) for i in server.images.list()]
    loaded("rm", "-f", ID_A, ID_B)
    assert server.images.list() == ()
    capsys.readouterr()
    assert loaded("load", "-i", path) == 0
    assert sorted(told(capsys)) == [
        "Loaded image: b:latest", "Loaded image: me/a:1", "Loaded image: me/a:2",
    ]  # fmt: skip
    assert sorted((i.id, i.manifest_digest) for i in server.images.list()) == sorted(before)


def test_save_writes_to_stdout(loaded: Command, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    loaded("save", "-o", path, "b")
    command = [sys.executable, "-m", "orchestra.cli.main", "-H", server.url, "image", "save", "b"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout == path.read_bytes()


def test_a_save_that_fails_leaves_no_file(
    loaded: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tmp_path)
    assert loaded("save", "-o", tmp_path / "saved.tar", "b", "no") == 1
    assert told(capsys) == ["orchestra: No such image: no:latest"]
    assert loaded("save", "-o", tmp_path / "no" / "saved.tar", "b") == 1
    assert told(capsys) == [
        f"orchestra: cannot write {tmp_path}/no/saved.tar: No such file or directory"
    ]
    assert tree(tmp_path) == before


def test_import_makes_an_image(
    orchestra: Command, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rootfs = tmp_path / "rootfs.tar"
    rootfs.write_bytes(A)
    changes = ["--change", "CMD run", "--change", "ENV A=1 B=2", "-m", "by hand"]
    assert orchestra("import", *changes, rootfs, "base:1") == 0
    image = server.images.get("base:1")
    assert told(capsys) == [image.id]
    assert image.config.cmd == ("/bin/sh", "-c", "run") and image.config.env == ("A=1", "B=2")
    assert image.comment == "by hand"


# what goes wrong


def test_a_file_that_is_absent_is_named(
    orchestra: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestra("load", "-i", tmp_path / "no.tar") == 1
    assert told(capsys) == [f"orchestra: cannot read {tmp_path}/no.tar: No such file or directory"]


def test_an_archive_that_is_none_is_named_with_the_remedy(
    orchestra: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rootfs.tar"
    path.write_bytes(A)
    assert orchestra("load", "-i", path) == 2
    [line] = told(capsys)
    assert line.startswith(f"orchestra: {path}: cannot load images: the archive holds neither")
    assert line.endswith("(a root file system's tar is taken by `image import`)")


def test_a_change_that_is_wrong_is_told_though_the_file_is_large(
    orchestra: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rootfs.tar"
    path.write_bytes(tar(file("big", os.urandom(20 << 20))))
    assert orchestra("import", "-c", "RUN x", path, "base") == 2
    assert "cannot apply change 'RUN x': 'RUN' is none of CMD" in told(capsys)[0]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server whose store is on a file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        server = Server(disk / "images", str(tmp_path / "small.sock"))
        yield server
        server.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(
    ("size", "what"), [(5 << 20, "load image big:1"), (60 << 20, "load images")]
)
def test_a_full_disk_names_the_image_the_place_and_the_remedy(
    small: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, what: str
) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(docker_archive([tar(file("big", os.urandom(size)))], ["big:1"]))
    before = tree(small.root)
    for _ in range(3):
        assert main(["-H", small.url, "image", "load", "-i", str(path)]) == 1
        [line] = told(capsys)
        assert line.startswith(f"orchestra: {path}: cannot {what}: no space left on {small.root}: ")
        assert line.endswith("; remove unused images (`image rm`) or enlarge the file system")
    assert tree(small.root) == before and leftovers(small.root) == []


def test_an_interrupted_client_leaves_nothing(server: Server) -> None:
    command = [sys.executable, "-m", "orchestra.cli.main", "-H", server.url, "image", "load"]
    before = tree(server.root)
    client = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert client.stdin is not None
    client.stdin.write(docker_archive([tar(file("big", os.urandom(3 << 20)))])[:-20_000])
    client.stdin.flush()
    deadline = time.monotonic() + 30
    while not leftovers(server.root) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert leftovers(server.root)
    client.kill()
    client.wait()
    client.stdin.close()
    while leftovers(server.root) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tree(server.root) == before
