"""Images go to registries: only what is missing, with patience, under their own digests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.box import digest, docker_archive, file, load, tar, tree
from image.registry_server import Place, RegistryForTests
from orchestra.model.errors import Forbidden, Invalid, NotFound, Unavailable

LAYERS = [tar(file(f"layer{n}", os.urandom(600_000))) for n in range(3)]


@pytest.fixture
def name(place: Place, server: RegistryForTests) -> str:
    """The name of an image that is here and belongs to the server."""
    name = f"{server.host}/a:1"
    load(place.images, docker_archive(LAYERS, [name]))
    return name


def verify_arrived(place: Place, server: RegistryForTests, name: str) -> None:
    image = place.images.get(name)
    assert server.tags["a:1"] == image.manifest_digest
    for blob in place.images.shipment(image.manifest_digest):
        assert digest(server.blobs.content[blob]) == blob
    assert server.uploads == {}


def sent(server: RegistryForTests, method: str) -> list[str]:
    return [seen.path for seen in server.seen if seen.method == method]


def test_an_image_arrives_under_its_own_digest(
    place: Place, server: RegistryForTests, name: str
) -> None:
    assert place.push(name) == place.images.get(name).manifest_digest
    verify_arrived(place, server, name)
    assert server.seen[-1].method == "PUT" and server.seen[-1].path == "/v2/a/manifests/1"
    sizes = place.images.shipment(place.images.get(name).manifest_digest)
    told = {blob: done for blob, done, _ in place.reports}
    assert told == {b: n for b, n in sizes.items() if b != place.images.get(name).manifest_digest}


def test_what_the_registry_has_does_not_travel(
    place: Place, server: RegistryForTests, name: str
) -> None:
    server.blobs.content[digest(LAYERS[0])] = LAYERS[0]
    place.push(name)
    assert len(sent(server, "PATCH")) == 3  # two layers and the configuration
    server.seen.clear()
    place.push(name)
    assert not sent(server, "POST") and not sent(server, "PATCH")


def test_a_blob_of_another_repository_is_mounted(
    place: Place, server: RegistryForTests, name: str
) -> None:
    load(place.images, docker_archive(LAYERS, [f"{server.host}/base:1", "elsewhere/x:1"]))
    server.mountable = {digest(layer): layer for layer in LAYERS}
    place.push(name)
    verify_arrived(place, server, name)
    assert len(sent(server, "PATCH")) == 1
    mounts = [seen.query["from"] for seen in server.seen if "mount" in seen.query]
    assert mounts == [["base"]] * 4


@pytest.mark.parametrize("forgets", [False, True])
def test_a_broken_line_goes_on_where_the_server_has_got_to(
    place: Place, server: RegistryForTests, name: str, forgets: bool
) -> None:
    server.forgets = forgets
    server.cut_after = [0, 1, 250_000, 500_000, 100]
    place.push(name)
    verify_arrived(place, server, name)


def test_a_line_that_breaks_again_and_again_is_given_up(
    place: Place, server: RegistryForTests, name: str
) -> None:
    server.cut_after = [0] * 100
    with pytest.raises(Unavailable, match=f"cannot push {name}: cannot reach {server.url}"):
        place.push(name)
    assert server.tags == {}


def test_a_busy_server_is_asked_again(place: Place, server: RegistryForTests, name: str) -> None:
    server.failures = [(503, {}), (429, {}), (500, {})]
    place.push(name)
    verify_arrived(place, server, name)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_are_used(place: Place, server: RegistryForTests, name: str, auth: str) -> None:
    server.auth = auth
    with pytest.raises(Forbidden, match=f"`docker login {server.host}`"):
        place.push(name)
    place.login(server.host)
    place.push(name)
    verify_arrived(place, server, name)


def test_mirrors_get_nothing(
    place: Place, server: RegistryForTests, other: RegistryForTests, name: str
) -> None:
    place.registries = {server.host: {"url": server.url, "mirrors": [other.url]}}
    place.push(name)
    verify_arrived(place, server, name)
    assert other.seen == []


def test_what_cannot_be_pushed_is_told(place: Place, server: RegistryForTests, name: str) -> None:
    with pytest.raises(NotFound, match="No such image: no:latest"):
        place.push("no")
    manifest = place.images.get(name).manifest_digest
    with pytest.raises(Invalid, match="a digest is no name to give"):
        place.push(f"{server.host}/a@{manifest}")
    server.renames = digest(b"other")
    with pytest.raises(
        Invalid, match=f"names the manifest {digest(b'other')}, which is {manifest}"
    ):
        place.push(name)


def test_a_damaged_blob_is_refused_there(place: Place, server: RegistryForTests, name: str) -> None:
    path = place.root / "store/blobs/sha256" / digest(LAYERS[0])[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Unavailable, match=f"cannot push {name}: .*400 DIGEST_INVALID"):
        place.push(name)
    assert server.tags == {}


# Debian's registry


class Cutting:
    """A way to a server that breaks: each connection after so many bytes to it, while there are."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port, self._cuts = port, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        done = 0
        try:
            while data := source.recv(10_000):
                sink.sendall(data)
                done += len(data)
                if counted and self._cuts and done > self._cuts[0]:
                    self._cuts.pop(0)
                    break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def cutting(debian: str) -> Iterator[Cutting]:
    way = Cutting(int(debian.partition(":")[2]), [200_000, 400_000, 100_000, 50_000, 300_000])
    yield way
    way.close()


def test_debians_registry_takes_it_over_a_line_that_breaks(
    place: Place, cutting: Cutting, debian: str, tmp_path: Path
) -> None:
    name = f"{cutting.host}/team/app:1"
    load(place.images, docker_archive(LAYERS, [name]))
    pushed = place.push(name)
    other = Place(tmp_path / "other")
    image = other.pull(f"{debian}/team/app:1")
    ours = place.images.get(name)
    assert (image.manifest_digest, image.id) == (pushed, ours.id)
    for mine, copy in zip(place.images.lowers(ours.id), other.images.lowers(image.id)):
        assert tree(mine) == tree(copy)


def test_skopeo_finds_in_debians_registry_what_we_pushed(place: Place, debian: str) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    name = f"{debian}/team/app:1"
    load(place.images, docker_archive(LAYERS, [name, f"{debian}/team/base:1"]))
    place.push(f"{debian}/team/base:1")
    assert place.push(name) == place.images.get(name).manifest_digest
    command = [skopeo, "inspect", "--raw", "--tls-verify=false", f"docker://{name}"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert digest(raw) == place.images.get(name).manifest_digest
