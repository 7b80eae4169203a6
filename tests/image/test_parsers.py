"""Whatever a document, a name or an archive says: it is understood or refused, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image.box import OCI, as_json, configuration, digest, file, load, tar
from orchestra.image.images import Images
from orchestra.image.media import (
    Index,
    Manifest,
    Platform,
    config_document,
    parse_config,
    parse_image,
    parse_manifest,
    parse_time,
    select_platform,
)
from orchestra.image.reference import parse_reference
from orchestra.image.registry import parse_challenge
from orchestra.model.errors import Invalid

DIGEST = digest(b"x")
WORDS = st.sampled_from(
    ["", "x", DIGEST, "sha256:../x", f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json", "linux",
     "2020-01-01T00:00:00Z", "\0", "\ud800"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | WORDS
KEYS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform",
     "annotations", "os", "architecture", "variant", "rootfs", "diff_ids", "history", "created",
     "Env", "Cmd", "Labels", "Volumes", "Healthcheck", "Test", "Interval", "Retries", "x"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
DESCRIPTOR = st.fixed_dictionaries(
    {}, optional={"digest": WORDS, "size": SCALARS, "mediaType": WORDS, "platform": JSON,
                  "annotations": JSON}
)  # fmt: skip
DOCUMENTS = JSON | st.fixed_dictionaries(
    {}, optional={"config": DESCRIPTOR | JSON, "layers": st.lists(DESCRIPTOR | JSON, max_size=2),
                  "manifests": st.lists(DESCRIPTOR, max_size=3) | JSON, "mediaType": WORDS}
)  # fmt: skip


@given(DOCUMENTS)
def test_a_manifest_is_one_thing_or_refused(document: Any) -> None:
    raw = json.dumps(document).encode("utf-8", "surrogatepass")
    try:
        found = parse_manifest(raw)
    except Invalid:
        return
    assert isinstance(found, (Manifest, Index)) and found.raw == raw
    if isinstance(found, Index):
        try:
            assert select_platform(found, Platform("linux", "amd64"), "x") in found.manifests
        except Invalid:
            pass


@given(JSON, JSON)
def test_an_image_configuration_is_understood_or_refused(document: Any, config: Any) -> None:
    whole = json.loads(configuration([b"x"]))
    whole.update(document if isinstance(document, dict) else {"history": document})
    whole["config"] = config
    try:
        image = parse_image(as_json(whole))
    except Invalid:
        return
    assert parse_config(config_document(image.config), "x") == image.config


@given(st.binary(max_size=300))
def test_noise_is_no_document(noise: bytes) -> None:
    for parse in (parse_manifest, parse_image):
        with pytest.raises(Invalid):
            parse(noise)


@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9./:@_-]{1,60}", fullmatch=True))
def test_a_reference_is_itself_when_read_again(text: str) -> None:
    try:
        reference = parse_reference(text)
    except Invalid:
        return
    assert parse_reference(reference.canonical()) == reference
    assert parse_reference(reference.familiar()) == reference
    assert ".." not in reference.path.split("/") and not reference.path.startswith("/")


@given(st.text(max_size=100))
def test_a_challenge_is_never_an_accident(text: str) -> None:
    parse_challenge(text)


@given(st.text(max_size=40) | WORDS)
def test_a_time_is_a_number_or_refused(text: str) -> None:
    try:
        assert parse_time(text) == parse_time(text)
    except Invalid:
        pass


ITEM = st.fixed_dictionaries(
    {}, optional={"Config": st.sampled_from(["c", "no", "../c", "", "/c"]) | JSON,
                  "Layers": st.lists(st.sampled_from(["l", "c", ""]), max_size=2) | JSON,
                  "RepoTags": st.lists(st.sampled_from(["a", "A", "", DIGEST])) | JSON}
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(item=st.lists(ITEM, max_size=2) | JSON, config=JSON)
def test_an_archive_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, item: Any, config: Any
) -> None:
    layer = tar(file("x"))
    whole = {**json.loads(configuration([layer])), "config": config}
    members = [file("c", as_json(whole)), file("l", layer), file("manifest.json", as_json(item))]
    images = Images(str(tmp_path_factory.mktemp("any")))
    try:
        load(images, tar(*members))
    except Invalid:
        assert images.list() == ()
