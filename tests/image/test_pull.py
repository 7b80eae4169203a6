"""Images come from registries: whole, verified, with patience, and with credentials for the right
server only."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from image.box import OCI, as_json, digest, file, leftovers, load, machine, run, tar, tree
from image.registry_server import Place, RegistryForTests
from orchestra.image.credentials import Credentials, CredentialStore
from orchestra.image.images import Images
from orchestra.image.media import Platform
from orchestra.image.pull import Puller
from orchestra.image.registries import Registries
from orchestra.model.errors import Forbidden, Invalid, NotFound, Unavailable

PACK = partial(gzip.compress, mtime=0)
LAYERS = [tar(file(f"layer{n}", os.urandom(300_000))) for n in range(3)]


def held(server: RegistryForTests, name: str = "a:1", **more: Any) -> dict[str, Any]:
    """Put an image into the registry; the descriptor of its manifest."""
    target = server.blobs.image(LAYERS, PACK, "+gzip", **more)
    server.tag(name, target)
    return target


# what comes


def test_an_image_is_pulled_by_its_tag(server: RegistryForTests, place: Place) -> None:
    target = held(server)
    image = place.pull(f"{server.host}/a:1")
    assert image.names == (f"{server.host}/a:1",)
    assert image.manifest_digest == target["digest"]
    assert image.layers == tuple(map(digest, LAYERS))
    assert all(Path(lower).is_dir() for lower in place.images.lowers(image.id))
    assert leftovers(place.root / "store") == []
    assert len(server.paths("/manifests/")) == 1 and len(server.paths("/blobs/")) == 4
    assert server.seen[0].headers["host"] == server.host


def test_latest_is_meant_where_nothing_is_said(server: RegistryForTests, place: Place) -> None:
    held(server, "team/app:latest")
    assert place.pull(f"{server.host}/team/app").names == (f"{server.host}/team/app:latest",)


def test_a_digest_pins_and_gives_no_name(server: RegistryForTests, place: Place) -> None:
    target = held(server)
    image = place.pull(f"{server.host}/a@{target['digest']}")
    assert image.names == () and image.manifest_digest == target["digest"]
    image = place.pull(f"{server.host}/a:1@{target['digest']}")
    assert image.names == (f"{server.host}/a:1",)


def test_only_what_is_missing_is_fetched(server: RegistryForTests, place: Place) -> None:
    held(server)
    target = server.blobs.image(LAYERS[:2], PACK, "+gzip")
    server.tag("a:2", target)
    place.pull(f"{server.host}/a:1")
    server.seen.clear()
    place.pull(f"{server.host}/a:2")
    assert len(server.paths("/blobs/")) == 1  # the configuration
    server.seen.clear()
    place.pull(f"{server.host}/a:2")
    assert server.paths() == ["/v2/a/manifests/2"]


def test_progress_is_told_for_every_blob(server: RegistryForTests, place: Place) -> None:
    target = held(server)
    place.pull(f"{server.host}/a:1")
    manifest = json.loads(server.blobs.content[target["digest"]])
    for blob in (manifest["config"], *manifest["layers"]):
        lines = [(done, total) for name, done, total in place.reports if name == blob["digest"]]
        assert lines[-1] == (blob["size"], blob["size"]) and lines == sorted(lines)


def test_an_index_gives_the_image_of_the_platform_and_stays(
    server: RegistryForTests, place: Place
) -> None:
    wanted = {**held(server), "platform": {"os": "linux", "architecture": machine()}}
    foreign = server.blobs.image(LAYERS[:1], User="s390x")
    foreign["platform"] = {"os": "linux", "architecture": "s390x"}
    index = server.blobs.index(foreign, wanted)
    server.tag("a:1", index)
    image = place.pull(f"{server.host}/a:1")
    assert image.manifest_digest == wanted["digest"]
    assert image.digests == (f"{server.host}/a@{index['digest']}",)
    place.platform = Platform("linux", "riscv64")
    with pytest.raises(Invalid, match="has no image for linux/riscv64; it offers linux/s390x"):
        place.pull(f"{server.host}/a:1")


def test_documents_of_docker_are_taken(server: RegistryForTests, place: Place) -> None:
    docker = "application/vnd.docker"
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    manifest["mediaType"] = f"{docker}.distribution.manifest.v2+json"
    manifest["config"]["mediaType"] = f"{docker}.container.image.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = f"{docker}.image.rootfs.diff.tar.gzip"
    target = server.blobs.add(as_json(manifest), manifest["mediaType"])
    server.tag("a:1", target)
    assert place.pull(f"{server.host}/a:1").manifest_digest == target["digest"]


# what is refused


def refused(place: Place, name: str, error: type[Exception], message: str) -> None:
    before = tree(place.root)
    with pytest.raises(error, match=message):
        place.pull(name)
    assert place.images.list() == () and leftovers(place.root / "store") == []
    gone = {k: v for k, v in tree(place.root).items() if not k.startswith("store/blobs/")}
    assert gone == {k: v for k, v in before.items() if not k.startswith("store/blobs/")}


def test_what_a_registry_does_not_have_is_named(server: RegistryForTests, place: Place) -> None:
    message = f"cannot pull {server.host}/no:latest: {server.url} has no such thing in no "
    refused(place, f"{server.host}/no", NotFound, message + r"\(404 MANIFEST_UNKNOWN no\)")


def test_a_registry_that_cannot_be_reached_is_named(place: Place) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
    refused(place, f"{host}/a", Unavailable, f"cannot pull {host}/a:latest: cannot reach http://")


@pytest.mark.parametrize("part", ["config", "layer"])
def test_a_blob_with_another_digest_is_refused(
    server: RegistryForTests, place: Place, part: str
) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    blob = manifest["config"] if part == "config" else manifest["layers"][0]
    server.blobs.content[blob["digest"]] = os.urandom(blob["size"])
    message = f"cannot store blob {blob['digest']}: it arrived as sha256:"
    refused(place, f"{server.host}/a:1", Invalid, message)
    assert place.images.missing_blobs([blob["digest"]]) == [blob["digest"]]


def test_a_blob_that_does_not_end_is_refused(server: RegistryForTests, place: Place) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    blob = manifest["layers"][0]
    server.blobs.content[blob["digest"]] += b"more"
    refused(place, f"{server.host}/a:1", Invalid, f"has more than the {blob['size']} bytes")


def test_a_blob_that_is_too_short_is_refused(server: RegistryForTests, place: Place) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    name = manifest["layers"][0]["digest"]
    server.blobs.content[name] = server.blobs.content[name][:-5]
    refused(place, f"{server.host}/a:1", Unavailable, "ends early")


def test_a_manifest_with_another_digest_is_refused(server: RegistryForTests, place: Place) -> None:
    target = held(server)
    server.blobs.content[target["digest"]] += b" "
    for name in ("a:1", f"a@{target['digest']}"):
        refused(place, f"{server.host}/{name}", Invalid, "manifest that came is not sha256:")


def test_a_manifest_that_claims_two_types_is_refused(
    server: RegistryForTests, place: Place
) -> None:
    target = held(server)
    server.types[target["digest"]] = f"{OCI}.index.v1+json"
    refused(place, f"{server.host}/a:1", Invalid, "came as .* and calls itself")
    both = {**json.loads(server.blobs.content[target["digest"]]), "manifests": []}
    server.tag("a:2", server.blobs.add(as_json(both), "x"))
    refused(place, f"{server.host}/a:2", Invalid, "both a manifest and an index")


def test_a_manifest_beyond_the_limit_is_refused(server: RegistryForTests, place: Place) -> None:
    server.tag("a:1", server.blobs.add(b'{"a": "' + b"x" * (5 << 20) + b'"}', "x"))
    refused(place, f"{server.host}/a:1", Invalid, "larger than 4 MiB")


def test_a_digest_that_is_a_path_is_refused(server: RegistryForTests, place: Place) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    manifest["layers"][0]["digest"] = "sha256:../../../etc/passwd"
    server.tag("a:1", server.blobs.add(as_json(manifest), manifest["mediaType"]))
    refused(place, f"{server.host}/a:1", Invalid, "invalid digest")


def test_foreign_urls_of_a_layer_are_not_asked(
    server: RegistryForTests, other: RegistryForTests, place: Place
) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    layer = manifest["layers"][0]
    layer["urls"] = [f"{other.url}/layer"]
    other.blobs.content["layer"] = server.blobs.content.pop(layer["digest"])
    server.tag("a:1", server.blobs.add(as_json(manifest), manifest["mediaType"]))
    refused(place, f"{server.host}/a:1", NotFound, "BLOB_UNKNOWN")
    assert other.seen == []


# patience


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_line_is_taken_up_where_it_broke(
    server: RegistryForTests, place: Place, ranges: bool
) -> None:
    held(server)
    server.ranges = ranges
    server.cut_after = [0, 100, 100_000, 290_000, 0, 50_000, 1]
    image = place.pull(f"{server.host}/a:1")
    assert image.layers == tuple(map(digest, LAYERS))
    assert any("range" in seen.headers for seen in server.seen)


def test_a_line_that_breaks_again_and_again_is_given_up(
    server: RegistryForTests, place: Place
) -> None:
    held(server)
    server.cut_after = [0] * 100
    refused(place, f"{server.host}/a:1", Unavailable, "cannot reach http://.*hung up")


def test_what_arrived_before_is_kept_for_the_next_try(
    server: RegistryForTests, place: Place
) -> None:
    manifest = json.loads(server.blobs.content[held(server)["digest"]])
    last = manifest["layers"][-1]["digest"]
    gone = server.blobs.content.pop(last)
    with pytest.raises(NotFound):
        place.pull(f"{server.host}/a:1")
    server.blobs.content[last] = gone
    arrived = {d for d in server.blobs.content if not place.images.missing_blobs([d])}
    server.seen.clear()
    place.pull(f"{server.host}/a:1")
    fetched = {path.rpartition("/")[2] for path in server.paths("/blobs/")}
    assert last in fetched and not fetched & arrived


def test_a_busy_server_is_asked_again_when_it_says(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.failures = [(429, {"Retry-After": "1"}), (503, {})]
    begun = time.monotonic()
    place.pull(f"{server.host}/a:1")
    assert time.monotonic() - begun >= 1
    server.failures = [(500, {})] * 50
    with pytest.raises(Unavailable, match=r"is busy \(500\)"):
        place.pull(f"{server.host}/a:1")


def test_a_pull_that_is_cancelled_leaves_nothing_half_done(
    server: RegistryForTests, place: Place
) -> None:
    held(server)

    async def cancelled() -> None:
        puller = Puller(place.images, Registries(), CredentialStore(""), place.platform)
        with trio.CancelScope() as scope:
            await puller.pull(f"{server.host}/a:1", lambda *line: scope.cancel())
        assert scope.cancelled_caught

    run(cancelled)
    assert place.images.list() == () and leftovers(place.root / "store") == []


# who we are


def test_a_token_is_asked_for_once_and_renewed(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.auth = "bearer"
    place.login(server.host)
    place.pull(f"{server.host}/a:1")
    assert server.tokens == 1
    [asked] = [seen for seen in server.seen if seen.path == "/token"]
    assert asked.query["scope"] == ["repository:a:pull"] and asked.query["service"] == ["test"]
    assert Credentials("me", "secret").basic() == asked.headers["authorization"]


def test_anyone_may_get_a_token(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.auth, server.anonymous = "bearer", True
    place.pull(f"{server.host}/a:1")
    assert all("Basic" not in seen.headers.get("authorization", "") for seen in server.seen)


def test_a_token_that_expired_is_asked_for_again(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.auth, server.anonymous = "bearer", True
    answer = server.manifest

    def expiring(*arguments: Any) -> None:
        answer(*arguments)
        server.valid.clear()

    server.manifest = expiring  # type: ignore[method-assign]
    place.pull(f"{server.host}/a:1")
    assert server.tokens >= 2


def test_an_identity_token_is_a_refresh_token(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.auth, server.refresh_token = "bearer", "long"
    place.login(server.host, identitytoken="long")
    place.pull(f"{server.host}/a:1")
    [asked] = [seen for seen in server.seen if seen.path == "/token"]
    assert asked.method == "POST" and asked.query["grant_type"] == ["refresh_token"]


def test_basic_credentials_are_sent_when_they_are_asked_for(
    server: RegistryForTests, place: Place
) -> None:
    held(server)
    server.auth = "basic"
    place.login(server.host)
    place.pull(f"{server.host}/a:1")
    assert "authorization" not in server.seen[0].headers


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_without_credentials_the_remedy_is_a_login(
    server: RegistryForTests, place: Place, auth: str
) -> None:
    held(server)
    server.auth = auth
    refused(place, f"{server.host}/a:1", Forbidden, f"`docker login {server.host}`")


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_credentials_are_told_and_not_shown(
    server: RegistryForTests, place: Place, auth: str
) -> None:
    held(server)
    server.auth = auth
    place.login(server.host, password="wrong")
    with pytest.raises(Forbidden) as caught:
        place.pull(f"{server.host}/a:1")
    assert "docker" in str(caught.value) and "wrong" not in str(caught.value)
    assert len(server.seen) < 6


def test_credentials_do_not_follow_a_redirect(
    server: RegistryForTests, other: RegistryForTests, place: Place
) -> None:
    held(server)
    server.auth = "basic"
    place.login(server.host)
    other.blobs = server.blobs
    server.redirect = lambda path: f"{other.url}{path}?sig=1" if "/blobs/" in path else ""
    place.pull(f"{server.host}/a:1")
    assert len(other.seen) == 4
    assert all("authorization" not in seen.headers for seen in other.seen)
    assert all(seen.query == {"sig": ["1"]} for seen in other.seen)


def test_redirects_within_a_server_and_in_circles(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.redirect = lambda path: path.replace("/v2/", "/moved/") if path[:4] == "/v2/" else ""
    answer = server.manifest
    server.manifest = (  # type: ignore[method-assign]
        lambda request, repository, reference: answer(
            request, repository.removeprefix("/moved/"), reference
        )
    )
    place.pull(f"{server.host}/a:1")
    server.redirect = lambda path: path
    with pytest.raises(Invalid, match="redirected in circles"):
        place.pull(f"{server.host}/a:1")


def test_a_redirect_to_what_is_no_url_is_refused(server: RegistryForTests, place: Place) -> None:
    held(server)
    server.redirect = lambda path: f"{server.url}/a b"
    refused(place, f"{server.host}/a:1", Invalid, "is no URL: it has letters")


def test_credentials_are_for_their_own_server(
    server: RegistryForTests, other: RegistryForTests, place: Place
) -> None:
    held(other)
    place.login(server.host)
    other.auth, other.anonymous = "bearer", True
    place.pull(f"{other.host}/a:1")
    assert all("Basic" not in seen.headers.get("authorization", "") for seen in other.seen)


# mirrors


def test_a_mirror_is_asked_first_and_told_for_whom(
    server: RegistryForTests, other: RegistryForTests, place: Place
) -> None:
    held(other, "library/a:1")
    place.registries = {"docker.io": {"mirrors": [other.url], "url": server.url}}
    place.login("https://index.docker.io/v1/")
    assert place.pull("a:1").names == ("a:1",)
    assert server.seen == []
    assert all(seen.query == {"ns": ["docker.io"]} for seen in other.seen)
    assert all("authorization" not in seen.headers for seen in other.seen)


@pytest.mark.parametrize("trouble", ["absent", "away", "liar", "closed"])
def test_a_mirror_in_trouble_is_passed_over(
    server: RegistryForTests, other: RegistryForTests, place: Place, trouble: str
) -> None:
    target = held(server, "library/a:1")
    place.registries = {"docker.io": {"mirrors": [other.url], "url": server.url}}
    if trouble == "away":
        place.registries["docker.io"]["mirrors"] = ["http://127.0.0.1:1"]
    if trouble == "liar":
        held(other, "library/a:1")
        for name in other.blobs.content:
            if name != target["digest"]:
                other.blobs.content[name] = os.urandom(len(other.blobs.content[name]))
    if trouble == "closed":
        other.auth = "basic"
    assert place.pull("a:1").manifest_digest == target["digest"]
    assert server.paths("/v2/library/a/")


def test_where_all_fail_the_registrys_own_words_are_told(
    server: RegistryForTests, other: RegistryForTests, place: Place
) -> None:
    place.registries = {"docker.io": {"mirrors": [other.url], "url": server.url}}
    refused(place, "a:1", NotFound, f"cannot pull a:1: {server.url} has no such thing")


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, secret = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret


@pytest.fixture
def secure(authority: tuple[Path, Path]) -> Iterator[RegistryForTests]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    server = RegistryForTests(context)
    yield server
    server.close()


def test_a_private_authority_is_trusted_where_it_is_named(
    secure: RegistryForTests, place: Place, authority: tuple[Path, Path]
) -> None:
    held(secure)
    place.registries = {secure.host: {"url": secure.url}}
    refused(
        place, f"{secure.host}/a:1", Unavailable,
        r"certificate is not trusted \(.*\); give its authority as `ca` in registries.json",
    )  # fmt: skip
    place.registries[secure.host]["ca"] = str(authority[0])
    assert place.pull(f"{secure.host}/a:1").names == (f"{secure.host}/a:1",)
    place.registries[secure.host]["ca"] = "/no/ca.pem"
    with pytest.raises(Invalid, match=r"cannot read /no/ca\.pem, the `ca` of"):
        place.pull(f"{secure.host}/a:1")


def test_https_is_never_left_for_http(
    secure: RegistryForTests, other: RegistryForTests, place: Place, authority: tuple[Path, Path]
) -> None:
    held(secure)
    place.registries = {secure.host: {"url": secure.url, "ca": str(authority[0])}}
    place.login(secure.host)
    secure.redirect = lambda path: f"{other.url}{path}"
    refused(place, f"{secure.host}/a:1", Invalid, "redirects from https to http://127.0.0.1")
    secure.redirect = lambda path: ""
    secure.auth, secure.realm = "bearer", f"{other.url}/token"
    refused(place, f"{secure.host}/a:1", Invalid, "for a token, without https: refused")
    assert other.seen == []


# a registry of others


def test_debians_registry_gives_what_skopeo_pushed(
    debian: str, place: Place, tmp_path: Path
) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    from image.box import docker_archive, gathered

    source = Images(str(tmp_path / "source"))
    load(source, docker_archive(LAYERS, ["app:1"]))
    archive = tmp_path / "app.tar"
    archive.write_bytes(gathered(source.save(["app:1"])))
    for form in ("gzip", "zstd"):
        target = f"docker://{debian}/team/app:{form}"
        command = [skopeo, "copy", "-q", "--dest-tls-verify=false", "--dest-compress-format", form]
        subprocess.run([*command, f"docker-archive:{archive}", target], check=True, timeout=60)
        image = place.pull(f"{debian}/team/app:{form}")
        assert image.layers == source.get("app:1").layers
        mine = [tree(lower) for lower in place.images.lowers(image.id)]
        assert mine == [tree(lower) for lower in source.lowers(source.get("app:1").id)]
