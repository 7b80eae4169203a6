"""Digests and references: what text is one, and what name is meant."""

from __future__ import annotations

import pytest

from orchestra.image.digest import Digest
from orchestra.image.reference import parse_reference
from orchestra.model.errors import Invalid

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256", "sha256:", HEX, f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"SHA256:{HEX}",
        f"sha256:{HEX.upper()}", f"sha256:{HEX}\n", f" sha256:{HEX}", f"sha512:{HEX}",
        f"md5:{HEX}", f"sha256:../{HEX[3:]}", "sha256:../../../../etc/passwd",
        f"sha256:{'٠' * 64}", f"sha256:{HEX[:-1]}/", None, 7, ["sha256"],
    ],
)  # fmt: skip
def test_what_is_no_digest_never_becomes_one(text: object) -> None:
    with pytest.raises(Invalid, match="invalid digest"):
        Digest(text)  # type: ignore[arg-type]


def test_both_algorithms_are_digests() -> None:
    assert Digest(f"sha512:{HEX * 2}").hex == HEX * 2
    assert (
        Digest.of(b"")
        == f"sha256:{'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'}"
    )


MEANT = {
    "busybox": ("docker.io/library/busybox", "busybox"),
    "library/busybox": ("docker.io/library/busybox", "busybox"),
    "docker.io/busybox": ("docker.io/library/busybox", "busybox"),
    "index.docker.io/library/busybox:1.36": ("docker.io/library/busybox:1.36", "busybox:1.36"),
    "me/app:1": ("docker.io/me/app:1", "me/app:1"),
    "library/a/b": ("docker.io/library/a/b", "library/a/b"),
    "localhost/app": ("localhost/app", "localhost/app"),
    "localhost:5000/app": ("localhost:5000/app", "localhost:5000/app"),
    "host:80/a/b:t": ("host:80/a/b:t", "host:80/a/b:t"),
    "Host/app": ("Host/app", "Host/app"),
    "[::1]:5000/app": ("[::1]:5000/app", "[::1]:5000/app"),
    "10.0.0.1/a__b/c-d.e": ("10.0.0.1/a__b/c-d.e", "10.0.0.1/a__b/c-d.e"),
    f"a:1@sha256:{HEX}": (f"docker.io/library/a:1@sha256:{HEX}", f"a:1@sha256:{HEX}"),
}


@pytest.mark.parametrize("text", MEANT)
def test_a_reference_means_one_name(text: str) -> None:
    reference = parse_reference(text)
    assert (reference.canonical(), reference.familiar()) == MEANT[text]
    assert parse_reference(reference.canonical()) == reference
    assert parse_reference(reference.familiar()) == reference


def test_latest_is_meant_only_where_nothing_is_said() -> None:
    assert parse_reference("a").tagged().familiar() == "a:latest"
    assert parse_reference("a:b").tagged().familiar() == "a:b"
    assert parse_reference(f"a@sha256:{HEX}").tagged().familiar() == f"a@sha256:{HEX}"


REFUSED = {
    "": "is no repository name",
    "A": "must be lower-case: 'library/a'",
    "a b": "is no repository name",
    "a:": "is no tag",
    "a:-x": "is no tag",
    "a:" + "x" * 129: "is no tag",
    "a@sha256:12": "invalid digest",
    "a@": "invalid digest",
    HEX: "an image's id",
    "-a/b": "is no repository name",
    "a..b": "is no repository name",
    "a//b": "is no repository name",
    "../etc": "is no registry host",
    "a/../b": "is no repository name",
    "host.io/" + "x" * 250: "longer than 255",
    "ho_st.io/x": "is no registry host",
    "a\n": "is no repository name",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_reference_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_reference(text)
    assert str(caught.value).startswith("invalid reference format: ")
    assert REFUSED[text] in str(caught.value)
